"""External account keys, and the one transaction that uses a key up and makes an account."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ca_server.core.ports import EabClaim
from ca_server.domain.accounts import Account, AccountRegistration, AccountStatus, ExternalBinding
from ca_server.domain.bindings import EabKey, EabPolicy
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.rates import Draw, parse_rate
from ca_server.store import eab as eab_module
from ca_server.store.database import Database
from ca_server.store.eab import SqlEabStore
from ca_server.store.issuance import SqlIssuanceStore


@pytest.fixture
def store(world: Any) -> SqlEabStore:
    return SqlEabStore(world.database)


def eab_key(world: Any, kid: str = "kid", **changes: Any) -> EabKey:
    key = EabKey(
        kid=kid,
        created_at=world.now,
        expires_at=None,
        reusable=False,
        disabled_at=None,
        owner="Ann",
        uses=0,
        last_used_at=None,
    )
    return replace(key, **changes)


def registration(world: Any, account: str = "account", kid: str = "kid", **changes: Any) -> AccountRegistration:
    return AccountRegistration(
        account=Account(
            id=account,
            key_thumbprint=f"thumbprint-{account}",
            jwk=b'{"kty":"EC"}',
            status=AccountStatus.VALID,
            created_at=world.now,
            contacts=("mailto:ann@example.test",),
            eab_kid=kid,
            eab_binding=b"{}",
            **changes,
        ),
        binding=ExternalBinding(kid, "HS256", b"input", b"mac"),
        profile="default",
    )


async def test_keys_are_kept_listed_and_disabled(world: Any, store: SqlEabStore) -> None:
    first = eab_key(world, "first")
    second = eab_key(
        world, "second", created_at=world.now + timedelta(seconds=1), policy=EabPolicy(("p", "q")), reusable=True
    )
    for key in (first, second):
        await store.create_eab(key, b"secret", [])
    assert await store.eab("first") == (first, b"secret")
    assert await store.eab("third") is None
    assert await store.eab_keys() == (second, first)
    with pytest.raises(CaError) as refused:
        await store.create_eab(first, b"another", [])
    assert refused.value.kind is ErrorKind.CONFLICT
    assert await store.disable_eab("first", world.now, [])
    assert not await store.disable_eab("first", world.now, [])
    assert not await store.disable_eab("third", world.now, [])
    assert await store.eab("first") == (replace(first, disabled_at=world.now), b"secret")


async def test_a_key_is_used_up(world: Any, store: SqlEabStore) -> None:
    await store.create_eab(eab_key(world), b"secret", [])
    wanted = registration(world)
    registered = await store.bind_account(wanted, world.now, [])
    assert (registered.created, registered.account) == (True, wanted.account)
    used = await store.eab("kid")
    assert used is not None
    assert (used[0].uses, used[0].last_used_at) == (1, world.now)
    with pytest.raises(CaError) as refused:
        await store.bind_account(registration(world, "another"), world.now, [])
    assert refused.value.kind is ErrorKind.BAD_BINDING


async def test_an_account_is_bound_once(world: Any, store: SqlEabStore, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(eab_module, "insert_events", lambda _connection, events: given.extend(events))
    await store.create_eab(eab_key(world, reusable=True), b"secret", [])
    first = await store.bind_account(registration(world), world.now, ["one"])
    again = await store.bind_account(registration(world), world.now, ["two"])
    assert (first.created, again.created, again.account) == (True, False, first.account)
    assert given == ["one"]
    used = await store.eab("kid")
    assert used is not None
    assert used[0].uses == 1


@pytest.mark.parametrize(
    ("changes", "usable"),
    [
        ({}, True),
        ({"uses": 1}, False),
        ({"uses": 1, "reusable": True}, True),
        ({"disabled": True}, False),
        ({"expires": 0}, False),
        ({"expires": 1}, True),
        ({"uses": 1, "reusable": True, "max_uses": 2}, True),
        ({"uses": 2, "reusable": True, "max_uses": 2}, False),
        ({"policy": EabPolicy(("default",))}, True),
        ({"policy": EabPolicy(("another", "default"))}, True),
        ({"policy": EabPolicy(("another",))}, False),
        ({"tenant": "another"}, False),
        ({"kid": "another"}, False),
    ],
)
async def test_when_a_key_may_be_used(world: Any, store: SqlEabStore, changes: dict[str, Any], usable: bool) -> None:
    if changes.pop("disabled", False):
        changes["disabled_at"] = world.now
    if "expires" in changes:
        changes["expires_at"] = world.now + timedelta(seconds=changes.pop("expires"))
    await store.create_eab(eab_key(world, **changes), b"secret", [])
    if usable:
        assert (await store.bind_account(registration(world), world.now, [])).created
        return
    with pytest.raises(CaError) as refused:
        await store.bind_account(registration(world), world.now, [])
    assert refused.value.kind is ErrorKind.BAD_BINDING


async def test_one_use_is_one_use_on_all_nodes(world: Any, store: SqlEabStore, url: str) -> None:
    other = await Database.open(url)
    stores = [store, SqlEabStore(other)]
    await store.create_eab(eab_key(world), b"secret", [])
    tries = [stores[n % 2].bind_account(registration(world, f"account-{n}"), world.now, []) for n in range(10)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert len([result for result in results if not isinstance(result, Exception)]) == 1
    assert {result.kind for result in results if isinstance(result, CaError)} == {ErrorKind.BAD_BINDING}
    await other.close()


async def test_of_two_that_bind_one_account_both_get_it(world: Any, store: SqlEabStore, url: str) -> None:
    other = await Database.open(url)
    stores = [store, SqlEabStore(other)]
    await store.create_eab(eab_key(world), b"secret", [])
    tries = [stores[n % 2].bind_account(registration(world), world.now, []) for n in range(6)]
    results = await asyncio.gather(*tries)
    assert [result.created for result in results].count(True) == 1
    assert len({result.account for result in results}) == 1
    await other.close()


async def test_of_two_nodes_that_are_sent_one_registration_neither_refuses_it(
    world: Any, store: SqlEabStore, url: str
) -> None:
    """Each makes an account of its own, for the same key; the one external account key is used up by the first."""
    other = await Database.open(url)
    for turn in range(30):
        await store.create_eab(replace(eab_key(world), kid=f"kid-{turn}"), b"secret", [])
        wanted = []
        for name in ("one", "two"):
            made = registration(world)
            account = replace(made.account, id=f"{name}-{turn}", key_thumbprint=f"thumbprint-{turn}")
            wanted.append(replace(made, account=account, binding=replace(made.binding, kid=f"kid-{turn}")))
        both = await asyncio.gather(
            store.bind_account(wanted[0], world.now, []), SqlEabStore(other).bind_account(wanted[1], world.now, [])
        )
        assert sorted(each.created for each in both) == [False, True]
        assert both[0].account == both[1].account
    await other.close()


async def test_accounts_beyond_a_rate_use_no_key_up(world: Any, store: SqlEabStore) -> None:
    rate = parse_rate("1 per 1h")
    assert rate is not None
    draws = (Draw("acme.limits.accounts_per_network", "new accounts", "network", rate),)
    for kid in ("kid", "other"):
        await store.create_eab(eab_key(world, kid), b"secret", [])
    first = replace(registration(world), draws=draws)
    assert (await store.bind_account(first, world.now, [])).created
    assert not (await store.bind_account(first, world.now, [])).created, "it stands, and takes nothing"
    second = replace(registration(world, "second", "other"), draws=draws)
    with pytest.raises(CaError) as refused:
        await store.bind_account(second, world.now, [])
    assert (refused.value.kind, refused.value.retry_after) == (ErrorKind.RATE_LIMITED, 3600)
    found = await store.eab("other")
    assert found is not None
    assert found[0].uses == 0
    assert (await store.bind_account(second, world.now + timedelta(hours=1), [])).created


@pytest.mark.parametrize("quota", [EabPolicy(live=2), EabPolicy(rate="2 per 7d")])
async def test_a_quota_is_exact_on_all_nodes(world: Any, store: SqlEabStore, url: str, quota: EabPolicy) -> None:
    other = await Database.open(url)
    nodes = [SqlIssuanceStore(world.database), SqlIssuanceStore(other)]
    await store.create_eab(eab_key(world, policy=quota), b"secret", [])
    await store.bind_account(registration(world, "account-1"), world.now, [])
    claim = EabClaim("kid", ("dns:a.example.test",))
    tries = [nodes[n % 2].reserve(world.intent(f"race-{n}"), b"c" * 32, [], claim=claim) for n in range(12)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert results.count(None) == 2
    assert {each.kind for each in results if isinstance(each, CaError)} == {ErrorKind.RATE_LIMITED}
    await other.close()


async def test_a_retry_takes_nothing_from_the_rate_and_needs_a_place_again(world: Any, store: SqlEabStore) -> None:
    issuance = SqlIssuanceStore(world.database)
    policy = EabPolicy(live=1, rate="2 per 7d")
    await store.create_eab(eab_key(world, policy=policy), b"secret", [])
    await store.bind_account(registration(world, "account-1"), world.now, [])
    claim = EabClaim("kid", ("dns:a.example.test",))

    async def reserve(transaction: str) -> str:
        intent = world.intent(transaction)
        await issuance.reserve(intent, b"c" * 32, [], claim=claim)
        return str(intent.id)

    async def refused(transaction: str) -> str | None:
        with pytest.raises(CaError) as error:
            await reserve(transaction)
        return error.value.rule

    first = await reserve("first")
    assert await refused("second") == "eab.live"
    await issuance.abandon(first, "test", [])
    second = await reserve("second")
    assert await refused("first") == "eab.live", "the second has its place now"
    await issuance.abandon(second, "test", [])
    await issuance.abandon(await reserve("first"), "test", [])
    assert await refused("third") == "eab.rate"
    await reserve("second")
