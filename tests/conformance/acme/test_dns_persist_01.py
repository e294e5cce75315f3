"""dns-persist-01 (draft-ietf-acme-dns-persist-02), seen through the server."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from ca_server.configuration.consistency import check_consistency
from ca_server.settings import Settings
from protocols.acme.validation.persist_record import hashed_uri

ISSUERS = ("ca.example", "ca.example.net")


@pytest.fixture
async def client(world):
    validation = replace(world.options.validation, issuer_domain_names=ISSUERS)
    options = replace(
        world.options,
        validation=validation,
        caa_identities=ISSUERS,
        challenges=("http-01", "dns-persist-01"),
        validation_attempts=1,
    )
    await world.serve(options)
    return await world.client()


async def record(client, domain, rest="", key=None):
    """The record that a client publishes, by what the directory says."""
    meta = (await client.world.send("GET", f"{client.base}/directory")).json["meta"]
    uri = hashed_uri(meta["accountHashPrefix"], domain, (key or client.key).thumbprint, client.kid)
    return f'"{meta["issuerDomainNames"][0]}; " "accounturi={uri}{rest}"'


async def attempt(client, *names):
    """The order, with its last authorization once that is settled."""
    order = await client.order(*names)
    url = order.json["authorizations"][-1]
    challenges = (await client.post(url)).json["challenges"]
    challenge = next(each for each in challenges if each["type"] == "dns-persist-01")
    await client.post(challenge["url"], {})
    return order, await client.poll(url, "pending")


async def test_the_directory_and_the_challenge_say_what_to_publish(world, client):
    meta = (await world.send("GET", f"{client.base}/directory")).json["meta"]
    assert meta["issuerDomainNames"] == meta["caaIdentities"] == list(ISSUERS)
    assert meta["accountHashPrefix"].startswith("https://")
    (url,) = (await client.order("*.a.test")).json["authorizations"]
    (challenge,) = (await client.post(url)).json["challenges"]
    assert challenge == {
        "type": "dns-persist-01",
        "url": challenge["url"],
        "status": "pending",
        "issuerDomainNames": list(ISSUERS),
    }
    (url,) = (await client.order("127.0.0.1")).json["authorizations"]
    assert [each["type"] for each in (await client.post(url)).json["challenges"]] == ["http-01"]


async def test_without_it_the_directory_has_nothing_of_it(world):
    meta = (await world.send("GET", "https://ca.example.test:8443/acme/directory")).json["meta"]
    assert not {"issuerDomainNames", "accountHashPrefix"} & set(meta)


async def test_one_record_for_many_certificates(world, client, csr):
    world.dns.records["_validation-persist.a.test", "TXT"] = [await record(client, "a.test", "; policy=wildcard")]
    for names in (["*.a.test"], ["w.a.test"], ["*.deep.a.test"]):
        order, authorization = await attempt(client, *names)
        assert authorization["status"] == "valid", authorization
        await client.finalize(order, csr(*names))
        assert (await client.poll(order.headers["Location"], "processing"))["status"] == "valid"
        assert world.core.asked[-1].evidence[0].method == "dns-persist-01"
    event = (await world.audit("challenge.validated"))[-1]
    assert event["extra"]["record"] == "_validation-persist.a.test"
    assert event["extra"]["seen"].startswith("ca.example; accounturi=https://")


async def test_all_names_below_a_domain_need_a_record_that_says_so(world, client, profiles):
    """RFC 9444 asks for more than control of the domain itself."""
    changed = profiles["default"].replace("[names]", "[names]\nallow_subdomain_authorization = true")
    await world.put_in_force(profiles | {"default": changed})
    wanted = {"identifiers": [{"type": "dns", "value": "w.a.test", "ancestorDomain": "a.test"}]}
    for rest, status in (("", "invalid"), ("; policy=wildcard", "valid")):
        world.dns.records["_validation-persist.a.test", "TXT"] = [await record(client, "a.test", rest)]
        (url,) = (await client.post(f"{client.base}/new-order", wanted)).json["authorizations"]
        (challenge,) = (await client.post(url)).json["challenges"]
        await client.post(challenge["url"], {})
        assert (await client.poll(url, "pending"))["status"] == status


async def test_a_record_of_another_account(world, client):
    world.dns.records["_validation-persist.a.test", "TXT"] = [await record(await world.client(), "a.test")]
    _, authorization = await attempt(client, "a.test")
    (error,) = [each["error"] for each in authorization["challenges"] if "error" in each]
    assert (authorization["status"], error["type"]) == ("invalid", "urn:ietf:params:acme:error:unauthorized")


async def test_a_malformed_record(world, client):
    world.dns.records["_validation-persist.a.test", "TXT"] = [await record(client, "a.test", "; persistUntil=x")]
    _, authorization = await attempt(client, "a.test")
    (error,) = [each["error"] for each in authorization["challenges"] if "error" in each]
    assert error["type"] == "urn:ietf:params:acme:error:malformed"


async def test_what_was_seen_of_a_record_ends_with_it(world, client):
    """After `persistUntil` a CA reuses nothing that it saw of the record (section 4.1)."""
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
    rest = f"; persistUntil={int(until.timestamp())}"
    world.dns.records["_validation-persist.a.test", "TXT"] = [await record(client, "a.test", rest)]
    _, authorization = await attempt(client, "a.test")
    assert authorization["expires"] == until.strftime("%Y-%m-%dT%H:%M:%SZ")
    later = await client.order("a.test")
    assert (later.json["status"], later.json["expires"]) == ("ready", authorization["expires"])


async def test_a_record_outlives_the_key_that_it_names(world, client, new_key):
    """Each key of the account's is as good, the one before last and one that came back too (section 4.2)."""
    world.dns.records["_validation-persist.a.test", "TXT"] = [await record(client, "a.test")]
    first = client.key
    for key in (new_key(), new_key(), first, new_key()):
        url = f"{client.base}/key-change"
        payload = {"account": client.kid, "oldKey": client.key.jwk}
        old, client.key, kid, client.kid = client.key, key, client.kid, ""
        inner = await client.jws(url, payload, nonce=None)
        client.key, client.kid = old, kid
        assert (await client.post(url, inner)).status == 200
        client.key = key
    _, authorization = await attempt(client, "a.test")
    assert authorization["status"] == "valid"
    assert await world.count("acme_former_keys") == 3
    other = await world.client()
    world.dns.records["_validation-persist.b.test", "TXT"] = [await record(client, "b.test", key=other.key)]
    _, authorization = await attempt(client, "b.test")
    assert authorization["status"] == "invalid", "keys of others are no keys of the account"


def settings(**acme):
    return msgspec.convert({"acme": acme}, Settings)


def test_it_is_configured_with_the_names_of_this_ca():
    challenges = ("dns-persist-01",)
    for names in ((), tuple(f"n{number}.example" for number in range(11))):
        mistake = check_consistency(settings(challenges=challenges, caa_identities=names))
        assert mistake is not None
        assert mistake.key == "acme.challenges"
    assert check_consistency(settings(challenges=challenges, caa_identities=("ca.example",))) is None
