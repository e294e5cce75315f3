"""Logs and metrics: how every process of the server writes its log, and every metric there is, in one place.

Metrics are written per process and summed when they are read: `PROMETHEUS_MULTIPROC_DIR` must be in the environment
before this module is first imported (see `metrics_environment`). Core and fronts have a folder each, which the other
can't write: the files are mapped, and who cuts a file short kills the process that has it mapped.
"""

import contextlib
import functools
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TextIO, cast

import msgspec
import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
)
from prometheus_client import multiprocess as prometheus_multiprocess

from ca_server.domain.errors import ConfigurationError

# --- Logs ---------------------------------------------------------------------------------------------------------

LOG_FORMATS = ("json", "console")
LOG_LEVELS = ("debug", "info", "warning", "error")
REDACTED = "[redacted]"
MAX_TEXT = 8192
"""Characters kept of one value of a log line; what a peer sends must not fill the disk."""
_MAX_DEPTH = 4

_SECRET_NAMES = frozenset(
    {"pin", "password", "passwd", "passphrase", "secret", "token", "authorization", "cookie", "credential", "mac"}
    | {"hmac_key", "nonce_key", "private_key", "eab_key", "session_key", "api_key", "set-cookie"}
)
_SECRET_ENDINGS = ("_pin", "_password", "_passphrase", "_secret", "_token", "-token", "_cookie", "_authorization")
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")
_PIN_ATTRIBUTE = re.compile(r"(pin-(?:value|source)=)[^&;\s'\"]+")


@functools.lru_cache(maxsize=1024)
def _is_secret(name: object) -> bool:
    if not isinstance(name, str):
        return False
    lowered = name.lower()
    return lowered in _SECRET_NAMES or lowered.endswith(_SECRET_ENDINGS)


class _LossyStream:
    """A stream whose failures (a full disk, a pipe that nobody reads) lose the line, and never an answer."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


_PLAIN = frozenset({bool, int, float})


def _clean(value: object, depth: int) -> object:
    if isinstance(value, str):
        text = value
        if "://" in text:
            text = _URL_PASSWORD.sub(rf"\1{REDACTED}@", text)
        if "pin-" in text:
            text = _PIN_ATTRIBUTE.sub(rf"\1{REDACTED}", text)
        return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."
    if isinstance(value, Mapping):
        if depth <= 0:
            return "..."
        return {key: REDACTED if _is_secret(key) else _clean(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item, depth - 1) for item in value] if depth > 0 else "..."
    return value


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace what is named like a secret, passwords in URLs and PINs in PKCS#11 URIs (RFC 7512 section 2.4)."""
    for key, value in event.items():
        if _is_secret(key):
            event[key] = REDACTED
        elif value is not None and type(value) not in _PLAIN:
            event[key] = _clean(value, _MAX_DEPTH)
    return event


def _json(event: Mapping[str, Any], **_options: object) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=repr).decode()
    except (TypeError, ValueError):
        # Odd keys, or text that is no UTF-8: a line must never be lost for its contents.
        return json.dumps({str(key): repr(value) for key, value in event.items()})


def configure_logging(
    log_format: str = "json", level: str = "info", *, process: str = "", stream: TextIO | None = None
) -> None:
    """Route structlog and standard logging to `stream` (default: standard error), one line an event.

    `log_format` is `json` or `console`; `process` names the process in every line (such as `core` or `front-1`).
    What is bound in structlog's contextvars, the request id first of all, is in every line. Raises
    ConfigurationError for an unknown format or level. May be called again to change format or level.
    """
    if log_format not in LOG_FORMATS:
        raise ConfigurationError("log", "format", log_format, f"choose one of {', '.join(LOG_FORMATS)}")
    if level not in LOG_LEVELS:
        raise ConfigurationError("log", "level", level, f"choose one of {', '.join(LOG_LEVELS)}")
    number = logging.getLevelNamesMapping()[level.upper()]
    target = stream if stream is not None else sys.stderr
    lossy = _LossyStream(target)

    def add_process(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if process:
            event.setdefault("process", process)
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_process,
        structlog.processors.StackInfoRenderer(),
    ]
    last: list[structlog.typing.Processor]
    if log_format == "json":
        # Tracebacks become text first, so that redaction sees them.
        last = [structlog.processors.format_exc_info, redact, structlog.processors.JSONRenderer(serializer=_json)]
    else:
        console = structlog.dev.ConsoleRenderer(
            colors=hasattr(target, "isatty") and target.isatty(),
            # Values are quoted: what a peer sent can neither move the cursor nor begin a line of its own.
            repr_native_str=True,
        )
        last = [structlog.processors.format_exc_info, redact, console]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", lossy)),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(cast("TextIO", lossy))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    for previous in list(root.handlers):
        if getattr(previous, "_ca_server", False):
            root.removeHandler(previous)
    handler._ca_server = True  # type: ignore[attr-defined]  # noqa: SLF001 - our own mark, so that a second call replaces
    root.addHandler(handler)
    root.setLevel(number)
    logging.captureWarnings(capture=True)
    for name, own_level in {
        # The canonical line of each request is ours; SQL text and migration chatter only in debug.
        "aiohttp.access": logging.CRITICAL,
        "aiohttp": max(number, logging.WARNING),
        "asyncio": max(number, logging.WARNING),
        "sqlalchemy": max(number, logging.WARNING),
        "aiosqlite": max(number, logging.WARNING),
        "alembic": number if number <= logging.DEBUG else logging.WARNING,
    }.items():
        logging.getLogger(name).setLevel(own_level)


# --- Metrics ------------------------------------------------------------------------------------------------------

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_METRICS_FILES = ("counter", "histogram", "gauge_livesum", "gauge_livemin", "gauge_mostrecent")
_METRICS_FILE_SIZE = 1 << 18
METRICS_OF_CORE, METRICS_OF_FRONTS = "core", "fronts"
"""Folders in the directory of a server's metrics."""


def _reserve_metrics_files() -> None:
    """Give this process's files their place on the disk before they are mapped.

    The client library maps files full of holes, and SIGBUS kills who touches a hole of a file on a full disk.
    """
    directory = os.environ.get(MULTIPROCESS_VARIABLE)
    if not directory:
        return
    for kind in _METRICS_FILES:
        with contextlib.suppress(OSError):
            # Its group may read it, whatever the umask lets it do with a database.
            path = Path(directory) / f"{kind}_{os.getpid()}.db"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o640)
            try:
                os.posix_fallocate(descriptor, 0, _METRICS_FILE_SIZE)
            finally:
                os.close(descriptor)


_reserve_metrics_files()
_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

ISSUANCE = Counter(
    "ca_server_issuance_total",
    "Enrollment requests by how they ended: issued, found, denied, held, failed.",
    ["protocol", "profile", "outcome"],
)
ISSUANCE_STAGE_SECONDS = Histogram(
    "ca_server_issuance_stage_seconds",
    "Time in one stage of the pipeline: decide, build, lint, reserve, sign, store.",
    ["stage"],
    buckets=_FAST,
)
REVOCATIONS = Counter("ca_server_revocations_total", "Revocations by reason and outcome.", ["reason", "outcome"])
HTTP_REQUESTS = Counter(
    "ca_server_http_requests_total", "HTTP requests answered.", ["listener", "frontend", "method", "status"]
)
HTTP_REQUEST_SECONDS = Histogram(
    "ca_server_http_request_seconds", "Time to answer an HTTP request.", ["listener", "frontend"], buckets=_FAST
)
HTTP_IN_FLIGHT = Gauge(
    "ca_server_http_in_flight", "HTTP requests being answered.", ["listener"], multiprocess_mode="livesum"
)
HTTP_CONNECTIONS = Gauge("ca_server_http_connections", "Open connections.", ["listener"], multiprocess_mode="livesum")
HTTP_REFUSED = Counter(
    "ca_server_http_refused_total",
    "Connections and requests cut off by a limit: malformed, slow_headers, slow_client, handshake, busy, body, "
    "lines (too many chunks), time, evicted (closed for another), address (too many of one), full, descriptors.",
    ["listener", "reason"],
)
HSM_OPERATIONS = Counter("ca_server_hsm_operations_total", "Token operations.", ["operation", "outcome"])
HSM_OPERATION_SECONDS = Histogram(
    "ca_server_hsm_operation_seconds", "Time in the token, queueing excluded.", ["operation"], buckets=_FAST
)
TOKEN_UP = Gauge(
    "ca_server_token_up", "1 while the token answers, 0 while it does not.", multiprocess_mode="mostrecent"
)
AUDIT_LAG_SECONDS = Gauge(
    "ca_server_audit_lag_seconds",
    "Age of the oldest committed audit event without a leaf in the tree; 0 when there is none.",
    multiprocess_mode="mostrecent",
)
AUDIT_TREE_SIZE = Gauge(
    "ca_server_audit_tree_size", "Leaves under the latest checkpoint.", multiprocess_mode="mostrecent"
)
AUDIT_SYSLOG = Counter(
    "ca_server_audit_syslog_total",
    "Checkpoints for syslog: sent, failed (and tried again), dropped because too many waited.",
    ["outcome"],
)
RPC_IN_FLIGHT = Gauge(
    "ca_server_rpc_in_flight", "Requests being handled on the port.", ["port"], multiprocess_mode="livesum"
)
RPC_REQUESTS = Counter(
    "ca_server_rpc_requests_total", "Requests handled on the port.", ["port", "operation", "outcome"]
)
RPC_REFUSED = Counter(
    "ca_server_rpc_refused_total",
    "Connections and frames refused: peer, connections, oversized, malformed, version, operation, argument.",
    ["port", "reason"],
)
RPC_RECONNECTS = Counter("ca_server_rpc_reconnects_total", "Times a front (re)connected to the port.", ["port"])
DB_COMMIT_UNITS = Histogram(
    "ca_server_db_commit_units", "Units of work in one commit.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
DB_COMMIT_SECONDS = Histogram("ca_server_db_commit_seconds", "Time of one commit with its batch.", buckets=_FAST)
DB_WAITING = Gauge("ca_server_db_waiting", "Units of work that wait for a transaction.", multiprocess_mode="livesum")
DB_RETRIES = Counter("ca_server_db_retries_total", "Units of work whose transaction was undone and that ran again.")
DB_REFUSED = Counter(
    "ca_server_db_refused_total", "Units of work given up: the database was away, locked or full, or the queue was."
)
DB_UP = Gauge(
    "ca_server_db_up",
    "0 in a process since a unit was given up, 1 since a commit; the least of all processes.",
    multiprocess_mode="livemin",
)
ACME_VALIDATIONS = Counter("ca_server_acme_validations_total", "Challenge validations.", ["type", "outcome"])
ACME_LIMITED = Counter("ca_server_acme_limited_total", "Requests refused with rateLimited, by the limit.", ["limit"])
ACME_CAA = Counter(
    "ca_server_acme_caa_total",
    "CAA checks of orders by the profile's mode (log, enforce) and outcome: allowed, refused, failed (no answer).",
    ["mode", "outcome"],
)
OCSP_ANSWERS = Counter(
    "ca_server_ocsp_answers_total", "OCSP answers: good, revoked, unknown, or the error status.", ["status"]
)
CRL_NUMBER = Gauge("ca_server_crl_number", "Number of the latest CRL.", ["issuer"], multiprocess_mode="mostrecent")
CRL_PUBLISHED_TIME = Gauge(
    "ca_server_crl_this_update_seconds",
    "thisUpdate of the latest CRL, seconds since 1970: its age is time() less this.",
    ["issuer"],
    multiprocess_mode="mostrecent",
)
CRL_NEXT_UPDATE_TIME = Gauge(
    "ca_server_crl_next_update_seconds",
    "nextUpdate of the latest CRL, seconds since 1970.",
    ["issuer"],
    multiprocess_mode="mostrecent",
)
TLS_NOT_AFTER_TIME = Gauge(
    "ca_server_tls_certificate_not_after_seconds",
    "End of the listeners' certificate, seconds since 1970.",
    multiprocess_mode="mostrecent",
)
CHILD_RESTARTS = Counter("ca_server_child_restarts_total", "Processes that died and were started again.", ["child"])

METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST


class _AllProcesses:
    """Collects the metrics of core and fronts."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        files = [str(file) for file in self._directory.glob("*/*.db")]
        merged: Iterable[Metric] = prometheus_multiprocess.MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return merged


def render_metrics() -> bytes:
    """All metrics in the Prometheus text format: of all processes where they share a directory. Reads files."""
    if MULTIPROCESS_VARIABLE not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    registry.register(_AllProcesses(Path(os.environ[MULTIPROCESS_VARIABLE]).parent))
    return generate_latest(registry)


def prepare_metrics_directory(directory: Path) -> None:
    """Make the directory in which processes keep their metrics, or empty it of an earlier run."""
    # The directory itself had the files once.
    for folder in (directory, *_metrics_folders(directory)):
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("*.db"):
            file.unlink(missing_ok=True)


def _metrics_folders(directory: Path) -> tuple[Path, ...]:
    return directory / METRICS_OF_CORE, directory / METRICS_OF_FRONTS


def metrics_environment(directory: Path, of: str = METRICS_OF_CORE) -> dict[str, str]:
    """What to add to a child's environment so that its metrics go to `directory`; `of` names its folder there."""
    return {MULTIPROCESS_VARIABLE: str(directory / of)}


def forget_process(directory: Path, pid: int) -> None:
    """Drop the gauges of a process that died; its counters stay, since sums must not go back."""
    for folder in _metrics_folders(directory):
        prometheus_multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
