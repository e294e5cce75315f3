"""CAA in front of issuance (RFC 8659, RFC 8657): refused, logged, kept for a while, and held against what is signed."""

import asyncio
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ca_server.domain.enrollment import CaaChecked
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.names import dns_identifier
from ca_server.domain.profile_rules import CaaMode
from ca_server.store.acme import SqlAcmeStore
from ca_server.store.profiles import SqlProfileStore
from protocols.acme.caa import climbing
from protocols.acme.caa.checking import CaaChecks

CAA = "urn:ietf:params:acme:error:caa"
DNS = "urn:ietf:params:acme:error:dns"


@pytest.fixture
async def url(tmp_path, sqlite_template):
    """SQLite alone: what the database does for CAA has tests of its own on both."""
    shutil.copy(sqlite_template, tmp_path / "ca.db")
    return f"sqlite:///{tmp_path / 'ca.db'}"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(climbing, "_PAUSE", 0)
    monkeypatch.setattr("protocols.acme.issuing._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("protocols.acme.issuing._LAST_PAUSE", 0.01)


@pytest.fixture
async def world(world, profiles):
    """With the default profile enforcing CAA, and `logging` and `off` beside it."""
    world.options = replace(world.options, caa_identities=("CA.test",))
    await put(world, profiles)
    await world.serve()
    return world


async def put(world, profiles, mode="enforce"):
    default, logging = (f'caa = "{each}"\n' + profiles["default"] for each in (mode, "log"))
    await world.put_in_force(profiles | {"default": default, "logging": logging, "off": profiles["default"]})


def caa_asked(world):
    return [name for name, kind in world.dns.asked if kind == "CAA"]


async def finalized(world, client, csr, *names, kind="http-01"):
    """The order once it is settled."""
    world.resolve(*(name.removeprefix("*.") for name in names))
    order = await client.ready(*names, kind=kind)
    await client.finalize(order, csr(*names))
    return await client.poll(order.headers["Location"], "processing")


async def test_names_without_records_pass_and_what_was_checked_is_what_is_signed(world, csr):
    client = await world.client()
    world.dns.authenticated = True
    found = await finalized(world, client, csr, "a.test", "b.a.test")
    assert found["status"] == "valid"
    assert sorted(caa_asked(world)) == ["a.test", "b.a.test", "test"]
    request = world.core.asked[-1]
    assert {(item.identifier.value, item.authenticated) for item in request.caa} == {
        ("a.test", True),
        ("b.a.test", True),
    }
    (checked,) = await world.audit("caa.checked")
    assert checked["outcome"] == "success"
    assert checked["names"] == ["dns:a.test", "dns:b.a.test"]
    assert checked["extra"]["mode"] == "enforce"
    assert (
        "a.test: no CAA record at a.test or above it (RFC 8659 section 3), authenticated" in checked["extra"]["found"]
    )
    (stored,) = (each for each in await world.audit("issuance.stored") if each["profile"] == "default")
    assert (stored["extra"]["caa_checked"], stored["extra"]["caa_authenticated"]) == ("2 names", "2 names")
    assert world.caa == [("enforce", "allowed")]


async def test_the_directory_names_this_ca_as_records_do(world):
    """RFC 8555 section 9.7.6."""
    for profile in ("", "off/"):
        answer = await world.send("GET", f"https://ca.example.test:8443/acme/{profile}directory")
        assert answer.json["meta"]["caaIdentities"] == ["CA.test"]


async def test_an_order_that_records_forbid_is_invalid_with_a_subproblem_for_each_name(world, csr):
    client = await world.client()
    world.dns.records = {
        ("a.test", "CAA"): ['0 issue "other.example"'],
        ("sub.test", "CAA"): ['0 issue "ca.test"', '128 tbs "?"'],
        ("fine.test", "CAA"): ['0 issue "ca.TEST"'],
    }
    names = ("a.test", "x.sub.test", "fine.test")
    found = await finalized(world, client, csr, *names)
    assert found["status"] == "invalid"
    error = found["error"]
    assert (error["type"], error["status"], error["rule"]) == (CAA, 403, "acme.caa")
    assert {(each["identifier"]["value"], each["type"], each["rule"]) for each in error["subproblems"]} == {
        ("a.test", CAA, "acme.caa"),
        ("x.sub.test", CAA, "acme.caa"),
    }
    details = {each["identifier"]["value"]: each["detail"] for each in error["subproblems"]}
    assert details["a.test"] == (
        'a.test has CAA 0 issue "other.example", which names another CA (RFC 8659 section 4.2)'
    )
    assert details["x.sub.test"].startswith('sub.test has CAA 128 tbs "?", which is critical')
    assert world.core.asked == []
    (refused,) = await world.audit("issuance.refused")
    assert refused["rule"] == "acme.caa"
    assert 'a.test has CAA 0 issue "other.example"' in refused["reason"]
    (checked,) = await world.audit("caa.checked")
    assert (checked["outcome"], checked["rule"]) == ("denied", "acme.caa")
    assert "fine.test has CAA" in checked["extra"]["found"]
    assert world.caa == [("enforce", "refused")]
    # A record that was corrected counts at once.
    world.dns.records["a.test", "CAA"] = ['0 issue "ca.test"']
    world.dns.records["sub.test", "CAA"] = ['0 issue "ca.test"']
    assert (await finalized(world, client, csr, *names))["status"] == "valid"


async def test_parameters_bind_the_account_and_the_method(world, csr):
    client, stranger = await world.client(), await world.client()
    world.dns.records["a.test", "CAA"] = [f'0 issue "ca.test; accounturi={client.kid}; validationmethods=http-01"']
    assert (await finalized(world, client, csr, "a.test"))["status"] == "valid"
    refused = await finalized(world, stranger, csr, "a.test")
    assert "for another account (RFC 8657 section 3)" in refused["error"]["detail"]
    world.dns.records["b.test", "CAA"] = ['0 issue "ca.test; validationmethods=dns-01"']
    refused = await finalized(world, client, csr, "b.test")
    assert "does not list http-01" in refused["error"]["detail"]
    world.dns.records["c.test", "CAA"] = ['0 issue ";"', '0 issuewild "ca.test; validationmethods=dns-01"']
    assert (await finalized(world, client, csr, "*.c.test", kind="dns-01"))["status"] == "valid"
    both = await finalized(world, client, csr, "*.c.test", "c.test", kind="dns-01")
    (subproblem,) = both["error"]["subproblems"]
    assert subproblem["identifier"] == {"type": "dns", "value": "c.test"}


@pytest.mark.parametrize("how", ["failing", "silent"])
async def test_no_answer_is_no_permission(world, csr, how):
    client = await world.client()
    network = replace(world.options.validation, dns_timeout=0.1)
    await world.serve(replace(world.options, validation=network))
    getattr(world.dns, how).add(("test", "CAA"))
    found = await finalized(world, client, csr, "a.test")
    assert (found["status"], found["error"]["type"]) == ("invalid", CAA)
    (subproblem,) = found["error"]["subproblems"]
    assert subproblem["type"] == DNS
    assert subproblem["detail"].startswith("CAA of a.test is not known (RFC 8659 section 3): ")
    assert "no nameserver" in subproblem["detail"]
    assert "CAA of test" in subproblem["detail"]
    assert world.caa == [("enforce", "failed")]
    assert await world.count("acme_caa") == 0
    getattr(world.dns, how).clear()
    assert (await finalized(world, client, csr, "a.test"))["status"] == "valid"


async def test_where_refusals_are_logged_the_order_goes_on(world, csr):
    client = await world.client(profile="logging")
    world.dns.records["a.test", "CAA"] = ['0 issue "other.example"']
    world.dns.failing.add(("b.test", "CAA"))
    found = await finalized(world, client, csr, "a.test", "b.test", "c.test")
    assert found["status"] == "valid"
    (checked,) = await world.audit("caa.checked")
    assert (checked["outcome"], checked["rule"], checked["extra"]["mode"]) == ("denied", "acme.caa", "log")
    assert 'a.test has CAA 0 issue "other.example"' in checked["extra"]["found"]
    assert "CAA of b.test is not known" in checked["extra"]["found"]
    assert await world.audit("issuance.refused") == []
    assert [item.identifier.value for item in world.core.asked[-1].caa] == ["c.test"]
    assert world.caa == [("log", "refused")]


async def test_a_held_order_is_no_news_each_time_it_is_asked_for(world, csr, profiles, monkeypatch):
    monkeypatch.setattr("protocols.acme.issuing._APPROVAL_PAUSE", 0.01)
    await world.put_in_force(profiles | {"held": 'caa = "log"\n' + profiles["held"]})
    client = await world.client(profile="held")
    await world.serve(replace(world.options, finalize_wait=0.0))
    world.resolve("a.test")
    world.dns.records["a.test", "CAA"] = ['0 issue "other.example"']
    await client.finalize(await client.ready("a.test"), csr("a.test"))
    async with asyncio.timeout(10):
        while len(world.core.asked) < 5:  # noqa: ASYNC110 - what is waited for is state of the other end
            await asyncio.sleep(0.01)
    assert len(await world.audit("caa.checked")) == 1
    assert caa_asked(world) == ["a.test"]


async def test_nothing_is_done_where_the_profile_does_not_ask_for_it(world, csr, monkeypatch):
    """No lookup, no statement: neither of the store's own nor for the profile."""

    def refuse(*_arguments):
        raise AssertionError("a statement that nobody needs")

    for owner, name in ((SqlAcmeStore, "caa_lookups"), (SqlAcmeStore, "save_caa"), (SqlProfileStore, "profile_body")):
        monkeypatch.setattr(owner, name, refuse)
    off = await world.client(profile="off")
    assert (await finalized(world, off, csr, "a.test"))["status"] == "valid"
    assert world.core.asked[-1].caa == ()
    (stored,) = (each for each in await world.audit("issuance.stored") if each["profile"] == "off")
    assert "caa_checked" not in stored["extra"]
    # Addresses have no CAA records.
    enforcing = await world.client()
    order = await enforcing.ready("127.0.0.1")
    await enforcing.finalize(order, csr("127.0.0.1"))
    assert (await enforcing.poll(order.headers["Location"], "processing"))["status"] == "valid"
    assert (caa_asked(world), world.caa) == ([], [])


async def test_what_was_found_serves_other_orders_and_other_fronts_until_it_is_too_old(world, csr):
    client = await world.client()
    world.dns.records["test", "CAA"] = [f'0 issue "ca.test; accounturi={client.kid}"']
    assert (await finalized(world, client, csr, "a.test"))["status"] == "valid"
    asked = len(caa_asked(world))
    world.dns.records["test", "CAA"] = ['0 issue "other.example"']
    # Another front, and a restart: a process that has nothing in memory.
    await world.serve(process="front-2")
    assert (await finalized(world, client, csr, "a.test"))["status"] == "valid"
    assert len(caa_asked(world)) == asked
    assert len(await world.audit("caa.checked")) == 1
    # What another account may not have by it is looked up again.
    stranger = await world.client()
    assert "another CA" in (await finalized(world, stranger, csr, "a.test"))["error"]["detail"]
    assert len(caa_asked(world)) == 2 * asked
    # What is too old is not asked at all.
    await world.serve(replace(world.options, caa_max_age=timedelta(0)), process="front-3")
    world.dns.records["test", "CAA"] = ['0 issue "ca.test"']
    assert (await finalized(world, client, csr, "a.test"))["status"] == "valid"
    assert len(caa_asked(world)) == 3 * asked
    before = datetime.now(UTC) - timedelta(hours=8, seconds=1)
    await world.serve(process="front-4")
    async with asyncio.timeout(10):
        while world.front._retention_due < datetime.now(UTC):  # noqa: ASYNC110 - its first cleaning
            await asyncio.sleep(0.005)
    await world.execute(f"UPDATE acme_caa SET checked_at = {int(before.timestamp() * 1_000_000)}")
    assert (await finalized(world, client, csr, "a.test"))["status"] == "valid"
    assert len(caa_asked(world)) == 4 * asked


async def test_old_lookups_are_forgotten(world, csr):
    client = await world.client()
    await finalized(world, client, csr, "a.test", "b.test")
    await world.execute("UPDATE acme_caa SET checked_at = 1 WHERE name = 'a.test'")
    world.front._retention_due = datetime.now(UTC)
    await world.front._forget()
    assert await world.query("SELECT name FROM acme_caa") == [("b.test",)]


async def test_the_stricter_of_the_order_and_the_day_counts(world, csr, profiles):
    """An order may wait between two changes of its profile; neither day's word is lost."""
    world.dns.records["test", "CAA"] = ['0 issue "other.example"']
    world.resolve("a.test")
    client = await world.client()
    for first, then in (("off", "enforce"), ("enforce", "off"), ("log", "enforce")):
        await put(world, profiles, first)
        order = await client.ready("a.test")
        await put(world, profiles, then)
        await client.finalize(order, csr("a.test"))
        found = await client.poll(order.headers["Location"], "processing")
        assert (found["status"], found["error"]["type"]) == ("invalid", CAA)


# --- The core -----------------------------------------------------------------------------------------------------


async def test_the_core_signs_no_name_that_was_not_checked(world, csr, profiles):
    client = await world.client()
    world.resolve("a.test", "b.test")
    world.core.outages = 1_000_000
    await world.serve(replace(world.options, finalize_wait=0.0))
    order = await client.ready("*.a.test", "a.test", "b.test", kind="dns-01")
    await client.finalize(order, csr("*.a.test", "a.test", "b.test"))
    async with asyncio.timeout(10):
        while not world.core.asked:  # noqa: ASYNC110 - what is waited for is state of the other end
            await asyncio.sleep(0.005)
    request = world.core.asked[-1]
    checked = {item.identifier.value: item for item in request.caa}
    assert checked.keys() == {"*.a.test", "a.test", "b.test"}
    old = replace(checked["b.test"], checked_at=datetime.now(UTC) - timedelta(hours=10))
    foreign = CaaChecked(dns_identifier("other.test"), datetime.now(UTC), authenticated=True)
    for caa in (
        (),
        (checked["a.test"], checked["b.test"]),
        (checked["*.a.test"], checked["b.test"]),
        (checked["*.a.test"], checked["a.test"], old),
        (checked["*.a.test"], checked["a.test"], foreign),
    ):
        with pytest.raises(CaError) as refused:
            await world.core.issuance.issue(replace(request, caa=caa))
        assert refused.value.rule == "names.caa"
    assert {event["rule"] for event in await world.audit("issuance.refused")} == {"names.caa"}
    await put(world, profiles, "off")
    with pytest.raises(CaError, match="were not checked"):
        await world.core.issuance.issue(replace(request, caa=()))
    assert (await world.core.issuance.issue(request)).profile == "default"


@pytest.mark.parametrize("forgetful", [2, 1000])
async def test_a_front_that_did_not_know_that_caa_is_enforced_is_told_and_looks(world, csr, monkeypatch, forgetful):
    """A front takes up a changed profile a moment after the core; one that never does gets nothing."""
    client = await world.client()
    modes = iter([CaaMode.OFF] * forgetful)

    async def mode(_self, _order):
        return next(modes, CaaMode.ENFORCE)

    monkeypatch.setattr(CaaChecks, "_mode", mode)
    found = await finalized(world, client, csr, "a.test")
    if forgetful == 2:
        assert found["status"] == "valid"
        assert [len(request.caa) for request in world.core.asked] == [0, 0, 1]
    else:
        assert (found["status"], found["error"]["rule"]) == ("invalid", "names.caa")
        assert len(world.core.asked) == 5


async def test_an_order_is_not_given_up_for_caa_while_the_core_is_at_work_on_it(world, csr):
    client = await world.client()
    world.resolve("a.test")
    order = await client.ready("a.test")
    signing, signed = asyncio.Event(), asyncio.Event()
    sign, began = world.issuing.key.sign, []

    async def slow(data):
        signing.set()
        await signed.wait()
        return await sign(data)

    async def lose(request):
        began.append(asyncio.create_task(world.core.issuance.issue(request)))
        await signing.wait()
        # By the next attempt the records forbid it.
        world.dns.records["a.test", "CAA"] = ['0 issue "other.example"']
        await world.execute("DELETE FROM acme_caa")
        raise CaError(ErrorKind.UNAVAILABLE, "the core did not answer in time")

    world.issuing.key.sign = slow
    world.core.issue = lose
    await world.serve(replace(world.options, finalize_wait=0.0))
    await client.finalize(order, csr("a.test"))
    await signing.wait()
    async with asyncio.timeout(10):
        while ("enforce", "refused") not in world.caa:  # noqa: ASYNC110 - what is waited for is state of the other end
            await asyncio.sleep(0.005)
    for _ in range(20):
        await asyncio.sleep(0.01)
        assert (await client.post(order.headers["Location"])).json["status"] == "processing"
    signed.set()
    await asyncio.gather(*began)
    assert (await client.poll(order.headers["Location"], "processing"))["status"] == "valid"


# --- Who waits for whom -------------------------------------------------------------------------------------------


async def test_names_that_answer_slowly_hold_up_their_own_order_alone(world, csr):
    client, other = await world.client(), await world.client()
    await world.serve(replace(world.options, finalize_wait=0.0))
    checks, answering = world.front._issuing._caa, asyncio.Event()
    resolver = checks._source

    class Slow:
        async def caa(self, name):
            if name == "slow.test":
                await answering.wait()
            return await resolver.caa(name)

    checks._source = Slow()
    world.resolve("slow.test")
    order = await client.ready("slow.test")
    answer = await client.finalize(order, csr("slow.test"))
    assert answer.json["status"] == "processing"
    assert (await finalized(world, other, csr, "a.test"))["status"] == "valid"
    assert (await client.post(order.headers["Location"])).json["status"] == "processing"
    answering.set()
    assert (await client.poll(order.headers["Location"], "processing"))["status"] == "valid"
