"""What `ca-server doctor` looks at."""

import os
import shutil
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from ca_server.bootstrap.operator import is_running
from ca_server.bootstrap.stores import Stores, database_url, open_stores
from ca_server.bootstrap.token import LOG_LABEL, open_token
from ca_server.bootstrap.users import become_core, resolve_users
from ca_server.core.ports import KeyStore, Ping
from ca_server.core.responders import PROFILE
from ca_server.domain.certificates import IssuerKind
from ca_server.domain.enrollment import Protocol
from ca_server.domain.errors import CaError, ConfigurationError
from ca_server.rpc.admin import RpcAdminPort
from ca_server.settings import Home, Settings
from ca_server.store.migrate import schema_state

_CLOCK_STEP = timedelta(minutes=5)


class Verdict(StrEnum):
    """How a check ended."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    found: str


async def check_up(home: Home, settings: Settings, *, minimum_free: int) -> list[Check]:
    """Look at everything; what can't be looked at is a finding, not an exception."""
    checks = [*_permissions(home), _disk(home, minimum_free), await _server(home)]
    checks.append(await _schema(home, settings))
    try:
        async with open_stores(home, settings) as stores:
            checks.append(await _clock(stores))
            checks += [check async for check in _crls(stores)]
            checks += [check async for check in _responders(stores)]
            checks += await _token(home, settings, stores)
    except (CaError, ConfigurationError) as error:
        checks.append(Check("database", Verdict.BAD, str(error)))
    return checks


def _permissions(home: Home) -> list[Check]:
    """The core's part of the home and the PIN are closed to everyone else; the TLS key too."""
    checks = []
    for path in (home.core, home.pin_file, home.tls, *home.tls.glob("*.pem")):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            if path != home.pin_file:
                checks.append(Check(f"permissions of {path.name}", Verdict.BAD, f"{path} is missing"))
            continue
        except PermissionError:
            checks.append(Check(f"permissions of {path.name}", Verdict.WARNING, "not visible to this user"))
            continue
        verdict = Verdict.BAD if mode & 0o077 else Verdict.GOOD
        remedy = f"; chmod {0o700 if path.is_dir() else 0o600:o} {path}" if mode & 0o077 else ""
        checks.append(Check(f"permissions of {path.name}", verdict, f"{mode:04o}{remedy}"))
    return checks


def _disk(home: Home, minimum: int) -> Check:
    free = shutil.disk_usage(home.path).free
    verdict = Verdict.BAD if free < minimum else Verdict.GOOD
    return Check("disk", verdict, f"{free // 2**20} MiB free at {home.path}")


async def _server(home: Home) -> Check:
    try:
        if not is_running(home):
            return Check("server", Verdict.WARNING, "not running")
        port = RpcAdminPort.at(home.admin_socket)
        try:
            health = await port.ping(Ping())
        finally:
            await port.close()
    except (CaError, OSError) as error:
        return Check("server", Verdict.BAD, str(error))
    if health.problems:
        return Check("server", Verdict.BAD, "; ".join(health.problems))
    return Check("server", Verdict.GOOD, f"ready; audit log {health.audit_lag_seconds:.1f} s behind")


async def _schema(home: Home, settings: Settings) -> Check:
    try:
        started = time.perf_counter()
        state = await schema_state(database_url(home, settings))
        took = (time.perf_counter() - started) * 1000
    except (CaError, ConfigurationError) as error:
        return Check("database", Verdict.BAD, str(error))
    if not state.is_current:
        return Check("database", Verdict.BAD, f"schema {state.current}, wanted {state.head}; start the server once")
    return Check("database", Verdict.GOOD, f"schema {state.current}, answered in {took:.0f} ms")


async def _clock(stores: Stores) -> Check:
    """A clock that went back shows as a last checkpoint from the future."""
    now = datetime.now(UTC)
    latest = await stores.audit.latest_checkpoint()
    if latest is not None and latest[0].created_at > now + _CLOCK_STEP:
        return Check("clock", Verdict.BAD, f"it is {now:%Y-%m-%d %H:%M}Z, but the log has a checkpoint of later")
    return Check("clock", Verdict.GOOD, f"{now:%Y-%m-%d %H:%M:%S}Z")


async def _crls(stores: Stores) -> AsyncIterator[Check]:
    now = datetime.now(UTC)
    for issuer in await stores.issuers.issuers():
        crl = await stores.revocation.latest_crl(issuer.name, issuer.key.id)
        name = f"crl of {issuer.name}"
        if crl is None:
            yield Check(name, Verdict.BAD, "none was published; ca-server crl publish")
        elif crl.next_update <= now:
            yield Check(name, Verdict.BAD, f"number {crl.number} expired at {crl.next_update:%Y-%m-%d %H:%M}Z")
        elif now - crl.this_update > (crl.next_update - crl.this_update) * 2 / 3:
            yield Check(name, Verdict.WARNING, f"number {crl.number} is overdue for renewal")
        else:
            yield Check(name, Verdict.GOOD, f"number {crl.number} until {crl.next_update:%Y-%m-%d %H:%M}Z")


async def _responders(stores: Stores) -> AsyncIterator[Check]:
    now = datetime.now(UTC)
    for issuer in await stores.issuers.issuers():
        if issuer.kind is not IssuerKind.ISSUING:
            continue
        found = await stores.issuance.certificates_of(Protocol.INTERNAL.value, f"{PROFILE}:{issuer.name}", now)
        name = f"ocsp responder of {issuer.name}"
        if not found:
            yield Check(name, Verdict.BAD, "there is no valid responder certificate; the running server makes one")
        else:
            yield Check(name, Verdict.GOOD, f"certificate until {found[0].not_after:%Y-%m-%d %H:%M}Z")


async def _token(home: Home, settings: Settings, stores: Stores) -> list[Check]:
    """Log in, as the core's user, and look for every key that is needed."""
    become_core(resolve_users(settings.processes, str(home.configuration)))
    if not os.access(home.core, os.X_OK):
        return [Check("token", Verdict.WARNING, "not visible to this user")]
    try:
        keys: KeyStore = await open_token(home, settings)
    except (CaError, ConfigurationError) as error:
        return [Check("token", Verdict.BAD, str(error))]
    try:
        wanted = [LOG_LABEL, *(issuer.key.label for issuer in await stores.issuers.issuers())]
        missing = sorted(set(wanted) - set(await keys.labels()))
    except CaError as error:
        return [Check("token", Verdict.BAD, error.detail)]
    finally:
        await keys.close()
    if missing:
        return [Check("token", Verdict.BAD, f"keys are missing: {', '.join(missing)}")]
    return [Check("token", Verdict.GOOD, f"{settings.token.label}: {len(wanted)} keys found")]
