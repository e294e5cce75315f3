"""dns-account-01 (draft-ietf-acme-dns-account-label), seen through the server."""

import base64
import hashlib


async def test_a_wildcard_is_issued_by_the_label_of_the_account(world, csr):
    client = await world.client()
    order = await client.order("*.a.test")
    (url,) = order.json["authorizations"]
    challenge = await client.challenge(url, "dns-account-01")
    record = world.dns.records.pop(("_acme-challenge.a.test", "TXT"))
    label = base64.b32encode(hashlib.sha256(client.kid.encode()).digest()[:10]).decode().lower()
    world.dns.records[f"_{label}._acme-challenge.a.test", "TXT"] = record
    await client.post(challenge["url"], {})
    assert (await client.poll(url, "pending"))["status"] == "valid"
    await client.finalize(order, csr("*.a.test"))
    assert (await client.poll(order.headers["Location"], "processing"))["status"] == "valid"
    (event,) = await world.audit("challenge.validated")
    assert event["extra"]["challenge"] == "dns-account-01"
    assert f"TXT _{label}._acme-challenge.a.test: 1 records" in event["extra"]["seen"]
    assert world.core.asked[-1].evidence[0].method == "dns-account-01"


async def test_the_label_of_another_account(world):
    client, other = await world.client(), await world.client()
    (url,) = (await client.order("a.test")).json["authorizations"]
    challenge = await client.challenge(url, "dns-account-01")
    record = world.dns.records.pop(("_acme-challenge.a.test", "TXT"))
    label = base64.b32encode(hashlib.sha256(other.kid.encode()).digest()[:10]).decode().lower()
    world.dns.records[f"_{label}._acme-challenge.a.test", "TXT"] = record
    await client.post(challenge["url"], {})
    found = await client.poll(url, "pending")
    assert found["status"] == "invalid"
