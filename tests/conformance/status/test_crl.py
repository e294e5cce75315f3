"""What stands on a CRL, and when one is signed (RFC 5280 section 5): CRL facts 1, 3, 4, 7."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from ca_server.core import crl as core_crl
from ca_server.core.crl import CrlPublisher, CrlSchedule
from ca_server.core.der import children, whole
from ca_server.domain.certificates import RevocationReason
from ca_server.domain.errors import CaError, ErrorKind

Reason = RevocationReason
Until = Callable[[Callable[[], Any]], Any]


@asynccontextmanager
async def running(publisher: CrlPublisher) -> AsyncIterator[None]:
    task = asyncio.create_task(publisher.run())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def number(world: Any, issuer: str = "issuing") -> int:
    found: int = (await world.latest(issuer)).number
    return found


# --- The list ------------------------------------------------------------------------------------------------------


async def test_the_list_itself(world: Any) -> None:
    """Sections 5.1.2 and 5.2."""
    certificate = await world.issue()
    await world.revoke(certificate)
    await world.publish()
    stored = await world.latest()
    crl = x509.load_der_x509_crl(stored.der)
    issuer = world.issuer().certificate
    assert crl.issuer == issuer.subject
    assert (crl.last_update_utc, crl.next_update_utc) == (stored.this_update, stored.next_update)
    assert stored.next_update - stored.this_update == timedelta(days=7)
    assert {extension.oid._name: extension.critical for extension in crl.extensions} == {
        "authorityKeyIdentifier": False,
        "cRLNumber": False,
    }
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == stored.number
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    aki = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert (aki.key_identifier, aki.authority_cert_issuer) == (identifier, None)


def fields(crl: bytes) -> list[int]:
    """The tags of a list's TBSCertList."""
    tbs = x509.load_der_x509_crl(crl).tbs_certlist_bytes
    return [tag for tag, *_ in children(tbs, *whole(tbs, 0x30))]


async def test_an_empty_list_is_left_out(world: Any) -> None:
    """Section 5.1.2.6."""
    assert fields((await world.latest()).der) == [0x02, 0x30, 0x30, 0x17, 0x17, 0xA0]
    await world.revoke(await world.issue())
    await world.publish()
    assert fields((await world.latest()).der) == [0x02, 0x30, 0x30, 0x17, 0x17, 0x30, 0xA0]


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.REMOVE_FROM_CRL])
async def test_entries(world: Any, reason: Reason) -> None:
    """Section 5.3.1: reason 0 is left out."""
    certificate = await world.issue()
    before = world.clock().replace(microsecond=0)
    await world.revoke(certificate, reason)
    entry = (await world.publish())[certificate.serial_number]
    assert before <= entry.revocation_date_utc <= world.clock()
    shown = {extension.oid._name: extension for extension in entry.extensions}
    assert all(not extension.critical for extension in shown.values())
    if reason is Reason.UNSPECIFIED:
        assert shown == {}
    else:
        assert list(shown) == ["cRLReason"]
        assert shown["cRLReason"].value.reason.name == reason.name.lower()


async def test_invalidity_date(world: Any) -> None:
    """Section 5.3.2."""
    certificate = await world.issue()
    since = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    await world.revoke(certificate, Reason.KEY_COMPROMISE, invalidity_date=since)
    entry = (await world.publish())[certificate.serial_number]
    extension = entry.extensions.get_extension_for_class(x509.InvalidityDate)
    assert (extension.critical, extension.value.invalidity_date_utc) == (False, since)


async def test_each_issuer_lists_its_own(world: Any) -> None:
    here, there = await world.issue(), await world.issue("elsewhere")
    await world.revoke(here)
    await world.revoke(there, issuer="other")
    assert set(await world.publish()) == {here.serial_number}
    assert set(await world.publish("other")) == {there.serial_number}
    authority = world.issuer().certificate
    with pytest.raises(CaError, match="only an operator"):
        await world.revoke(authority, Reason.CESSATION_OF_OPERATION, issuer="root")
    await world.revoke_as_operator(authority, Reason.CESSATION_OF_OPERATION, "root")
    assert set(await world.publish("root")) == {authority.serial_number}


async def test_database_list_and_ocsp_agree(world: Any) -> None:
    """CRL fact 7."""
    certificates = {reason: await world.issue() for reason in Reason if reason is not Reason.REMOVE_FROM_CRL}
    good = await world.issue()
    for reason, certificate in certificates.items():
        await world.revoke(certificate, reason)
    listed = await world.publish()
    assert len(listed) == len(certificates)
    assert await world.ask(good.serial_number) == "GOOD"
    for certificate in certificates.values():
        single = await world.single(world.request(world.cert_id(certificate.serial_number)))
        entry = listed[certificate.serial_number]
        assert single.certificate_status is ocsp.OCSPCertStatus.REVOKED
        assert single.revocation_time_utc == entry.revocation_date_utc
        reasons = [extension.value.reason for extension in entry.extensions]
        assert reasons == ([] if single.revocation_reason is None else [single.revocation_reason])


# --- What may be said of a certificate, and changed ------------------------------------------------------------------


async def refused(world: Any, certificate: x509.Certificate, reason: Reason, **changes: Any) -> ErrorKind:
    denied = await world.audited("revocation.refused")
    with pytest.raises(CaError) as caught:
        await world.revoke(certificate, reason, **changes)
    assert await world.audited("revocation.refused") == denied + 1
    return caught.value.kind


async def test_hold_only_where_the_profile_allows_it(world: Any) -> None:
    certificate = await world.issue("no-hold")
    assert await refused(world, certificate, Reason.CERTIFICATE_HOLD) is ErrorKind.BAD_REVOCATION_REASON
    assert await world.publish() == {}
    await world.revoke(certificate, Reason.SUPERSEDED)


async def test_a_second_revocation_is_to_key_compromise_alone(world: Any) -> None:
    certificate = await world.issue()
    await world.revoke(certificate, Reason.SUPERSEDED)
    first = (await world.publish())[certificate.serial_number]
    for reason in (Reason.SUPERSEDED, Reason.UNSPECIFIED, Reason.CA_COMPROMISE, Reason.CERTIFICATE_HOLD):
        assert await refused(world, certificate, reason) is ErrorKind.ALREADY_REVOKED
    world.later = timedelta(hours=1)
    await world.revoke(certificate, Reason.KEY_COMPROMISE)
    second = (await world.publish())[certificate.serial_number]
    assert second.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.key_compromise
    assert second.revocation_date_utc == first.revocation_date_utc
    assert await refused(world, certificate, Reason.KEY_COMPROMISE) is ErrorKind.ALREADY_REVOKED


async def test_release_from_hold(world: Any) -> None:
    certificate = await world.issue()
    await world.revoke(certificate, Reason.CERTIFICATE_HOLD)
    assert set(await world.publish()) == {certificate.serial_number}
    # A front can't: removeFromCRL is no reason that a client may give (RFC 5280 section 5.3.1).
    assert await refused(world, certificate, Reason.REMOVE_FROM_CRL) is ErrorKind.BAD_REVOCATION_REASON
    with pytest.raises(CaError) as caught:
        await world.revoke(certificate, Reason.REMOVE_FROM_CRL, authenticated_by="operator")
    assert caught.value.kind is ErrorKind.UNAUTHORIZED
    await world.release(certificate)
    assert await world.publish() == {}
    await world.revoke(certificate, Reason.SUPERSEDED)
    assert set(await world.publish()) == {certificate.serial_number}


@pytest.mark.parametrize("standing", [None, Reason.SUPERSEDED, Reason.KEY_COMPROMISE])
async def test_only_a_hold_can_be_released(world: Any, standing: Reason | None) -> None:
    certificate = await world.issue()
    if standing is not None:
        await world.revoke(certificate, standing)
    with pytest.raises(CaError) as caught:
        await world.release(certificate)
    assert caught.value.kind is ErrorKind.BAD_REVOCATION_REASON
    assert len(await world.publish()) == (standing is not None)


async def test_a_hold_may_become_a_revocation(world: Any) -> None:
    certificate = await world.issue()
    await world.revoke(certificate, Reason.CERTIFICATE_HOLD)
    await world.revoke(certificate, Reason.AFFILIATION_CHANGED)
    entry = (await world.publish())[certificate.serial_number]
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.name == "affiliation_changed"


async def test_revoked_and_then_expired_is_on_one_list_more(world: Any) -> None:
    """Section 3.3."""
    certificate, lasting = await world.issue("brief"), await world.issue()
    for revoked in (certificate, lasting):
        await world.revoke(revoked)
    world.later = timedelta(days=3)
    both = {certificate.serial_number, lasting.serial_number}
    assert set(await world.publish()) == both
    assert set(await world.publish()) == {lasting.serial_number}


async def test_revoked_after_it_expired(world: Any) -> None:
    certificate = await world.issue("brief")
    world.later = timedelta(days=3)
    await world.publish()
    await world.revoke(certificate, Reason.KEY_COMPROMISE)
    assert set(await world.publish()) == {certificate.serial_number}
    assert await world.publish() == {}


# --- Numbers -------------------------------------------------------------------------------------------------------


async def test_numbers_grow_where_publishers_race(world: Any) -> None:
    """Section 5.2.3, over nodes, restarts and clocks that step back."""
    publishers = [
        world.make_publisher(clock=lambda back=back: world.clock() - back)
        for back in (timedelta(), timedelta(hours=1), timedelta(days=400))
    ]
    first = await number(world)
    returned = await asyncio.gather(*(publisher.publish("issuing") for publisher in publishers for _ in range(6)))
    stored = [
        row[0]
        for row in await world.query(
            f"SELECT number FROM crls WHERE issuer_key_id = {world.issuer().issuer.key.id} ORDER BY id"
        )
    ]
    assert stored == sorted(set(stored))
    assert stored[0] == first
    assert await number(world) == first + 18
    assert {crl.number for crl in returned} <= set(stored)
    assert await world.audited("crl.reserved") == 18 + 3
    assert await world.audited("crl.published") == len(stored) + 2


async def test_a_list_that_comes_too_late_is_dropped(world: Any) -> None:
    """What `publish` returns is what stands, though another publisher was faster with a higher number."""
    sign = type(world.issuer().key).sign
    rival = world.make_publisher()
    faster: list[Any] = []

    async def slow(key: Any, data: bytes) -> bytes:
        if not faster:
            faster.append(None)
            faster[0] = await rival.publish("issuing")
        signature: bytes = await sign(key, data)
        return signature

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(world.issuer().key), "sign", slow)
        returned = await world.publisher.publish("issuing")
    assert returned == faster[0] == await world.latest()
    assert x509.load_der_x509_crl(returned.der).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 3


# --- When ----------------------------------------------------------------------------------------------------------


async def test_published_before_the_first_certificate(world: Any) -> None:
    for issuer in ("root", "issuing", "other"):
        assert (await number(world, issuer), await world.listed(issuer)) == (1, {})
    assert await world.query("SELECT serial FROM certificates WHERE profile = 'default'") == []


async def test_published_after_revocations_together(world: Any, until: Until) -> None:
    certificates = [await world.issue() for _ in range(5)]
    for certificate in certificates:
        await world.revoke(certificate)

    async def shown() -> bool:
        return len(await world.listed()) == 5

    async with running(world.publisher):
        await until(shown)
    assert await number(world) == 2
    assert await number(world, "other") == 1


async def test_published_after_the_next_revocation_too(world: Any, until: Until) -> None:
    async with running(world.publisher):
        for count in (1, 2, 3):
            await world.revoke(await world.issue())

            async def shown(count: int = count) -> bool:
                return len(await world.listed()) == count

            await until(shown)


async def test_a_token_that_comes_back(world: Any, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_crl, "RETRY_SECONDS", 0.01)
    await world.revoke(await world.issue())
    world.keys.away = True

    async def tried() -> bool:
        return await world.audited("crl.reserved") >= 5

    async def shown() -> bool:
        return len(await world.listed()) == 1

    async with running(world.publisher):
        await until(tried)
        assert await number(world) == 1
        world.keys.away = False
        await until(shown)


@pytest.mark.parametrize(
    ("schedule", "due"),
    [
        (CrlSchedule(timedelta(days=8), timedelta(days=6)), timedelta(days=4)),
        (CrlSchedule(timedelta(days=8), timedelta(days=1)), timedelta(days=1)),
    ],
)
async def test_published_by_schedule(world: Any, schedule: CrlSchedule, due: timedelta) -> None:
    """At half of its life at the latest."""
    publisher = world.make_publisher(schedules=dict.fromkeys(("root", "issuing", "other"), schedule))
    world.later = due - timedelta(minutes=1)
    await publisher.refresh_due()
    assert await number(world) == 1
    world.later = due
    await publisher.refresh_due()
    assert [await number(world, issuer) for issuer in ("root", "issuing", "other")] == [2, 2, 2]
    await publisher.refresh_due()
    assert await number(world) == 2


@pytest.mark.parametrize("change", ["revoked", "held", "released", "key-compromise"])
async def test_what_a_process_that_died_was_about_to_publish(world: Any, change: str) -> None:
    """Whoever looks next finds it, at its start or in its round, on whatever node; and publishes once."""
    certificate = await world.issue()
    if change == "released":
        await world.revoke(certificate, Reason.CERTIFICATE_HOLD)
        await world.publish()
        await world.release(certificate)
    elif change == "key-compromise":
        await world.revoke(certificate, Reason.SUPERSEDED)
        await world.publish()
        await world.revoke(certificate, Reason.KEY_COMPROMISE)
    else:
        await world.revoke(certificate, Reason.CERTIFICATE_HOLD if change == "held" else Reason.UNSPECIFIED)
    before = await number(world)
    survivor = world.make_publisher()
    await survivor.refresh_due()
    assert await number(world) == before + 1
    listed = await world.listed()
    assert (certificate.serial_number in listed) is (change != "released")
    if change == "key-compromise":
        (extension,) = listed[certificate.serial_number].extensions
        assert extension.value.reason is x509.ReasonFlags.key_compromise
    await survivor.refresh_due()
    assert await number(world) == before + 1
    assert await number(world, "other") == 1


async def test_died_between_drawing_and_publishing(world: Any) -> None:
    certificate = await world.issue()
    await world.stores.reserve_crl("issuing", world.issuer().issuer.key.id, 0, [])
    await world.revoke(certificate)
    await world.make_publisher().refresh_due()
    assert set(await world.listed()) == {certificate.serial_number}
    assert await number(world) == 3


async def test_one_issuer_that_fails_keeps_no_other_from_its_list(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = world.publisher.publish

    async def failing(name: str) -> Any:
        if name == "root":
            raise CaError(ErrorKind.UNAVAILABLE, "the root's key is away")
        return await publish(name)

    monkeypatch.setattr(world.publisher, "publish", failing)
    world.later = timedelta(days=6)
    with pytest.raises(CaError, match="the root's key is away"):
        await world.publisher.refresh_due()
    assert [await number(world, issuer) for issuer in ("root", "issuing", "other")] == [1, 2, 2]
    assert await world.publisher.stale() == ()
    world.later = timedelta(days=8)
    assert await world.publisher.stale() == ("root",)
