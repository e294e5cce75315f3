"""Checks of what the database says: schema, clock, the log's anchor, CRLs, responder certificates."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ca_server.bootstrap.checkup.model import Check, bad, good, warning
from ca_server.bootstrap.logkey import read_log_keys
from ca_server.bootstrap.stores import Stores, database_roles, database_url
from ca_server.core.audit import check_anchor
from ca_server.core.responders import PROFILE
from ca_server.domain.certificates import CertificateRecord, IssuerKind
from ca_server.domain.enrollment import Protocol
from ca_server.domain.errors import CaError, ConfigurationError
from ca_server.settings import Home, Settings
from ca_server.store.anchor import FileAnchor
from ca_server.store.migrate import schema_state
from ca_server.store.roles import excess

_CLOCK_STEP = timedelta(minutes=5)
_MOST_TOLD = 5


async def schema(home: Home, settings: Settings) -> Check:
    """The database answers, and no migration is missing."""
    started = time.perf_counter()
    try:
        state = await schema_state(database_url(home, settings))
    except (CaError, ConfigurationError) as error:
        return bad("database", str(error))
    took = (time.perf_counter() - started) * 1000
    if not state.is_current:
        return bad("database", f"schema {state.current}, wanted {state.head}; start the server once")
    return good("database", f"schema {state.current}, answered in {took:.0f} ms")


async def roles(settings: Settings, stores: Stores) -> AsyncIterator[Check]:
    """On PostgreSQL core and fronts have no more rights than they need."""
    named = database_roles(settings)
    if named is None:
        return
    name, found = "database roles", []
    if named.core == named.owner:
        found.append(f"the core owns the tables as {named.core}")
    if named.front == named.core:
        found.append(f"fronts have the core's role {named.front}")
    found += await stores.database.read(lambda connection: excess(connection, named))
    if found:
        remedy = "see ca-server db roles --help" if named.core in {named.owner, named.front} else "ca-server db migrate"
        yield warning(name, f"{'; '.join(found[:_MOST_TOLD])}; {remedy}")
    else:
        yield good(name, f"owner {named.owner}, core {named.core}, fronts {named.front}")


async def clock(stores: Stores) -> Check:
    """A clock that went back shows as a last checkpoint, or a CRL, from the future."""
    now = datetime.now(UTC)
    latest = await stores.audit.latest_checkpoint()
    times = [] if latest is None else [latest[0].created_at]
    for issuer in await stores.issuers.issuers():
        crl = await stores.revocation.latest_crl(issuer.name, issuer.key.id)
        times += [] if crl is None else [crl.this_update]
    newest = max(times, default=now)
    if newest > now + _CLOCK_STEP:
        return bad(
            "clock", f"it is {now:%Y-%m-%d %H:%M}Z, but something was signed at {newest:%Y-%m-%d %H:%M}Z; set the clock"
        )
    return good("clock", f"{now:%Y-%m-%d %H:%M:%S}Z")


async def anchor(home: Home, settings: Settings, stores: Stores) -> Check:
    """The database extends what was written outside of it. `audit verify` looks at the whole log."""
    path = Path(settings.audit.anchor) if settings.audit.anchor else home.anchor
    name = "audit log"
    try:
        keys = read_log_keys(home.log_key)
        mismatch = await check_anchor(stores.audit, FileAnchor(path), keys[-1], required=True)
    except CaError as error:
        if isinstance(error.__cause__, PermissionError):
            return warning(name, "the anchor is not visible to this user; run as root")
        return bad(name, error.detail)
    except ConfigurationError as error:
        return bad(name, str(error))
    if mismatch is not None:
        return bad(name, f"{mismatch}; restore the newer database, or see ca-server audit accept-anchor --help")
    latest = await stores.audit.latest_checkpoint()
    return good(name, f"extends its anchor, {latest[0].size if latest else 0} leaves")


async def crls(stores: Stores) -> AsyncIterator[Check]:
    """Every issuer has a CRL that has not expired."""
    now = datetime.now(UTC)
    for issuer in await stores.issuers.issuers():
        crl = await stores.revocation.latest_crl(issuer.name, issuer.key.id)
        name, remedy = f"crl of {issuer.name}", f"ca-server crl publish {issuer.name}"
        if crl is None:
            yield bad(name, f"none was published; {remedy}")
        elif crl.next_update <= now:
            yield bad(name, f"number {crl.number} expired at {crl.next_update:%Y-%m-%d %H:%M}Z; {remedy}")
        elif now - crl.this_update > (crl.next_update - crl.this_update) * 2 / 3:
            yield warning(name, f"number {crl.number} is overdue for renewal; {remedy}")
        else:
            yield good(name, f"number {crl.number} until {crl.next_update:%Y-%m-%d %H:%M}Z")


async def valid_responders(stores: Stores, issuer: str) -> tuple[CertificateRecord, ...]:
    """The valid responder certificates of an issuer, newest first."""
    now = datetime.now(UTC)
    return await stores.issuance.certificates_of(Protocol.INTERNAL.value, f"{PROFILE}:{issuer}", now)


async def responders(stores: Stores) -> AsyncIterator[Check]:
    """Every issuing CA has an OCSP responder certificate; a running server renews it after two thirds of its life."""
    now = datetime.now(UTC)
    for issuer in await stores.issuers.issuers():
        if issuer.kind is not IssuerKind.ISSUING:
            continue
        found = await valid_responders(stores, issuer.name)
        name = f"ocsp responder of {issuer.name}"
        if not found:
            yield bad(name, "there is no valid responder certificate; the running server makes one")
            continue
        end = found[0].not_after
        if end - now < (end - found[0].not_before) / 4:
            yield warning(name, f"certificate until {end:%Y-%m-%d %H:%M}Z, overdue for renewal")
        else:
            yield good(name, f"certificate until {end:%Y-%m-%d %H:%M}Z")
