"""What is bound to an external account key (RFC 8555 section 7.3.4) holds for its accounts: at orders, in the core."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ca_server.core.ports import DisableEab, UpdateEab
from ca_server.domain.bindings import EabPolicy
from ca_server.domain.errors import CaError, ErrorKind


async def change(world, kid, *, expires_at=None, **policy):
    await world.core.accounts.update(UpdateEab(kid, EabPolicy(**policy), "Ann", expires_at, None), "uid:0")


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ({"names": ("a..b",)}, ErrorKind.MALFORMED),
        ({"names": ("a.test",) * 1001}, ErrorKind.MALFORMED),
        ({"rate": "many"}, ErrorKind.MALFORMED),
        ({"profiles": ("nobody",)}, ErrorKind.NOT_FOUND),
        ({"max_uses": 2}, ErrorKind.MALFORMED),
    ],
)
async def test_keys_that_are_not_made(world, members, kind):
    with pytest.raises(CaError) as refused:
        await world.eab(**members)
    assert refused.value.kind is kind
    assert await world.count("eab_keys") == 0


# --- Names and profiles -------------------------------------------------------------------------------------------


async def test_fact_11_names_of_a_key(world, bound):
    client, _kid = await bound(names=("one.test", "*.web.test", "127.1.0.0/16"), owner="web team")
    assert (await client.order("one.test", "a.b.web.test", "*.web.test", "127.1.2.3")).status == 201
    refused = await client.order("one.test", "web.test", "a.one.test", "127.2.0.1")
    assert (refused.status, refused.problem) == (400, "rejectedIdentifier")
    named = [(each["identifier"]["value"], each["rule"]) for each in refused.json["subproblems"]]
    assert named == [("web.test", "eab.names"), ("a.one.test", "eab.names"), ("127.2.0.1", "eab.names")]
    assert "ask this CA's operators" in refused.json["subproblems"][0]["detail"]
    (event,) = await world.audit("issuance.refused")
    assert event["rule"] == "eab.names"
    assert event["actor"] == f"acme:{client.kid.rpartition('/')[2]}"


async def test_fact_19_one_refused_name_of_several_is_named(bound):
    client, _kid = await bound(names=("*.web.test",))
    refused = await client.order("a.web.test", "b.test")
    (sub,) = refused.json["subproblems"]
    assert (sub["identifier"], sub["rule"]) == ({"type": "dns", "value": "b.test"}, "eab.names")


async def test_pre_authorization_is_held_to_the_names(world, bound):
    client, _kid = await bound(names=("*.web.test",), live=1)
    allowed = await client.post(f"{client.base}/new-authz", {"identifier": {"type": "dns", "value": "a.web.test"}})
    refused = await client.post(f"{client.base}/new-authz", {"identifier": {"type": "dns", "value": "a.test"}})
    assert (allowed.status, refused.problem, refused.json["rule"]) == (201, "rejectedIdentifier", "eab.names")


async def test_profiles_of_a_key(world, bound, external):
    client, kid = await bound(profiles=("short", "default"))
    assert (await client.order("a.test")).status == 201
    client.base = f"{external}/acme/short"
    assert (await client.order("a.short.test")).status == 201
    await change(world, kid, profiles=("short",))
    client.base = f"{external}/acme"
    refused = await client.order("a.test")
    assert (refused.status, refused.problem, refused.json["rule"]) == (403, "unauthorized", "eab.profile")
    assert "short" in refused.json["detail"]


async def test_changes_hold_for_the_next_order_and_for_the_finalize_of_the_last(world, bound, csr):
    client, kid = await bound()
    world.resolve("a.test")
    order = await client.ready("a.test")
    await change(world, kid, names=("*.web.test",))
    assert (await client.order("a.test")).json["rule"] == "eab.names"
    assert (await client.finalize(order, csr("a.test"))).json["rule"] == "eab.names"
    assert (await client.post(order.headers["Location"])).json["status"] == "ready"
    await change(world, kid)
    assert (await client.finalize(order, csr("a.test"))).status == 200
    (event, _) = await world.audit("eab.updated")
    assert (event["object"], event["extra"]["names"], event["extra"]["owner"]) == (f"eab:{kid}", "*.web.test", "Ann")


async def test_what_is_bound_outlives_the_time_of_the_key(world, bound, new_client, binding):
    kid, secret = key = await world.eab(reusable=True, names=("*.web.test",))
    client, _kid = await bound(key)
    await change(world, kid, names=("*.web.test",), expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert (await client.order("a.web.test")).status == 201
    assert (await client.order("a.test")).json["rule"] == "eab.names"
    late = new_client(world)
    jws = binding(late.key.jwk, f"{late.base}/new-account", kid, secret)
    assert (await late.register(externalAccountBinding=jws)).problem == "unauthorized"


async def test_a_key_for_so_many_accounts(world, bound, new_client, binding):
    kid, secret = key = await world.eab(reusable=True, max_uses=2)
    await bound(key)
    await bound(key)
    late = new_client(world)
    jws = binding(late.key.jwk, f"{late.base}/new-account", kid, secret)
    assert (await late.register(externalAccountBinding=jws)).problem == "unauthorized"
    assert (await world.query("SELECT uses FROM eab_keys"))[0][0] == 2


@pytest.mark.parametrize("and_accounts", [False, True])
async def test_a_disabled_key_and_its_accounts(world, bound, csr, and_accounts):
    client, kid = await bound()
    stranger = await world.client()
    world.resolve("a.test")
    order = await client.ready("a.test")
    assert await world.core.accounts.disable(DisableEab(kid, and_accounts), "uid:0")
    answer = await client.finalize(order, csr("a.test"))
    assert (await stranger.order("a.test")).status == 201
    if and_accounts:
        assert (answer.status, answer.problem) == (401, "unauthorized")
        assert "revoked" in answer.json["detail"]
        (event,) = await world.audit("account.revoked")
        assert (event["object"], event["extra"]) == (f"acme:{client.kid.rpartition('/')[2]}", {"eab": kid})
    else:
        assert answer.status == 200
    assert not await world.core.accounts.disable(DisableEab(kid, and_accounts), "uid:0")


async def test_accounts_can_be_revoked_after_their_key_was_disabled(world, bound):
    client, kid = await bound()
    assert await world.core.accounts.disable(DisableEab(kid), "uid:0")
    assert await world.core.accounts.disable(DisableEab(kid, and_accounts=True), "uid:0")
    assert (await client.order("a.test")).status == 401


# --- The owner ----------------------------------------------------------------------------------------------------


async def test_the_owner_is_on_record_with_certificates_and_events(world, bound):
    client, kid = await bound(owner="web team")
    world.resolve("a.test")
    await client.issue("a.test")
    assert (await world.query("SELECT owner FROM certificates WHERE requester_protocol = 'acme'")) == [("web team",)]
    for kind in ("issuance.reserved", "issuance.stored"):
        event = (await world.audit(kind))[-1]
        assert (event["extra"]["owner"], event["extra"]["eab"]) == ("web team", kid)
    assert (await world.audit("eab.used"))[0]["extra"] == {"owner": "web team"}


# --- The core does not believe a front ----------------------------------------------------------------------------


async def enrolled(world, client, *names, csr):
    """The request that the front makes of an order, kept from the core."""
    world.options = replace(world.options, finalize_wait=0.05)
    await world.serve()
    world.resolve(*names)
    order = await client.ready(*names)
    world.core.outages = 1_000
    await client.finalize(order, csr(*names))
    return world.core.asked[-1]


async def refused_by_core(world, request):
    """The rule by which the core refuses, and no certificate made."""
    before = await world.count("certificates")
    with pytest.raises(CaError) as refused:
        await world.core.issuance.issue(request)
    assert await world.count("certificates") == before
    assert (await world.audit("issuance.refused"))[-1]["rule"] == refused.value.rule
    return refused.value.rule


async def test_the_core_checks_names_profile_and_accounts_again(world, bound, csr):
    client, kid = await bound()
    request = await enrolled(world, client, "a.test", csr=csr)
    await change(world, kid, names=("*.web.test",))
    assert await refused_by_core(world, request) == "eab.names"
    await change(world, kid, profiles=("short",))
    assert await refused_by_core(world, request) == "eab.profile"
    await world.execute("UPDATE eab_keys SET accounts_revoked_at = 1")
    assert await refused_by_core(world, request) == "eab.accounts"


@pytest.mark.parametrize("claim", ["none", "another", "unknown"])
async def test_a_front_that_names_another_key_gets_nothing(world, bound, csr, claim):
    client, _kid = await bound(names=("a.test",))
    request = await enrolled(world, client, "a.test", csr=csr)
    other = {"none": "", "another": (await world.eab())[0], "unknown": "nobody"}[claim]
    assert await refused_by_core(world, replace(request, eab_kid=other)) == "eab.binding"


async def test_an_account_without_a_key_can_not_be_said_to_have_one(world, csr):
    client = await world.client()
    request = await enrolled(world, client, "a.test", csr=csr)
    assert request.eab_kid == ""
    kid, _secret = await world.eab()
    assert await refused_by_core(world, replace(request, eab_kid=kid)) == "eab.binding"
