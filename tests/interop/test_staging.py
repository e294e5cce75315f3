"""Staging homes, and the switch that only they take."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from interoplib.acme import AcmeClient
from interoplib.server import Server
from interoplib.tools import CHECKOUT, run

SKIP = ("--set", "acme.unsafe_skip_validation=true")
AS_STAGING = ("--set", "server.staging=true")


@pytest.fixture(scope="module")
def staging(ca_server_command: Path, open_folder: Callable[[str], Path]) -> Iterator[Server]:
    server = Server(ca_server_command, open_folder("staging"))
    server.init("--staging")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def production(ca_server_command: Path, open_folder: Callable[[str], Path]) -> Server:
    server = Server(ca_server_command, open_folder("production"))
    server.init()
    return server


def refusal(server: Server, *options: str, launcher: Path | None = None) -> str:
    command = [launcher] if launcher else [server.command, "serve"]
    done = run([*command, *server.options, *options], expect=None, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "ready" not in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    return str(line)


def test_skipping_is_for_staging_alone(production: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "unsafe_skip_validation" in refusal(production, "--unsafe-skip-validation")
    assert "unsafe_skip_validation" in refusal(production, *SKIP)
    monkeypatch.setenv("CA_SERVER__ACME__UNSAFE_SKIP_VALIDATION", "true")
    assert "unsafe_skip_validation" in refusal(production)


@pytest.mark.parametrize("options", [(), ("--unsafe-skip-validation",), ("--single-process",)])
def test_the_certificates_outweigh_the_setting(production: Server, options: tuple[str, ...]) -> None:
    line = refusal(production, *AS_STAGING, *options)
    assert "server.staging" in line
    assert "no staging CA" in line


def test_run_does_not_take_a_home_of_the_other_kind(production: Server) -> None:
    assert "server.staging" in refusal(production, "--staging", launcher=CHECKOUT / "scripts" / "run")


def test_a_staging_ca_stays_one(staging: Server) -> None:
    line = refusal(staging, "--set", "server.staging=false")
    assert "is a staging CA" in line


def test_init_does_not_turn_a_written_configuration(
    ca_server_command: Path, open_folder: Callable[[str], Path]
) -> None:
    server = Server(ca_server_command, open_folder("half"))
    server.home.mkdir()
    (server.home / "ca-server.toml").write_text((CHECKOUT / "config" / "ca-server.toml").read_text())
    done = run([ca_server_command, "init", *server.options, "--staging"], expect=None)
    assert done.returncode == 2
    assert "server.staging" in done.stderr


def test_a_staging_ca_that_skips_validation(staging: Server) -> None:
    staging.start(staging.command, "serve", "--unsafe-skip-validation")
    for file in (staging.root, staging.issuing):
        subject = x509.load_pem_x509_certificate(file.read_bytes()).subject
        assert str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value).startswith("STAGING ")
    log = staging.log.read_text()
    assert "STAGING" in log
    assert "NOT VALIDATED" in log
    critical = [json.loads(line) for line in log.splitlines() if '"critical"' in line]
    assert [entry["setting"] for entry in critical] == ["acme.unsafe_skip_validation"]

    client = AcmeClient(staging.directory, staging.root).register()
    (url,) = client.new_order("nowhere.test").body["authorizations"]
    challenge, _ = client.challenge(url, "http-01")
    assert client.post(challenge["url"], {}).json["status"] == "valid"
    assert staging.stop() == 0

    staging.start()
    assert staging.stop() == 0
    events = [json.loads(line) for line in staging.cli("audit", "export").stdout.splitlines()]
    unsafe = [event for event in events if event["type"] == "unsafe.setting"]
    assert [event["object"] for event in unsafe] == ["setting:acme.unsafe_skip_validation"], "of the one start with it"
    assert "'skipped': 'true'" in str([event for event in events if event["type"] == "challenge.validated"])
