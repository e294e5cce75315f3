"""Authorization of subdomains (RFC 9444), and for how long an authorization is good for new orders."""

from dataclasses import replace
from datetime import timedelta

import pytest

from ca_server.domain.errors import CaError


@pytest.fixture
async def client(world, profiles):
    changed = profiles["default"].replace("[names]", "[names]\nallow_subdomain_authorization = true")
    await world.put_in_force(profiles | {"default": changed})
    return await world.client()


def dns(value, ancestor=None):
    return {"type": "dns", "value": value} | ({} if ancestor is None else {"ancestorDomain": ancestor})


async def order(client, *identifiers):
    return await client.post(f"{client.base}/new-order", {"identifiers": list(identifiers)})


async def preauthorize(client, value, **members):
    """Pre-authorize to the end; the authorization's answer."""
    answer = await client.post(f"{client.base}/new-authz", {"identifier": dns(value) | members})
    url = answer.headers["Location"]
    if answer.json["status"] == "pending":
        challenge = await client.challenge(url, "dns-01")
        await client.post(challenge["url"], {})
        assert (await client.poll(url, "pending"))["status"] == "valid"
    return answer


async def test_the_directory_says_so_where_the_profile_does(world, client):
    directories = [(await world.send("GET", f"{client.base}{profile}/directory")).json for profile in ("", "/short")]
    assert [directory["meta"].get("subdomainAuthAllowed") for directory in directories] == [True, None]
    await world.serve(replace(world.options, challenges=("http-01", "tls-alpn-01")))
    meta = (await world.send("GET", f"{client.base}/directory")).json["meta"]
    assert "subdomainAuthAllowed" not in meta, "no challenge that is offered could show it"


async def test_section_4_2_preauthorization(world, client, csr):
    answer = await preauthorize(client, "a.test", subdomainAuthAllowed=True)
    assert answer.json["subdomainAuthAllowed"] is True
    assert {each["type"] for each in answer.json["challenges"]} == {"dns-01", "dns-account-01"}
    assert "wildcard" not in answer.json
    again = await preauthorize(client, "a.test", subdomainAuthAllowed=True)
    assert again.headers["Location"] == answer.headers["Location"]
    names = ["a.test", "w.a.test", "x.y.a.test"]
    made = await order(client, *map(dns, names))
    assert (made.json["status"], made.json["authorizations"]) == ("ready", [answer.headers["Location"]])
    await client.finalize(made, csr(*names))
    assert (await client.poll(made.headers["Location"], "processing"))["status"] == "valid"
    (evidence,) = world.core.asked[-1].evidence
    assert (str(evidence.identifier), evidence.method, evidence.subdomains) == ("dns:a.test", "dns-01", True)
    for name in ("*.a.test", "*.w.a.test", "xa.test", "b.test"):
        assert (await order(client, dns(name))).json["status"] == "pending", name
    assert (await order(await world.client(), dns("w.a.test"))).json["status"] == "pending", "of another account"


async def test_an_authorization_for_a_name_is_none_for_those_below(client):
    plain = await preauthorize(client, "a.test")
    assert "subdomainAuthAllowed" not in plain.json
    assert (await order(client, dns("w.a.test"))).json["status"] == "pending"
    wider = await preauthorize(client, "a.test", subdomainAuthAllowed=True)
    assert wider.headers["Location"] != plain.headers["Location"]
    assert (await order(client, dns("w.a.test"))).json["status"] == "ready"


async def test_section_4_3_new_orders(world, client, csr):
    made = await order(client, dns("x.y.a.test", "a.test"), dns("w.A.test", "a.test"), dns("b.test"))
    assert made.json["identifiers"] == [dns("x.y.a.test", "a.test"), dns("w.A.test", "a.test"), dns("b.test")]
    shared, other = [(await client.post(url)).json for url in made.json["authorizations"]]
    assert (shared["identifier"], shared["subdomainAuthAllowed"]) == (dns("a.test"), True)
    assert {each["type"] for each in shared["challenges"]} == {"dns-01", "dns-account-01"}
    assert (other["identifier"], "subdomainAuthAllowed" in other) == (dns("b.test"), False)
    await client.authorize(made, "dns-01")
    names = ["x.y.a.test", "w.a.test", "b.test"]
    assert (await client.finalize(made, csr(*names))).status == 200
    assert (await client.poll(made.headers["Location"], "processing"))["status"] == "valid"
    assert (await client.post(made.headers["Location"])).json["identifiers"] == made.json["identifiers"]
    later = await order(client, dns("z.a.test", "a.test"))
    assert (later.json["status"], later.json["authorizations"]) == ("ready", made.json["authorizations"][:1])


async def test_a_domain_and_the_names_below_it_have_one_authorization(client):
    made = await order(client, dns("a.test"), dns("w.a.test", "a.test"), dns("*.a.test"), dns("x.a.test"))
    shown = [(await client.post(url)).json for url in made.json["authorizations"]]
    told = [(each["identifier"]["value"], each.get("wildcard"), each.get("subdomainAuthAllowed")) for each in shown]
    assert told == [("a.test", None, True), ("a.test", True, None), ("x.a.test", None, None)]


async def test_a_wildcard_has_an_authorization_of_its_own(client):
    made = await order(client, dns("*.a.test", "a.test"), dns("*.w.a.test", "a.test"))
    shown = [(await client.post(url)).json for url in made.json["authorizations"]]
    assert [(each["identifier"]["value"], each["wildcard"]) for each in shown] == [("a.test", True), ("w.a.test", True)]


@pytest.mark.parametrize(
    ("value", "ancestor"),
    [
        ("w.a.test", "b.test"),
        ("w.a.test", "w.a.test"),
        ("w.a.test", "x.w.a.test"),
        ("wa.test", "a.test"),
        ("w.a.test", ".a.test"),
        ("w.a.test", "*.a.test"),
        ("w.a.test", "a..test"),
        ("w.a.test", ""),
        ("127.0.0.1", "1"),
    ],
)
async def test_what_is_no_ancestor(client, value, ancestor):
    kind = "ip" if value[0].isdigit() else "dns"
    answer = await order(client, {"type": kind, "value": value, "ancestorDomain": ancestor}, dns("b.test"))
    assert answer.problem == "malformed"
    (sub,) = answer.json["subproblems"]
    assert (sub["identifier"], sub["rule"]) == ({"type": kind, "value": value}, "names.ancestor")


async def test_where_policy_has_none_of_it(world):
    """The authorization is for the name itself (sections 4.2 and 4.3); so is one for a top-level domain."""
    client = await world.client()
    made = await order(client, dns("w.a.test", "a.test"))
    (shown,) = [(await client.post(url)).json for url in made.json["authorizations"]]
    assert (shown["identifier"], "subdomainAuthAllowed" in shown) == (dns("w.a.test"), False)
    assert len(shown["challenges"]) == 4
    preauthorized = await preauthorize(client, "a.test", subdomainAuthAllowed=True)
    assert "subdomainAuthAllowed" not in preauthorized.json


async def test_nobody_answers_for_a_top_level_domain(client):
    made = await order(client, dns("w.a.test", "test"))
    (shown,) = [(await client.post(url)).json for url in made.json["authorizations"]]
    assert shown["identifier"] == dns("w.a.test")
    assert "subdomainAuthAllowed" not in (await preauthorize(client, "test", subdomainAuthAllowed=True)).json


async def test_only_where_both_profiles_of_an_order_let_it(world, client, csr, profiles):
    """What the core is told is believed by the profile with which the order began and by today's."""
    made = await order(client, dns("w.a.test", "a.test"))
    await client.authorize(made, "dns-01")
    await world.put_in_force(profiles)
    await client.finalize(made, csr("w.a.test"))
    failed = await client.poll(made.headers["Location"], "processing")
    assert (failed["status"], failed["error"]["rule"]) == ("invalid", "names.evidence")
    assert (await order(client, dns("x.a.test"))).json["status"] == "pending"


@pytest.mark.parametrize("change", [{"method": "http-01"}, {"subdomains": False}])
async def test_evidence_of_a_domain_is_by_dns_and_says_so(world, client, csr, change):
    made = await order(client, dns("w.a.test", "a.test"))
    await client.authorize(made, "dns-01")
    await client.finalize(made, csr("w.a.test"))
    await client.poll(made.headers["Location"], "processing")
    request = world.core.asked[-1]
    (evidence,) = request.evidence
    request = replace(request, transaction_key="another", evidence=(replace(evidence, **change),))
    with pytest.raises(CaError) as refused:
        await world.core.issuance.issue(request)
    assert refused.value.rule == "names.evidence"


async def test_fact_23_revocation_by_who_holds_the_domain(world, client, csr):
    holder = await world.client()
    world.resolve("w.a.test")
    certificate = (await client.issue("w.a.test"))[0]
    payload = {"certificate": b64url(certificate)}
    await preauthorize(holder, "a.test")
    assert (await holder.post(f"{holder.base}/revoke-cert", payload)).problem == "unauthorized"
    await preauthorize(holder, "a.test", subdomainAuthAllowed=True)
    assert (await holder.post(f"{holder.base}/revoke-cert", payload)).status == 200


def b64url(certificate):
    import base64

    from cryptography.hazmat.primitives.serialization import Encoding

    return base64.urlsafe_b64encode(certificate.public_bytes(Encoding.DER)).rstrip(b"=").decode()


# --- For how long ------------------------------------------------------------------------------------------------


async def test_fact_17_for_so_long_after_their_validation(world, csr):
    world.resolve("a.test")
    client = await world.client()
    first = await client.ready("a.test")
    assert (await client.order("a.test")).json["status"] == "ready"
    await world.serve(replace(world.options, authorization_reuse_lifetime=timedelta(hours=1)))
    assert (await client.order("a.test")).json["status"] == "ready"
    hour = 3_600_000_000
    await world.execute(f"UPDATE acme_authorizations SET validated_at = validated_at - {hour} WHERE status = 'valid'")
    assert (await client.order("a.test")).json["status"] == "pending"
    answer = await client.finalize(first, csr("a.test"))
    assert answer.json["status"] == "valid", "what stands on it already is not touched"


async def test_fact_17_or_never(world):
    world.resolve("a.test")
    client = await world.client()
    assert "newAuthz" in (await world.send("GET", f"{client.base}/directory")).json
    await client.ready("a.test")
    await world.serve(replace(world.options, authorization_reuse_lifetime=timedelta(0)))
    assert (await client.order("a.test")).json["status"] == "pending"
    assert "newAuthz" not in (await world.send("GET", f"{client.base}/directory")).json
    answer = await client.post(f"{client.base}/new-authz", {"identifier": dns("b.test")})
    assert answer.status == 404
    assert await world.count("acme_authorizations") == 2
