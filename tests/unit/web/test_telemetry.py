"""Logs that tell no secret, and metrics of several processes."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from ca_server import telemetry
from ca_server.domain.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def configured():
    """Configure logging into a buffer; everything is put back at the end."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def configure(log_format: str = "json", level: str = "info") -> io.StringIO:
        stream = io.StringIO()
        telemetry.configure_logging(log_format, level, process="core", stream=stream)
        return stream

    yield configure
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers, root.level = handlers, level
    logging.captureWarnings(capture=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pin", "1234"),
        ("so_pin", "1234"),
        ("PIN", "1234"),
        ("password", "hunter2"),
        ("secret", b"bytes"),
        ("webhook_secret", "x9"),
        ("token", "t0k"),
        ("api_token", "t0k"),
        ("authorization", "Bearer t0k"),
        ("nonce_key", b"0" * 32),
        ("hmac_key", "abc"),
        ("headers", {"Authorization": "Bearer t0k", "Set-Cookie": "t0k"}),
        ("parts", [{"password": "hunter2"}]),
        ("url", "postgresql+asyncpg://ca:hunter2@db/ca"),
        ("uri", "pkcs11:token=ca?pin-value=1234&module-path=/x"),
    ],
)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_are_not_written(configured, name, value, log_format):
    stream = configured(log_format)
    structlog.get_logger().info("event", **{name: value})
    text = stream.getvalue()
    assert "event" in text
    assert telemetry.REDACTED in text
    # What may be there are the names, times and lengths; never the value or a part of it that was secret.
    for secret in ("hunter2", "t0k", "=1234", "'1234'", '"1234"'):
        assert secret not in text
    assert str(value) not in text


def test_secrets_in_stacks_and_in_others_logs_are_not_written(configured):
    stream = configured()
    error = ConnectionError("can't reach postgresql://ca:hunter2@db/ca")
    structlog.get_logger().error("failed", exc_info=error)
    logging.getLogger("sqlalchemy.pool").error("lost %s", "postgresql://ca:hunter2@db/ca")
    assert stream.getvalue().count("ca:[redacted]@db") >= 2
    assert "hunter2" not in stream.getvalue()


def test_what_only_looks_like_a_secret_is_kept(configured):
    stream = configured()
    structlog.get_logger().info("event", token_label="ca", pinned=True, secrets=3, url="https://host/path")
    line = json.loads(stream.getvalue())
    assert (line["token_label"], line["pinned"], line["secrets"], line["url"]) == ("ca", True, 3, "https://host/path")


def test_request_id_and_process_are_in_every_line(configured):
    stream = configured()
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger().info("own")
        logging.getLogger("aiohttp.server").warning("another's")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["request_id"], line["process"], line["level"]) for line in lines] == [
        ("r-1", "core", "info"),
        ("r-1", "core", "warning"),
    ]


@pytest.mark.parametrize("value", ["a\nb", "\x1b[31m", "\ud800", b"\xff", {1: 2}, object(), "x" * 100_000])
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_whatever_a_value_is_it_is_one_bounded_line(configured, value, log_format):
    stream = configured(log_format)
    structlog.get_logger().info("event", value=value)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert len(text) < 2 * telemetry.MAX_TEXT


def test_level_and_second_configuration(configured):
    stream = configured(level="warning")
    structlog.get_logger().info("unheard")
    logging.getLogger("x").info("unheard")
    assert stream.getvalue() == ""
    again = configured(level="debug")
    structlog.get_logger().debug("heard")
    logging.getLogger("x").debug("heard")
    assert again.getvalue().count("heard") == 2
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("log_format", "level"), [("xml", "info"), ("json", "loud")])
def test_what_does_not_exist_is_refused(log_format, level):
    with pytest.raises(ConfigurationError, match="choose one of"):
        telemetry.configure_logging(log_format, level)


def test_metrics_of_several_processes_are_summed(tmp_path):
    directory = tmp_path / "metrics"
    directory.mkdir()
    (directory / "counter_1.db").write_bytes(b"of an earlier run")
    telemetry.prepare_metrics_directory(directory)
    assert list(directory.rglob("*.db")) == []
    environments = [
        {**os.environ, **telemetry.metrics_environment(directory, of), "PYTHONPATH": str(ROOT)}
        for of in (telemetry.METRICS_OF_CORE, telemetry.METRICS_OF_FRONTS)
    ]
    add = (
        "from ca_server import telemetry as t; t.ISSUANCE.labels('acme', 'p', 'issued').inc();"
        "t.HTTP_IN_FLIGHT.labels('http').inc(); t.TOKEN_UP.set(1); import os; print(os.getpid())"
    )
    pids = [
        int(subprocess.run([sys.executable, "-c", add], env=environment, check=True, capture_output=True).stdout)
        for environment in environments
    ]

    def rendered() -> str:
        show = "from ca_server import telemetry as t; print(t.render_metrics().decode())"
        return subprocess.run(
            [sys.executable, "-c", show], env=environments[0], check=True, capture_output=True, text=True
        ).stdout

    text = rendered()
    assert 'ca_server_issuance_total{outcome="issued",profile="p",protocol="acme"} 2.0' in text
    assert 'ca_server_http_in_flight{listener="http"} 2.0' in text
    assert "ca_server_token_up 1.0" in text
    telemetry.forget_process(directory, pids[0])
    text = rendered()
    assert 'ca_server_http_in_flight{listener="http"} 1.0' in text
    assert 'ca_server_issuance_total{outcome="issued",profile="p",protocol="acme"} 2.0' in text


def test_a_log_that_cannot_be_written_stops_nobody(configured) -> None:
    """As on a full disk: the line is lost, what was being done is not."""

    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    configured()
    telemetry.configure_logging(stream=Full())
    structlog.get_logger().info("request")
    logging.getLogger("other").warning("said")


def test_metrics_files_have_no_holes(tmp_path: Path) -> None:
    """A process that touches a hole of a mapped file on a full disk is killed by SIGBUS."""
    script = (
        "from ca_server import telemetry; telemetry.HTTP_REQUESTS.labels('l', 'f', 'GET', '200').inc();"
        "print(telemetry.render_metrics().decode())"
    )
    telemetry.prepare_metrics_directory(tmp_path)
    environment = {**os.environ, **telemetry.metrics_environment(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, umask=0o007
    )
    assert 'ca_server_http_requests_total{frontend="f",listener="l",method="GET",status="200"} 1.0' in done.stdout
    files = list((tmp_path / telemetry.METRICS_OF_CORE).glob("*.db"))
    assert files
    assert {oct(file.stat().st_mode & 0o7777) for file in files} == {"0o640"}, "a front can't cut them short"
    assert [file.name for file in files if file.stat().st_blocks * 512 < file.stat().st_size] == []
