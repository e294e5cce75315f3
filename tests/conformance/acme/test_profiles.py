"""draft-ietf-acme-profiles: what directories offer, and what orders may name."""

import pytest

pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
OFFERED = {"default", "short", "holdable", "held"}


async def directory(world, external, path=""):
    answer = await world.send("GET", f"{external}/acme{path}/directory")
    assert answer.status == 200
    return answer.json


async def test_the_directory_offers_the_profiles_of_acme_alone(world, external, profiles):
    described = {name: f'description = "For {name}."\n{body}' for name, body in profiles.items() if name != "held"}
    await world.put_in_force(described | {"held": profiles["held"]})
    offered = (await directory(world, external))["meta"]["profiles"]
    assert offered == {name: f"For {name}." for name in OFFERED - {"held"}} | {"held": "profile held"}
    assert offered == (await directory(world, external, "/default"))["meta"]["profiles"]
    assert (await directory(world, external, "/short"))["meta"]["profiles"] == {"short": "For short."}
    assert (await world.send("GET", f"{external}/acme/inside/directory")).status == 404


async def test_an_order_names_its_profile_and_tells_it(world, csr):
    world.resolve("a.short.test")
    client = await world.client()
    plain = await client.order("a.test")
    assert (plain.status, plain.json["profile"]) == (201, "default")
    order = await client.order("a.short.test", profile="short")
    assert (order.status, order.json["profile"]) == (201, "short")
    await client.authorize(order)
    done = await client.finalize(order, csr("a.short.test"))
    assert (done.json["status"], done.json["profile"]) == ("valid", "short")
    rows = await world.query("SELECT profile FROM certificates WHERE requester_protocol = 'acme'")
    assert [row[0] for row in rows] == ["short"]
    assert (await world.audit("order.created"))[-1]["profile"] == "short"


async def test_names_are_those_of_the_profile_that_was_chosen(world):
    client = await world.client()
    refused = await client.order("a.test", profile="short")
    assert (refused.problem, refused.json["rule"]) == ("rejectedIdentifier", "names.dns")


@pytest.mark.parametrize("name", ["nobody", "inside", "", "../default", "DEFAULT"])
async def test_a_profile_that_is_not_offered_is_invalid(world, name):
    client = await world.client()
    answer = await client.order("a.test", profile=name)
    assert (answer.status, answer.problem) == (400, "invalidProfile" if name else "malformed")
    assert await world.count("acme_orders") == 0
    if name:
        assert all(offered in answer.json["detail"] for offered in OFFERED)
        assert [event["rule"] for event in await world.audit("issuance.refused")] == ["acme.profile"]


async def test_a_directory_of_one_profile_gives_no_other(world, external):
    client = await world.client(profile="short")
    assert (await client.order("a.short.test")).json["profile"] == "short"
    assert (await client.order("a.short.test", profile="short")).json["profile"] == "short"
    refused = await client.order("a.test", profile="default")
    assert (refused.problem, refused.json["rule"]) == ("invalidProfile", "acme.profile")
    client.base = f"{external}/acme"
    assert (await client.order("a.short.test", profile="short")).status == 201


async def test_a_profile_that_was_withdrawn_is_invalid_at_finalize(world, csr, profiles):
    world.resolve("a.short.test")
    client = await world.client()
    order = await client.order("a.short.test", profile="short")
    await client.authorize(order)
    await world.put_in_force({name: body for name, body in profiles.items() if name != "short"})
    refused = await client.finalize(order, csr("a.short.test"))
    assert (refused.problem, refused.json["rule"]) == ("invalidProfile", "profile.unknown")


async def test_a_profile_that_is_not_for_the_account_is_invalid_where_it_is_named(world, profiles):
    await world.put_in_force(
        profiles | {"short": profiles["short"].replace('["acme"]', '["acme"]\nrequesters = ["x"]')}
    )
    client = await world.client()
    refused = await client.order("a.short.test", profile="short")
    assert (refused.problem, refused.json["rule"]) == ("invalidProfile", "profile.requesters")


async def test_a_key_for_one_profile_lets_in_where_that_is_offered(world, bound, external):
    """At the default directory, whose orders then name it; nowhere else but at its own."""
    client, _ = await bound(profiles=("short",))
    assert (await client.order("a.short.test", profile="short")).status == 201
    refused = await client.order("a.short.test")
    assert (refused.status, refused.problem, refused.json["rule"]) == (403, "unauthorized", "eab.profile")
    refused = await client.order("a.test", profile="default")
    assert (refused.problem, refused.json["rule"]) == ("invalidProfile", "eab.profile")
    client.base = f"{external}/acme/short"
    assert (await client.order("a.short.test")).status == 201


@pytest.mark.parametrize(("path", "lets_in"), [("short", True), ("holdable", False)])
async def test_a_key_for_one_profile_at_the_directory_of_one(world, new_client, binding, path, lets_in):
    client = new_client(world, profile=path)
    kid, secret = await world.eab(profiles=("short",))
    jws = binding(client.key.jwk, f"{client.base}/new-account", kid, secret)
    answer = await client.register(externalAccountBinding=jws)
    assert answer.status == (201 if lets_in else 403)
