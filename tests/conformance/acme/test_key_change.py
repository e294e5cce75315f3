"""RFC 8555 section 7.3.5."""

import asyncio
from math import lcm

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from ca_server.store.acme import SqlAcmeStore


@pytest.fixture
def inner(world, new_client):
    """Makes the inner JWS of a keyChange of a client to a new key, wrong wherever a test says so."""

    async def make(client, key, *, url=None, account=None, old=None, more=None, **header):
        payload = {"account": account or client.kid, "oldKey": old or client.key.jwk} | (more or {})
        payload = {name: value for name, value in payload.items() if value is not None}
        header = {"nonce": None} | header
        return await new_client(world, key).jws(url or f"{client.base}/key-change", payload, **header)

    return make


@pytest.fixture
def change(inner):
    async def send(client, key, **faults):
        return await client.post(f"{client.base}/key-change", await inner(client, key, **faults))

    return send


async def test_the_directory_names_it(world, external):
    for path in ("", "/short"):
        directory = (await world.send("GET", f"{external}/acme{path}/directory")).json
        assert directory["keyChange"] == f"{external}/acme{path}/key-change"


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "EdDSA", "RS256"])
async def test_the_account_keeps_all_but_its_key(world, new_key, new_client, change, csr, algorithm):
    world.resolve("a.test", "b.test")
    client = await world.client()
    await client.issue("a.test")
    ready = await client.ready("b.test")
    pending = await client.order("c.test")
    orders = (await client.post(f"{client.kid}/orders")).json["orders"]
    before = (await client.post(client.kid)).json
    old, new = client.key, new_key(algorithm)
    changed = await change(client, new)
    assert (changed.status, changed.json, changed.headers["Location"]) == (200, before, client.kid)
    client.key = new
    assert (await client.post(f"{client.kid}/orders")).json["orders"] == orders
    assert (await client.finalize(ready, csr("b.test"))).json["status"] == "valid"
    assert (await client.order("a.test")).json["status"] == "ready", "the authorization is good still"
    world.resolve("c.test")
    await client.authorize(pending)
    assert (await client.poll(pending.headers["Location"], "pending"))["status"] == "ready"
    found = await new_client(world, new).register(onlyReturnExisting=True)
    assert (found.status, found.headers["Location"]) == (200, client.kid)
    lost = await new_client(world, old).register(onlyReturnExisting=True)
    assert lost.problem == "accountDoesNotExist"
    (event,) = await world.audit("account.key-changed")
    assert event["actor"] == event["object"] == f"acme:{client.kid.rpartition('/')[2]}"
    assert event["extra"] == {"old": old.thumbprint, "new": new.thumbprint}


async def test_fact_12_the_old_key_is_refused_at_once_on_every_front(world, new_key, change):
    client = await world.client()
    first = world.server
    await world.serve(process="front-2")
    second = world.server
    for server in (first, second):
        world.server = server
        assert (await client.post(client.kid)).status == 200, "each front knows the old key"
    old, new = client.key, new_key()
    assert (await change(client, new)).status == 200
    for server in (first, second):
        world.server = server
        client.key = old
        refused = await client.post(client.kid)
        assert (refused.status, refused.problem) == (401, "unauthorized")
        client.key = new
        assert (await client.post(client.kid)).status == 200


async def test_an_old_key_may_have_an_account_of_its_own_again(world, new_key, new_client, change):
    client = await world.client()
    old, kid = client.key, client.kid
    assert (await change(client, new_key())).status == 200
    again = await new_client(world, old).register()
    assert (again.status, again.headers["Location"] != kid) == (201, True)


FAULTS = {
    "another url": ({"url": "https://ca.example.test:8443/acme/new-order"}, "malformed"),
    "another account": ({"account": "https://ca.example.test:8443/acme/account/AAAA"}, "malformed"),
    "no account": ({"more": {"account": None}}, "malformed"),
    "no old key": ({"more": {"oldKey": None}}, "malformed"),
    "an old key that is none": ({"old": {"kty": "EC"}}, "malformed"),
    "a nonce": ({"nonce": "AAAA"}, "malformed"),
    "kid in place of jwk": ({"kid": "https://ca.example.test:8443/acme/account/AAAA", "jwk": None}, "malformed"),
    "a MAC": ({"alg": "HS256"}, "badSignatureAlgorithm"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_fact_12_inner_jws_that_are_refused(world, new_key, change, fault):
    client = await world.client()
    options, problem = FAULTS[fault]
    answer = await change(client, new_key(), **options)
    assert (answer.status, answer.problem) == (400, problem)
    await is_unchanged(world, client)


async def test_fact_12_neither_key_speaks_for_the_other(world, new_key, change, inner):
    """An old key that is not the account's, a new key whose owner did not sign, and no inner JWS at all."""
    client = await world.client()
    key, url = new_key(), f"{client.base}/key-change"
    other = await change(client, key, old=new_key().jwk)
    assert (other.status, other.problem) == (400, "malformed")
    stolen = await inner(client, new_key(), jwk=key.jwk)
    for payload in (stolen, {"account": client.kid, "oldKey": client.key.jwk}, {}, None):
        refused = await client.post(url, payload)
        assert (refused.status, refused.problem) == (400, "malformed"), payload
    by_key = await client.post(url, await inner(client, key), kid=None, jwk=client.key.jwk)
    assert (by_key.status, by_key.problem) == (400, "malformed")
    await is_unchanged(world, client)


async def test_fact_12_an_inner_jws_of_another_account_is_of_no_use(world, new_key, inner):
    """What one account's owner signed for himself changes nobody else's key."""
    owner, thief = await world.client(), await world.client()
    signed = await inner(owner, new_key())
    refused = await thief.post(f"{thief.base}/key-change", signed)
    assert (refused.status, refused.problem) == (400, "malformed")
    await is_unchanged(world, owner, thief)


async def is_unchanged(world, *clients):
    for client in clients:
        assert (await client.post(client.kid)).status == 200
    assert await world.audit("account.key-changed") == []


async def test_fact_12_a_key_that_an_account_has(world, change):
    first, second = await world.client(), await world.client()
    for mine, whose in ((first, second), (first, first)):
        refused = await change(mine, whose.key)
        assert (refused.status, refused.problem) == (409, "malformed")
        assert refused.headers["Location"] == whose.kid
        assert refused.json["rule"] == "acme.key_taken"
    await is_unchanged(world, first, second)
    assert [event["rule"] for event in await world.audit("access.refused")] == ["acme.key_taken"] * 2


def rsa_of_close_primes():
    p = rsa.generate_private_key(65537, 2048).private_numbers().p
    q = p + 2
    while pow(2, q - 1, q) != 1:
        q += 2
    d = pow(65537, -1, lcm(p - 1, q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public).private_key()


async def test_keys_that_no_account_gets(world, new_key, new_client, change):
    """Weak by construction, or on the blocklist: neither by keyChange nor by newAccount."""
    from hashlib import sha256

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    client = await world.client()
    weak, blocked = new_key("RS256"), new_key()
    weak.private = rsa_of_close_primes()
    n = weak.private.public_key().public_numbers().n
    weak.jwk["n"] = encoded(n)
    spki = blocked.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    await world.block(sha256(spki).digest())
    for key, rule in ((weak, "keys.fermat"), (blocked, "keys.blocklist")):
        for answer in (await change(client, key), await new_client(world, key).register()):
            assert (answer.status, answer.problem, answer.json["rule"]) == (400, "badPublicKey", rule)
    await is_unchanged(world, client)
    assert await world.count("acme_accounts") == 1
    told = [event["rule"] for event in await world.audit("access.refused")]
    assert told == ["keys.fermat"] * 2 + ["keys.blocklist"] * 2


def encoded(value):
    from protocols.acme.encoding import b64url_encode

    return b64url_encode(value.to_bytes((value.bit_length() + 7) // 8, "big"))


async def test_of_many_changes_one_old_key_signs_one_stands(world, new_key, inner):
    client = await world.client()
    url, keys = f"{client.base}/key-change", [new_key() for _ in range(12)]
    signed = [await client.jws(url, await inner(client, key)) for key in keys]
    answers = await asyncio.gather(*(client.send(url, jws) for jws in signed))
    assert sorted(answer.status for answer in answers) == [200] + [401] * 11
    (event,) = await world.audit("account.key-changed")
    client.key = keys[[answer.status for answer in answers].index(200)]
    assert event["extra"]["new"] == client.key.thumbprint
    assert (await client.post(client.kid)).status == 200


async def test_of_many_accounts_one_gets_a_key(world, new_key, inner):
    clients = [await world.client() for _ in range(8)]
    key = new_key()
    url = f"{clients[0].base}/key-change"
    signed = [await client.jws(url, await inner(client, key)) for client in clients]
    answers = await asyncio.gather(*(clients[0].send(url, jws) for jws in signed))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 7
    owner = clients[[answer.status for answer in answers].index(200)]
    assert {answer.headers["Location"] for answer in answers} == {owner.kid}
    assert len(await world.audit("account.key-changed")) == 1


async def test_a_change_and_a_new_account_race_for_a_key(world, new_key, new_client, inner):
    for _ in range(5):
        client, key = await world.client(), new_key()
        url = f"{client.base}/key-change"
        change = await client.jws(url, await inner(client, key))
        rival = new_client(world, key)
        create = await rival.jws(f"{client.base}/new-account", {})
        changed, created = await asyncio.gather(
            client.send(url, change), rival.send(f"{client.base}/new-account", create)
        )
        assert (changed.status, created.status) in {(200, 200), (409, 201)}
        assert changed.headers["Location"] == created.headers["Location"]


async def test_change_event_and_nonce_are_one_transaction(world, new_key, inner, monkeypatch):
    client = await world.client()
    url, key = f"{client.base}/key-change", new_key()
    jws = await client.jws(url, await inner(client, key))

    def fail(_connection, events):
        assert events
        raise ValueError("not today")

    with monkeypatch.context() as patch:
        patch.setattr("ca_server.store.acme.insert_events", fail)
        assert (await client.send(url, jws)).status == 500
    await is_unchanged(world, client)
    again = await client.jws(url, await inner(client, key))
    assert (await client.send(url, again)).status == 200
    replayed = await client.send(url, again)
    assert replayed.status in {400, 401}
    assert len(await world.audit("account.key-changed")) == 1


async def test_the_nonce_is_used_up_with_the_change(world, new_key, inner, monkeypatch):
    client = await world.client()
    url = f"{client.base}/key-change"
    used = []

    async def consume(_store, nonce):
        used.append(nonce)

    monkeypatch.setattr(SqlAcmeStore, "consume_nonce", consume)
    before = await world.count("acme_nonces")
    assert (await client.post(url, await inner(client, new_key()))).status == 200
    assert (await world.count("acme_nonces"), used) == (before + 1, [])


async def test_a_deactivated_account_changes_no_key(world, new_key, change):
    client = await world.client()
    assert (await client.post(client.kid, {"status": "deactivated"})).status == 200
    refused = await change(client, new_key())
    assert (refused.status, refused.problem) == (401, "unauthorized")
