"""The core's pipeline for requests that are no news: retries, attempts that ended midway, keys blocked meanwhile."""

from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.domain.certificates import BlockedKey
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.issuance import SqlIssuanceStore


@pytest.fixture
async def request_of(world, csr):
    """A request as the front sent it, for which a certificate was issued; `another` transaction is new to the core."""

    async def made(name="a.test"):
        world.resolve(name)
        client = await world.client()
        await client.finalize(await client.ready(name), csr(name))
        return world.core.asked[-1]

    return made


@pytest.fixture
def elsewhere(world):
    """Puts a profile in force that allows none of the names."""

    async def put():
        profiles = {"default": world.bodies["default"].replace('["test"]', '["elsewhere"]')}
        await world.put_in_force(world.bodies | profiles)

    return put


async def states(world):
    return sorted(row[0] for row in await world.query("SELECT state FROM intents"))


async def test_a_retry_gets_what_stands_whatever_policy_says_by_now(world, request_of, elsewhere):
    request = await request_of()
    first = await world.core.issuance.issue(request)
    await elsewhere()
    assert await world.core.issuance.issue(request) == first
    assert await world.audit("issuance.refused") == []
    with pytest.raises(CaError) as refused:
        await world.core.issuance.issue(replace(request, transaction_key="new"))
    assert refused.value.kind is ErrorKind.REJECTED_IDENTIFIER
    assert len(await world.audit("issuance.refused")) == 1
    assert await states(world) == ["issued"]


async def test_a_retry_gets_what_stands_also_where_policy_allows_it(world, request_of):
    request = await request_of()
    first = await world.core.issuance.issue(request)
    assert await world.core.issuance.issue(request) == first
    assert await states(world) == ["issued"]
    assert await world.audit("issuance.refused") == []


async def test_another_csr_for_what_was_issued_is_a_conflict(world, request_of, csr):
    request = await request_of()
    with pytest.raises(CaError) as refused:
        await world.core.issuance.issue(replace(request, csr_der=csr("a.test")))
    assert refused.value.kind is ErrorKind.CONFLICT
    assert await states(world) == ["issued"]


async def test_an_attempt_that_ended_midway_is_settled_and_made_again(world, request_of, monkeypatch):
    """The store lost the second transaction, and the pipeline could not say so."""
    request = replace(await request_of(), transaction_key="midway")

    async def lost(*_arguments):
        raise CaError(ErrorKind.UNAVAILABLE, "the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(SqlIssuanceStore, "complete", lost)
        with pytest.raises(CaError, match="away"):
            await world.core.issuance.issue(request)
    assert await states(world) == ["issued", "reserved"]
    issued = await world.core.issuance.issue(request)
    assert await states(world) == ["abandoned", "issued", "issued"]
    assert await world.core.issuance.issue(request) == issued
    assert len(await world.audit("issuance.abandoned")) == 1
    assert await world.audit("issuance.refused") == []


async def test_a_key_that_is_blocked_by_the_time_of_its_reservation_is_refused(world, request_of):
    """Whatever the front looked at before: the list is read in the transaction that reserves."""
    request = replace(await request_of(), transaction_key="blocked")
    key = x509.load_der_x509_csr(request.csr_der).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    blocked = BlockedKey(sha256(spki).digest(), "leaked", datetime.now(UTC))
    await SqlIssuanceStore(world.database).block_spki(blocked, [])
    for _ in range(2):
        with pytest.raises(CaError) as refused:
            await world.core.issuance.issue(request)
        assert (refused.value.kind, refused.value.rule) == (ErrorKind.BAD_PUBLIC_KEY, "keys.blocklist")
    assert [event["rule"] for event in await world.audit("issuance.refused")] == ["keys.blocklist"] * 2
    assert await states(world) == ["issued"]
    assert await world.query("SELECT id FROM enrollments WHERE transaction_key = 'blocked'") == []
