"""Hands what the core and the adapters observe to the metrics."""

import functools

from ca_server import telemetry
from ca_server.domain.certificates import Crl

# Finding a child by its labels costs as much as counting.
_stage = functools.cache(telemetry.ISSUANCE_STAGE_SECONDS.labels)
_token_seconds = functools.cache(telemetry.HSM_OPERATION_SECONDS.labels)
_token_operations = functools.cache(telemetry.HSM_OPERATIONS.labels)


def stage(name: str, seconds: float) -> None:
    """Time of one stage of the pipeline."""
    _stage(name).observe(seconds)


def issuance(protocol: str, profile: str, outcome: str) -> None:
    """One enrollment request by how it ended."""
    telemetry.ISSUANCE.labels(protocol, profile, outcome).inc()


def revocation(reason: str, outcome: str) -> None:
    """One revocation by how it ended."""
    telemetry.REVOCATIONS.labels(reason, outcome).inc()


def crl(published: Crl) -> None:
    """The CRL that stands."""
    telemetry.CRL_NUMBER.labels(published.issuer).set(published.number)
    telemetry.CRL_PUBLISHED_TIME.labels(published.issuer).set(published.this_update.timestamp())
    telemetry.CRL_NEXT_UPDATE_TIME.labels(published.issuer).set(published.next_update.timestamp())


def ocsp(_issuer: str, outcome: str) -> None:
    """One OCSP answer."""
    telemetry.OCSP_ANSWERS.labels(outcome).inc()


def token(operation: str, outcome: str, seconds: float) -> None:
    """One operation of the token."""
    _token_seconds(operation).observe(seconds)
    _token_operations(operation, outcome).inc()


def token_up(*, up: bool) -> None:
    """Whether the token answered the last probe."""
    telemetry.TOKEN_UP.set(1 if up else 0)


def audit(lag_seconds: float, size: int) -> None:
    """How far the tree of the audit log is behind, and how large it is."""
    telemetry.AUDIT_LAG_SECONDS.set(lag_seconds)
    telemetry.AUDIT_TREE_SIZE.set(size)


def syslog(outcome: str) -> None:
    """One attempt to copy a checkpoint to syslog."""
    telemetry.AUDIT_SYSLOG.labels(outcome).inc()


def validation(kind: str, outcome: str) -> None:
    """One challenge validation."""
    telemetry.ACME_VALIDATIONS.labels(kind, outcome).inc()


def acme_limit(rule: str) -> None:
    """One request that an ACME client was refused for a limit."""
    telemetry.ACME_LIMITED.labels(rule).inc()


def acme_caa(mode: str, outcome: str) -> None:
    """One check of an order's CAA records."""
    telemetry.ACME_CAA.labels(mode, outcome).inc()


def database(operation: str, seconds: float, units: int) -> None:
    """What the database's writer did: `ca_server.store.database.Observer`."""
    if operation == "write":
        telemetry.DB_COMMIT_SECONDS.observe(seconds)
        telemetry.DB_COMMIT_UNITS.observe(units)
        telemetry.DB_UP.set(1)
    elif operation == "waiting":
        telemetry.DB_WAITING.set(units)
    elif operation == "retry":
        telemetry.DB_RETRIES.inc(units)
    elif operation == "refused":
        telemetry.DB_REFUSED.inc(units)
        telemetry.DB_UP.set(0)
