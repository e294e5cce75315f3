"""RFC 8555 sections 7.4.2 and 7.6, and that a finalize gives exactly one certificate."""

import asyncio
import base64
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from protocols.acme.issuing import enrollment_request, evidence_of


def encoded(certificate, *, padding=False):
    text = base64.urlsafe_b64encode(certificate.public_bytes(Encoding.DER)).decode()
    return text if padding else text.rstrip("=")


async def revoke(client, certificate, **members):
    return await client.post(f"{client.base}/revoke-cert", {"certificate": encoded(certificate)} | members)


async def test_fact_22_the_chain(world, csr):
    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    url = order.headers["Location"].replace("/order/", "/certificate/")
    assert (await client.post(url)).status in {403, 404}, "not finalized"
    done = await client.finalize(order, csr("a.test"))
    assert done.json["certificate"] == url
    answer = await client.post(url)
    assert answer.headers["Content-Type"] == "application/pem-certificate-chain"
    leaf, issuing = x509.load_pem_x509_certificates(answer.body)
    leaf.verify_directly_issued_by(issuing)
    assert issuing.subject != issuing.issuer, "the root is left out"
    assert (await (await world.client()).post(url)).status in {403, 404}, "another account's"


async def test_fact_23_by_the_account(world):
    world.resolve("a.test")
    client = await world.client()
    leaf, _ = await client.issue("a.test")
    answer = await revoke(client, leaf, reason=4)
    assert (answer.status, answer.body) == (200, b"")
    again = await revoke(client, leaf, reason=4)
    assert (again.status, again.problem) == (400, "alreadyRevoked")
    (event,) = await world.audit("certificate.revoked")
    assert (event["reason"], event["authenticated_by"]) == ("superseded", "account")


async def test_fact_23_by_the_certificates_key(world, csr, new_client):
    world.resolve("a.test")
    client = await world.client()
    key = ec.generate_private_key(ec.SECP256R1())
    leaf, _ = await client.issue("a.test", csr=csr("a.test", key=key))
    stranger = new_client(world)
    refused = await revoke(stranger, leaf)
    assert (refused.status, refused.problem) == (403, "unauthorized")
    stranger.key.private = key
    point = key.public_key().public_numbers()
    for name in ("x", "y"):
        octets = getattr(point, name).to_bytes(32, "big")
        stranger.key.jwk[name] = base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
    assert (await revoke(stranger, leaf, reason=1)).status == 200
    (event,) = await world.audit("certificate.revoked")
    assert event["authenticated_by"] == "certificate-key"


async def test_fact_23_by_authorizations_for_every_name(world):
    world.resolve("a.test", "b.test")
    client = await world.client()
    leaf, _ = await client.issue("a.test", "b.test")
    wildcard = (await client.issue("*.a.test", kind="dns-01"))[0]
    other = await world.client()
    for names in ((), ("a.test",)):
        if names:
            await other.ready(*names)
        refused = await revoke(other, leaf)
        assert (refused.status, refused.problem) == (403, "unauthorized")
    assert (await revoke(other, wildcard)).problem == "unauthorized"
    await other.ready("b.test")
    assert (await revoke(other, leaf)).status == 200
    refusals = await world.audit("revocation.refused")
    assert len(refusals) == 3
    assert all(event["rule"] for event in refusals)


COVERED = {
    "a wildcard by itself": ("*.a.test", "*.a.test", 200),
    "a wildcard by the name below it": ("*.a.test", "a.test", 403),
    "a name by the wildcard above it": ("www.a.test", "*.a.test", 403),
    "an address": ("127.0.0.1", "127.0.0.1", 200),
    "an address and a name by the address": ("127.0.0.1 a.test", "127.0.0.1", 403),
}


@pytest.mark.parametrize("case", COVERED)
async def test_fact_23_authorizations_cover_names_as_they_are_written(world, case):
    certified, authorized, status = COVERED[case]
    world.resolve("a.test", "www.a.test")
    client, other = await world.client(), await world.client()
    leaf, _ = await client.issue(*certified.split(), kind="dns-01" if "*" in certified else "http-01")
    await other.ready(authorized, kind="dns-01" if "*" in authorized else "http-01")
    assert (await revoke(other, leaf)).status == status
    assert [event["authenticated_by"] for event in await world.audit("certificate.revoked")] == (
        ["authorizations"] if status == 200 else []
    )


@pytest.mark.parametrize("lost", ["deactivated", "expired"])
async def test_fact_23_authorizations_that_are_not_valid_any_more_revoke_nothing(world, lost):
    world.resolve("a.test")
    client, other = await world.client(), await world.client()
    leaf, _ = await client.issue("a.test")
    order = await other.ready("a.test")
    (authorization,) = order.json["authorizations"]
    if lost == "deactivated":
        assert (await other.post(authorization, {"status": "deactivated"})).status == 200
    else:
        await world.execute("UPDATE acme_authorizations SET expires_at = 1")
    refused = await revoke(other, leaf)
    assert (refused.status, refused.problem) == (403, "unauthorized")


@pytest.mark.parametrize(
    ("reason", "status"),
    [(None, 200), (0, 200), (10, 200), (6, 400), (7, 400), (8, 400), (11, 400), (-1, 400), (2**70, 400), ("4", 400)],
)
async def test_fact_23_reasons(world, reason, status):
    world.resolve("a.test")
    client = await world.client()
    leaf, _ = await client.issue("a.test")
    answer = await revoke(client, leaf, **({} if reason is None else {"reason": reason}))
    assert answer.status == status
    if status == 400 and isinstance(reason, int) and reason < 2**63:
        assert answer.problem == "badRevocationReason"


async def test_fact_23_a_hold_where_the_profile_allows_it(world):
    world.resolve("a.test")
    client = await world.client(profile="holdable")
    leaf, _ = await client.issue("a.test")
    assert (await revoke(client, leaf, reason=6)).status == 200
    (event,) = await world.audit("certificate.revoked")
    assert event["reason"] == "certificate-hold"
    assert (await revoke(client, leaf, reason=6)).problem == "alreadyRevoked"


async def test_a_revocation_whose_answer_was_lost_is_done_when_it_is_sent_again(world):
    world.resolve("a.test")
    client = await world.client()
    leaf, _ = await client.issue("a.test")
    once = world.core.revoke

    async def twice(request):
        await once(request)
        return await once(request)

    world.core.revoke = twice
    assert (await revoke(client, leaf, reason=4)).status == 200
    assert len(await world.audit("certificate.revoked")) == 1
    assert (await revoke(client, leaf, reason=4)).problem == "alreadyRevoked"


async def test_certificates_that_are_not_ours(world, csr):
    world.resolve("a.test")
    client = await world.client()
    leaf, _ = await client.issue("a.test")
    der = bytearray(leaf.public_bytes(Encoding.DER))
    der[-1] ^= 1
    for content in (bytes(der), b"", b"0", b"0\x03\x02\x01\x00", bytes(der) + b"\0"):
        text = base64.urlsafe_b64encode(content).rstrip(b"=").decode()
        answer = await client.post(f"{client.base}/revoke-cert", {"certificate": text})
        assert answer.status in {400, 403, 404}, content[:10]
        assert answer.problem in {"malformed", "unauthorized"}
    assert (await client.post(f"{client.base}/revoke-cert", {"certificate": encoded(leaf, padding=True)})).status == 200


async def acme_certificates(world):
    return await world.query("SELECT serial FROM certificates WHERE requester_protocol = 'acme'")


async def test_fact_26_two_finalizes_at_once(world, csr):
    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    der = csr("a.test")
    answers = await asyncio.gather(*(client.finalize(order, der) for _ in range(10)))
    assert [answer.status for answer in answers] == [200] * 10, [answer.body for answer in answers]
    assert (await client.poll(order.headers["Location"], "processing"))["status"] == "valid"
    assert len(await acme_certificates(world)) == 1


async def test_fact_26_two_finalizes_with_different_csrs(world, csr):
    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    answers = await asyncio.gather(*(client.finalize(order, csr("a.test")) for _ in range(6)))
    assert sorted(answer.status for answer in answers) == [200] + [403] * 5
    assert {answer.problem for answer in answers if answer.status != 200} == {"orderNotReady"}
    assert len(await acme_certificates(world)) == 1


@pytest.mark.parametrize(("outages", "lost"), [(1, 0), (0, 1), (1, 1)])
async def test_fact_26_the_core_is_away_or_its_answer_lost(world, csr, outages, lost):
    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    world.core.outages, world.core.lost_answers = outages, lost
    answer = await client.finalize(order, csr("a.test"))
    assert answer.json["status"] in {"processing", "valid"}
    assert (await client.poll(order.headers["Location"], "processing"))["status"] == "valid"
    assert len(await acme_certificates(world)) == 1


@pytest.mark.parametrize("died", ["before signing", "before answering"])
@pytest.mark.parametrize("taken_up", ["after a restart", "by another front"])
async def test_fact_26_the_front_dies(world, csr, died, taken_up):
    world.resolve("a.test")
    await world.serve(replace(world.options, finalize_wait=0.0))
    client = await world.client()
    order = await client.ready("a.test")
    der = csr("a.test")
    world.front._issuing._start = lambda _order: None
    assert (await client.finalize(order, der)).json["status"] == "processing"
    if died == "before answering":
        request = await issuing_request(world, order.headers["Location"])
        await world.core.issuance.issue(request)
    if taken_up == "after a restart":
        await world.front.stop()
        await world.serve()
    else:
        await world.execute("UPDATE acme_orders SET lease_until = 1 WHERE lease_until IS NOT NULL")
        await world.serve(process="front-2")
    assert (await client.poll(order.headers["Location"], "processing"))["status"] == "valid"
    assert len(await acme_certificates(world)) == 1
    assert (await client.finalize(order, der)).json["status"] == "valid"


async def test_names_that_no_validation_covers_are_not_signed(world, csr):
    """The core asks for evidence of each name: a front that lost or invented an authorization gets nothing."""
    from ca_server.domain.errors import CaError

    world.resolve("a.test", "b.test")
    client = await world.client()
    order = await client.ready("a.test", "b.test")
    world.front._issuing._start = lambda _order: None
    await client.finalize(order, csr("a.test", "b.test"))
    request = await issuing_request(world, order.headers["Location"])
    assert {item.identifier.value for item in request.evidence} == {"a.test", "b.test"}
    long_ago = replace(request.evidence[1], validated_at=datetime(2020, 1, 1, tzinfo=UTC))
    for evidence in (request.evidence[:1], (), (request.evidence[0], long_ago)):
        with pytest.raises(CaError) as refused:
            await world.core.issuance.issue(replace(request, evidence=evidence))
        assert refused.value.rule == "names.evidence"
    assert await acme_certificates(world) == []
    assert {event["rule"] for event in await world.audit("issuance.refused")} == {"names.evidence"}


async def issuing_request(world, url):
    """The request that the front makes of an order."""
    work = await world.front._store.order_work(url.rpartition("/")[2])
    return enrollment_request(work.order, "default", work.order.csr_der, evidence_of(work))


async def test_a_refusal_of_the_core_makes_the_order_invalid(world, csr, monkeypatch):
    from ca_server.domain.errors import CaError, ErrorKind

    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")

    async def refuse(_request):
        raise CaError(ErrorKind.POLICY_DENIED, "not today", rule="test.rule")

    monkeypatch.setattr(world.core, "issue", refuse)
    answer = await client.finalize(order, csr("a.test"))
    assert answer.json["status"] == "invalid"
    assert answer.json["error"]["type"].endswith(":unauthorized")
    assert answer.json["error"]["detail"] == "not today"


async def test_a_conflict_of_nodes_is_not_the_clients_fault(world, csr, monkeypatch):
    """Two cores at work on one order: one of them meets the other's live intent."""
    from ca_server.domain.errors import CaError, ErrorKind

    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    issue, conflicts = world.core.issue, [1, 2]

    async def conflict(request):
        if conflicts:
            conflicts.pop()
            raise CaError(ErrorKind.CONFLICT, "the enrollment has a live intent, or the serial was used")
        return await issue(request)

    monkeypatch.setattr(world.core, "issue", conflict)
    await client.finalize(order, csr("a.test"))
    assert (await client.poll(order.headers["Location"], "processing"))["status"] == "valid"


async def test_finished_orders_are_taken_out_of_the_work_list(world):
    world.resolve("a.test")
    client = await world.client()
    await client.issue("a.test")
    await world.execute("UPDATE acme_orders SET lease_until = 1 WHERE lease_until IS NOT NULL")
    asked = len(world.core.asked)
    await world.front._issuing.resume()
    assert len(world.core.asked) == asked
    states = await world.query("SELECT 1 FROM acme_orders WHERE status = 'processing'")
    assert states == []
