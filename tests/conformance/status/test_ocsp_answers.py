"""What OCSP says of a serial, and for how long (RFC 6960 section 2.2, RFC 9919): status facts 2, 3, 4, 8, 9."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from ca_server.core.ports import OcspAnswer, OcspQuery
from ca_server.domain.certificates import RevocationReason
from ca_server.domain.errors import CaError, ErrorKind

EXTENDED_REVOKE = x509.ObjectIdentifier("1.3.6.1.5.5.7.48.1.9")
Reason = RevocationReason


def extended(response: ocsp.OCSPResponse) -> bool:
    return any(extension.oid == EXTENDED_REVOKE for extension in response.extensions)


# --- Statuses ------------------------------------------------------------------------------------------------------


async def test_good_then_revoked(world: Any) -> None:
    certificate = await world.issue()
    der = world.request(world.cert_id(certificate.serial_number))
    good = await world.single(der)
    assert (good.certificate_status, good.revocation_time_utc) == (ocsp.OCSPCertStatus.GOOD, None)
    before = world.clock().replace(microsecond=0)
    await world.revoke(certificate, Reason.KEY_COMPROMISE)
    revoked = await world.single(der)
    assert revoked.certificate_status is ocsp.OCSPCertStatus.REVOKED
    assert revoked.revocation_reason is x509.ReasonFlags.key_compromise
    assert before <= revoked.revocation_time_utc <= world.clock()
    assert not extended((await world.post(der)).ocsp)


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.REMOVE_FROM_CRL])
async def test_every_reason(world: Any, reason: Reason) -> None:
    """Reason 0 is left out (RFC 5280 section 5.3.1)."""
    certificate = await world.issue()
    await world.revoke(certificate, reason)
    single = await world.single(world.request(world.cert_id(certificate.serial_number)))
    shown = single.revocation_reason
    if reason is Reason.UNSPECIFIED:
        assert shown is None
    else:
        assert shown is not None
        assert shown.name == reason.name.lower()


async def test_good_again_after_a_hold(world: Any) -> None:
    certificate = await world.issue()
    await world.revoke(certificate, Reason.CERTIFICATE_HOLD)
    assert await world.ask(certificate.serial_number) == "REVOKED"
    await world.release(certificate)
    assert await world.ask(certificate.serial_number) == "GOOD"


@pytest.mark.parametrize(
    ("setting", "outcome", "never_issued"),
    [("unknown", "UNKNOWN", False), ("revoked", "REVOKED", True), ("unauthorized", "UNAUTHORIZED", False)],
)
async def test_never_issued_is_never_good(world: Any, setting: Any, outcome: str, never_issued: bool) -> None:
    await world.serve(setting)
    answer = await world.post(world.request(world.cert_id(0x1234)))
    assert answer.outcome == outcome
    assert answer.headers["Cache-Control"] == "no-store"
    if outcome != "UNAUTHORIZED":
        assert extended(answer.ocsp) is never_issued
    assert world.observed == [("issuing", "unknown")]
    await world.responder.record_counts(world.audit, world.events())
    ((leaf,),) = await world.query("SELECT leaf FROM audit_events WHERE type = 'ocsp.answered'")
    assert b'"unknown":"1"' in bytes(leaf)


@pytest.mark.parametrize("setting", ["unknown", "revoked", "unauthorized"])
async def test_reserved_but_not_stored(world: Any, setting: Any) -> None:
    """Fact 3: an authoritative answer, not the one for strangers."""
    await world.serve(setting)
    await world.reserve(0x1234)
    answer = await world.post(world.request(world.cert_id(0x1234)))
    assert answer.outcome == "UNKNOWN"
    assert answer.headers["Cache-Control"] == "no-store"
    assert world.observed == [("issuing", "reserved")]


@pytest.mark.parametrize("setting", ["unknown", "revoked", "unauthorized"])
async def test_abandoned(world: Any, setting: Any) -> None:
    """Section 2.2: revoked, on hold, since 1970, with extended-revoke."""
    await world.serve(setting)
    intent = await world.reserve(0x1234)
    await world.certificates.abandon(intent, "test", [])
    answer = await world.post(world.request(world.cert_id(0x1234)))
    (single,) = answer.ocsp.responses
    assert single.certificate_status is ocsp.OCSPCertStatus.REVOKED
    assert single.revocation_reason is x509.ReasonFlags.certificate_hold
    assert single.revocation_time_utc == datetime(1970, 1, 1, tzinfo=UTC)
    assert extended(answer.ocsp)
    assert world.observed == [("issuing", "abandoned")]


async def test_a_signing_that_fails_leaves_a_serial_that_is_abandoned(world: Any) -> None:
    world.keys.away = True
    with pytest.raises(CaError):
        await world.issue()
    world.keys.away = False
    ((serial,),) = await world.query("SELECT serial FROM intents WHERE state = 'abandoned'")
    assert await world.ask(int(serial, 16)) == "REVOKED"


async def test_one_unknown_serial_of_several(world: Any) -> None:
    await world.serve("unauthorized")
    certificate = await world.issue()
    ids = world.cert_id(certificate.serial_number), world.cert_id(0x1234)
    assert (await world.post(world.request(*ids))).outcome == "UNAUTHORIZED"
    await world.serve("revoked")
    answer = await world.post(world.request(*ids))
    assert answer.outcome == "GOOD REVOKED"
    assert extended(answer.ocsp)


async def test_an_expired_certificate_keeps_its_status(world: Any) -> None:
    certificate = await world.issue("brief")
    await world.revoke(certificate)
    world.later = timedelta(days=5)
    assert await world.ask(certificate.serial_number) == "REVOKED"


# --- Fact 8: times and caches ---------------------------------------------------------------------------------------


async def answer_of(world: Any) -> Any:
    certificate = await world.issue()
    return await world.get(world.request(world.cert_id(certificate.serial_number)))


async def test_cache_headers(world: Any) -> None:
    """RFC 9919 section 6."""
    answer = await answer_of(world)
    (single,) = answer.ocsp.responses
    assert answer.headers["Cache-Control"] == "max-age=300, public, no-transform, must-revalidate"
    assert parsedate_to_datetime(answer.headers["Expires"]) == single.next_update_utc
    assert parsedate_to_datetime(answer.headers["Last-Modified"]) == single.this_update_utc
    assert answer.headers["ETag"] == f'"{sha256(answer.body).hexdigest()}"'
    assert single.next_update_utc - single.this_update_utc == timedelta(hours=1)
    assert answer.ocsp.produced_at_utc == single.this_update_utc


@pytest.mark.parametrize(
    ("front_later", "left"),
    [
        (timedelta(minutes=59, seconds=30), 30),
        (timedelta(hours=2), 0),
        (timedelta(days=-400), 300),
    ],
)
async def test_max_age_is_below_what_is_left(world: Any, front_later: timedelta, left: int) -> None:
    world.front_later = front_later
    assert (await answer_of(world)).max_age in range(max(0, left - 5), left + 1)


async def test_max_age_of_what_dies_soon(world: Any) -> None:
    """Under a front's clock that is far behind, too: the answer never lived longer than thirty seconds."""
    responder = world.responders.get("issuing").certificate
    world.later = responder.not_valid_after_utc - datetime.now(UTC) - timedelta(seconds=30)
    for world.front_later in (timedelta(), timedelta(days=-400)):
        answer = await answer_of(world)
        (single,) = answer.ocsp.responses
        assert answer.max_age < (single.next_update_utc - single.this_update_utc).total_seconds() <= 30


async def test_an_answer_is_as_old_as_the_question(world: Any) -> None:
    """Fact 9: signed when asked, from the database: there is nothing stale that could be served."""
    certificate = await world.issue()
    der = world.request(world.cert_id(certificate.serial_number))
    first = await world.single(der)
    world.later = timedelta(hours=3)
    second = await world.single(der)
    assert second.this_update_utc - first.this_update_utc >= timedelta(hours=3)
    assert second.next_update_utc > world.clock()


# --- Fact 9: away --------------------------------------------------------------------------------------------------


async def test_the_token_is_away(world: Any) -> None:
    certificate = await world.issue()
    der = world.request(world.cert_id(certificate.serial_number))
    world.keys.away = True
    for answer in (await world.post(der), await world.get(der)):
        assert answer.outcome == "TRY_LATER"
    assert world.observed[-1] == ("issuing", "try-later")
    world.keys.away = False
    assert (await world.post(der)).outcome == "GOOD"


async def test_the_core_is_away(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_query: OcspQuery) -> OcspAnswer:
        raise CaError(ErrorKind.UNAVAILABLE, "the core is away")

    monkeypatch.setattr(world.core, "respond_ocsp", away)
    assert (await world.post(world.request(world.cert_id(5)))).outcome == "TRY_LATER"


async def test_the_database_is_away(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> None:
        raise CaError(ErrorKind.UNAVAILABLE, "the database is away")

    monkeypatch.setattr(world.certificates, "serial_status", away)
    assert await world.ask(5) == "TRY_LATER"


async def test_a_ca_that_is_read_only_signs_nothing(world: Any) -> None:
    """A restored database could un-revoke: incident table."""
    world.gate.reason = "the anchor is ahead"
    uses = dict(world.keys.uses)
    assert await world.ask(5) == "TRY_LATER"
    assert dict(world.keys.uses) == uses
