"""Each validation attempt is kept with what it saw, and the life of an order can be told from what is kept."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web
from sqlalchemy.exc import IntegrityError

from ca_server.cli.acme_described import events_of, objects_of, order_description
from ca_server.domain.accounts import AccountStatus
from ca_server.store.acme_attempts import insert_attempt
from ca_server.store.acme_records import OrderSearch, SqlAcmeRecords
from ca_server.store.audit import SqlAuditStore
from protocols.acme.model import Attempt, OrderStatus
from protocols.acme.validation import Sightings, ValidationProblem

ONE_DATABASE = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
NOW = datetime.now(UTC)
LATER = timedelta(days=400)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """No pause between two attempts."""
    monkeypatch.setattr("protocols.acme.validating._PAUSES", (0.0,))


@pytest.fixture
def records(world):
    return SqlAcmeRecords(world.database, "default")


def id_of(url):
    return url.rpartition("/")[2]


async def record_of(records, order):
    found = await records.order(id_of(order.headers["Location"]))
    assert found is not None
    return found


def attempts_of(record):
    return [attempt for attempts in record.attempts.values() for attempt in attempts]


async def described(world, record):
    events = await events_of(SqlAuditStore(world.database), objects_of(record.order))
    return order_description(record, None, events, datetime.now(UTC))


async def fail(client, *names, kind="http-01"):
    order = await client.order(*names)
    for url in order.json["authorizations"]:
        found = (await client.post(url)).json
        await client.post(next(each["url"] for each in found["challenges"] if each["type"] == kind), {})
        await client.poll(url, "pending")
    return order


@ONE_DATABASE
async def test_an_http_01_attempt_tells_address_port_and_answer(world, records):
    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    (attempt,) = attempts_of(await record_of(records, order))
    assert (attempt.number, attempt.outcome, attempt.detail) == (1, "valid", "")
    assert attempt.front.startswith("node/front-1/")
    assert NOW - timedelta(minutes=1) < attempt.started_at <= datetime.now(UTC)
    assert timedelta(0) <= attempt.duration < timedelta(minutes=1)
    request, answer = attempt.seen
    assert request.startswith(f"GET http://a.test:{world.web.port}/.well-known/acme-challenge/")
    assert request.endswith(" at 127.0.0.1")
    assert answer.startswith(f"127.0.0.1 port {world.web.port} answered 200, ")


@ONE_DATABASE
async def test_an_attempt_at_dns_01_tells_the_records(world, records):
    world.dns.records["_acme-challenge.a.test", "TXT"] = ['"wrong"', '"evil\\010\\027[31m"']
    order = await fail(await world.client(), "a.test", kind="dns-01")
    attempts = attempts_of(await record_of(records, order))
    assert [attempt.number for attempt in attempts] == [1, 2]
    assert {attempt.outcome for attempt in attempts} == {"incorrectResponse"}
    for attempt in attempts:
        assert attempt.seen[0] == "TXT _acme-challenge.a.test: 2 records"
        assert set(attempt.seen[1:]) == {
            "TXT _acme-challenge.a.test: 'wrong'",
            "TXT _acme-challenge.a.test: 'evil\\n\\x1b[31m'",
        }
        assert "expected" in attempt.detail


@ONE_DATABASE
async def test_an_attempt_at_tls_alpn_01_tells_each_address(world, records):
    world.resolve("a.test")
    policy = replace(world.options.validation, tls_alpn_01_port=world.web.port)
    await world.serve(replace(world.options, validation=policy))
    order = await fail(await world.client(), "a.test", kind="tls-alpn-01")
    attempts = attempts_of(await record_of(records, order))
    assert [attempt.outcome for attempt in attempts] == ["tls", "tls"]
    assert all(attempt.seen == (f"127.0.0.1 port {world.web.port}: connected",) for attempt in attempts)


@ONE_DATABASE
async def test_what_a_redirect_led_to_is_told_without_its_content(world, records):
    world.resolve("a.test", "b.test")
    client = await world.client()
    order = await client.order("a.test")
    found = (await client.post(order.json["authorizations"][0])).json
    challenge = next(each for each in found["challenges"] if each["type"] == "http-01")
    path = f"/.well-known/acme-challenge/{challenge['token']}"
    target = f"http://b.test:{world.web.port}/secret"
    world.web.answers[path] = lambda: web.Response(status=302, headers={"Location": target})
    world.web.answers["/secret"] = lambda: web.Response(text="inside")
    await client.post(challenge["url"], {})
    await client.poll(order.json["authorizations"][0], "pending")
    seen = attempts_of(await record_of(records, order))[0].seen
    assert [line.split(", ")[0] for line in seen[1::2]] == [
        f"127.0.0.1 port {world.web.port} answered 302",
        f"127.0.0.1 port {world.web.port} answered 200",
    ]
    assert target in seen[1]
    assert "inside" not in "".join(seen)


@ONE_DATABASE
async def test_what_is_seen_is_printable_and_bounded(world, records):
    class Talkative:
        type = "dns-01"

        def applies(self, identifier, wildcard):
            return True

        async def validate(self, target):
            for number in range(100):
                target.sightings.note(f"{number}\x1b[2J\n" + "x" * 5000)
            return ValidationProblem("dns", "\x00" * 9000, retryable=False)

    world.front._validating._validators["dns-01"] = Talkative()
    order = await fail(await world.client(), "a.test", kind="dns-01")
    (attempt,) = attempts_of(await record_of(records, order))
    assert len(attempt.seen) == 12
    assert all(len(line) == 300 and line.isprintable() for line in attempt.seen)
    assert len(attempt.detail) == 500
    assert attempt.detail.isprintable()


@ONE_DATABASE
async def test_attempts_of_a_challenge_are_bounded_by_the_configuration(world, records):
    await world.serve(replace(world.options, validation_attempts=3))
    order = await fail(await world.client(), "a.test", kind="dns-01")
    attempts = attempts_of(await record_of(records, order))
    assert [attempt.number for attempt in attempts] == [1, 2, 3]


async def test_an_attempt_is_kept_with_the_change_or_not_at_all(world):
    """Of two attempts of one number the second undoes all of its transaction."""
    order = await fail(await world.client(), "a.test", kind="dns-01")
    assert order.status == 201
    (challenge,) = {row[0] for row in await world.query("SELECT challenge_id FROM acme_attempts")}
    attempt = Attempt(1, NOW, timedelta(0), "node/front-1/x", (), "valid")
    with pytest.raises(IntegrityError):
        await world.database.write(lambda connection: insert_attempt(connection, challenge, attempt))


async def test_attempts_are_forgotten_with_their_order(world):
    await fail(await world.client(), "a.test", kind="dns-01")
    assert await world.count("acme_attempts") == 2
    store = world.front._store
    expired = await store.expired_orders(datetime.now(UTC) + LATER, 10)
    await store.forget_orders(expired)
    assert await world.count("acme_orders") == await world.count("acme_attempts") == 0


async def test_the_life_of_an_order(world, records, csr):
    world.resolve("a.test")
    client = await world.client()
    order = await client.ready("a.test")
    assert (await client.finalize(order, csr("other.test"))).status == 400
    await client.finalize(order, csr("a.test"))
    await client.poll(order.headers["Location"], "processing")
    told = await described(world, await record_of(records, order))
    assert (told["status"], told["names"], told["error"]) == ("valid", ["dns:a.test"], None)
    assert told["account"]["id"] == id_of(client.kid)
    assert told["account"]["key_thumbprint"] == client.key.thumbprint
    assert told["csr"]["key"] == "ec-p256"
    assert told["csr"]["names"] == ["dns:a.test"]
    assert told["source"] == "127.0.0.1"
    (authorization,) = told["authorizations"]
    assert (authorization["status"], authorization["reused"]) == ("valid", False)
    (tried,) = [each for each in authorization["challenges"] if each["attempts"]]
    assert (tried["type"], tried["status"], tried["attempts"][0]["outcome"]) == ("http-01", "valid", "valid")
    assert [event["type"] for event in told["events"]] == [
        *("order.created", "challenge.validated", "issuance.refused"),
        *("issuance.reserved", "issuance.stored"),
    ]
    (refused,) = [event for event in told["events"] if event["type"] == "issuance.refused"]
    assert (refused["rule"], refused["outcome"]) == ("csr.names", "denied")
    assert refused["request_id"]


@ONE_DATABASE
async def test_what_was_refused_before_there_was_an_order_is_told_of_its_account(world):
    client = await world.client()
    await client.order("a.elsewhere.example")
    events = await events_of(SqlAuditStore(world.database), [f"acme:{id_of(client.kid)}"])
    assert [(event["type"], event.get("rule")) for event in events] == [
        ("account.created", None),
        ("issuance.refused", "names.dns"),
    ]


@ONE_DATABASE
async def test_an_attempt_at_dns_persist_01_tells_each_lookup(world, records):
    policy = replace(world.options.validation, issuer_domain_names=("ca.example.test",))
    await world.serve(replace(world.options, validation=policy, challenges=("dns-persist-01",)))
    world.dns.records["_validation-persist.a.b.test", "TXT"] = ['"other.example; accounturi=x"']
    order = await fail(await world.client(), "a.b.test", kind="dns-persist-01")
    (attempt, _again) = attempts_of(await record_of(records, order))
    assert attempt.seen[:2] == (
        "TXT _validation-persist.a.b.test: 1 records",
        "TXT _validation-persist.a.b.test: 'other.example; accounturi=x'",
    )
    assert attempt.seen[2].startswith("TXT _validation-persist.b.test: ")


async def test_orders_are_found_by_name_account_status_and_time(world, records):
    world.resolve("a.test", "b.a.test")
    one, two = await world.client(), await world.client()
    made = [await one.order("a.test"), await one.ready("b.a.test"), await two.order("*.a.test", "c.test")]
    ids = [id_of(order.headers["Location"]) for order in made]

    async def found(search, limit=10, after=None, now=NOW):
        page = await records.orders(search, now, limit, after)
        return [line.order.id for line in page.lines]

    assert await found(OrderSearch()) == ids[::-1]
    assert await found(OrderSearch(name="a.test")) == [ids[2], ids[0]]
    assert await found(OrderSearch(name=".a.test")) == [ids[2], ids[1]]
    assert await found(OrderSearch(account_id=id_of(two.kid))) == [ids[2]]
    assert await found(OrderSearch(status=OrderStatus.READY)) == [ids[1]]
    assert await found(OrderSearch(status=OrderStatus.INVALID), now=NOW + LATER) == ids[::-1], "they expired"
    assert await found(OrderSearch(since=datetime.now(UTC) + timedelta(hours=1))) == []
    assert await found(OrderSearch(), limit=2) == ids[:0:-1]
    assert await found(OrderSearch(), after=ids[1]) == ids[:1]
    page = await records.orders(OrderSearch(), NOW, 2, None)
    assert (page.more, page.last) == (True, ids[1])
    assert not (await records.orders(OrderSearch(), NOW, 3, None)).more


@ONE_DATABASE
async def test_a_search_goes_on_where_it_gave_up(world, records, monkeypatch):
    monkeypatch.setattr("ca_server.store.acme_records._PAGE", 1)
    monkeypatch.setattr("ca_server.store.acme_records.MOST_LOOKED_AT", 2)
    client = await world.client()
    orders = [await client.order(name) for name in ("wanted.test", "b.test", "c.test")]
    page = await records.orders(OrderSearch(name="wanted.test"), NOW, 10, None)
    assert (page.lines, page.more, page.last) == ((), True, id_of(orders[1].headers["Location"]))
    page = await records.orders(OrderSearch(name="wanted.test"), NOW, 10, page.last)
    assert [line.order.id for line in page.lines] == [id_of(orders[0].headers["Location"])]


async def test_accounts_are_found(world, records):
    first, second = await world.client(), await world.client()
    await first.post(first.kid, {"contact": ["mailto:ops%team@corp.test"]})
    await second.post(second.kid, {"status": "deactivated"})
    ids = [id_of(first.kid), id_of(second.kid)]

    async def found(**criteria):
        return [account.id for account in await records.accounts(**{"limit": 10} | criteria)]

    assert await found() == ids[::-1]
    assert await found(contact="ops%team@") == ids[:1]
    assert await found(contact="o%t") == []
    assert await found(status=AccountStatus.DEACTIVATED) == ids[1:]
    assert await found(eab_kid="none") == []
    assert await found(limit=1) == ids[1:]
    assert await found(after=ids[1]) == ids[:1]
    assert (await records.account(ids[0])).orders == 0


async def test_another_tenants_are_not_shown(world):
    client = await world.client()
    order = await client.order("a.test")
    other = SqlAcmeRecords(world.database, "other")
    assert await other.order(id_of(order.headers["Location"])) is None
    assert await other.account(id_of(client.kid)) is None
    assert await other.accounts(limit=10) == ()
    assert (await other.orders(OrderSearch(), NOW, 10, None)).lines == ()


def test_sightings_are_cut_and_printable():
    sightings = Sightings()
    sightings.note("a\tb")
    assert sightings.lines == ("a?b",)
