"""What a simulation says is what the server does, and it leaves nothing behind."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from attestations import Chain
from cryptography.hazmat.primitives.asymmetric import ec

from ca_server.bootstrap.simulation import Question, Verdict, decide_order
from ca_server.core.csr import parse_csr
from ca_server.domain.errors import CaError
from ca_server.domain.rates import parse_rate
from ca_server.store.acme_rehearsal import RehearsalStore
from protocols.acme.attestation import Roots
from protocols.acme.limits import Limits

ONE_DATABASE = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
NOW = datetime.now(UTC)
TABLES = (
    "acme_accounts",
    "acme_attempts",
    "acme_authorizations",
    "acme_caa",
    "acme_challenges",
    "acme_limits",
    "acme_nonces",
    "acme_orders",
    "audit_events",
    "certificates",
    "enrollments",
    "intents",
)


def id_of(url):
    return url.rpartition("/")[2]


@pytest.fixture
def ask(world):
    """Asks what would be decided, and sees that no row was written and nothing signed."""

    async def simulated(client, *names, profile="default", csr_der=None, challenge=""):
        before = {table: await world.query(f"SELECT * FROM {table}") for table in TABLES}
        steps = await decide_order(
            Question(id_of(client.kid), profile, names, csr_der),
            options=world.options,
            store=RehearsalStore(world.database, "default", challenge),
            pipeline=world.core.issuance,
            profiles=world.profiles,
            events=world.events("simulation"),
        )
        assert {table: await world.query(f"SELECT * FROM {table}") for table in TABLES} == before
        return steps

    return simulated


def names_of(steps):
    return [step.name for step in steps]


def denial_or_none(steps):
    return next((step.rule for step in steps if step.verdict is not Verdict.ALLOW), None)


def denial(steps):
    (denied,) = [step for step in steps if step.verdict is not Verdict.ALLOW]
    assert denied is steps[-1]
    return denied.name, denied.verdict.value, denied.rule


async def test_what_would_be_issued(world, ask):
    steps = await ask(await world.client(), "a.test", "127.0.0.1")
    assert {step.verdict for step in steps} == {Verdict.ALLOW}
    assert names_of(steps) == [
        *("account", "names", "limits", "authorization", "authorization"),
        *("csr", "certificate", "lint"),
    ]
    told = {step.name: step.detail for step in steps}
    assert "issuer issuing" in told["certificate"]
    assert told["authorization"].startswith("127.0.0.1: to be shown by one of http-01, ")
    assert world.core.asked == []


async def test_a_valid_authorization_would_be_reused(world, ask):
    world.resolve("a.test")
    client = await world.client()
    await client.ready("a.test")
    steps = await ask(client, "a.test", "b.test")
    reused, made = [step.detail for step in steps if step.name == "authorization"]
    assert reused.startswith("a.test: a valid one is reused, until ")
    assert made.startswith("b.test: to be shown by one of ")


async def refused_order(client, *names, csr=None):
    """The rule with which the server refuses: of its last event."""
    order = await client.order(*names)
    if order.status == 201 and csr is not None:
        await client.authorize(order, "dns-01")
        assert (await client.finalize(order, csr)).status >= 400
    return (await client.world.query("SELECT rule FROM audit_events ORDER BY id DESC LIMIT 1"))[0][0]


@ONE_DATABASE
@pytest.mark.parametrize("names", [("a.elsewhere.example",), ("192.0.2.1", "a.test")], ids=["dns", "ip"])
async def test_names_that_policy_denies(world, ask, names):
    client = await world.client()
    name, verdict, rule = denial((await ask(client, *names))[:2])
    assert (name, verdict) == ("names", "deny")
    assert rule == await refused_order(client, *names)


@ONE_DATABASE
async def test_what_is_wrong_with_each_name_is_told(world, ask):
    steps = await ask(await world.client(), "a.test", "b.example", "c.example")
    assert [step.detail.partition(": ")[0] for step in steps[2:]] == ["dns:b.example", "dns:c.example"]
    assert {step.rule for step in steps[1:]} == {"names.dns"}


@ONE_DATABASE
async def test_a_csr_that_is_denied(world, ask, csr):
    client = await world.client()
    wrong = csr("b.test")
    assert denial(await ask(client, "a.test", csr_der=wrong)) == ("csr", "deny", "csr.names")
    assert await refused_order(client, "a.test", csr=wrong) == "csr.names"


@ONE_DATABASE
async def test_the_accounts_own_key_is_denied(world, ask, csr):
    client = await world.client()
    own = csr("a.test", key=client.key.private)
    assert denial(await ask(client, "a.test", csr_der=own)) == ("csr", "deny", "csr.account_key")


async def test_a_blocked_key_is_denied(world, ask, csr):
    der = csr("a.test", key=ec.generate_private_key(ec.SECP256R1()))
    await world.block(parse_csr(der).spki_sha256)
    assert denial(await ask(await world.client(), "a.test", csr_der=der))[::2] == ("csr", "keys.blocklist")


@ONE_DATABASE
async def test_what_the_core_alone_denies(world, ask):
    """Here: a profile that was withdrawn between the front's look and the core's."""
    client = await world.client()
    admission = world.core.issuance._admission
    standing = admission._profiles
    admission._profiles = type(standing)(standing._store, {})
    try:
        assert denial(await ask(client, "a.test"))[::2] == ("certificate", "profile.unknown")
    finally:
        admission._profiles = standing


@ONE_DATABASE
async def test_approval_holds(world, ask):
    client = await world.client(profile="held")
    assert denial(await ask(client, "a.test", profile="held")) == ("certificate", "hold", "approval")


@ONE_DATABASE
async def test_accounts_that_may_do_nothing(world, ask):
    client = await world.client()
    await client.post(client.kid, {"status": "deactivated"})
    assert denial(await ask(client, "a.test")) == ("account", "deny", "unauthorized")
    client.kid = "nobody"
    assert denial(await ask(client, "a.test")) == ("account", "deny", "accountDoesNotExist")


@ONE_DATABASE
async def test_terms_that_were_not_agreed_to(world, ask):
    client = await world.client()
    world.options = replace(world.options, terms_of_service="https://ca.example.test/terms")
    assert denial(await ask(client, "a.test"))[::2] == ("names", "userActionRequired")


@ONE_DATABASE
@pytest.mark.parametrize("profile", ["nowhere", "inside"])
async def test_profiles_that_are_not_for_it(world, ask, profile):
    rule = {"nowhere": "malformed", "inside": "profile.frontends"}[profile]
    assert denial(await ask(await world.client(), "a.test", profile=profile)) == ("names", "deny", rule)


@ONE_DATABASE
@pytest.mark.parametrize(
    ("mode", "challenge", "verdict"),
    [("enforce", "dns-01", "deny"), ("enforce", "http-01", "allow"), ("log", "dns-01", "allow"), ("off", "", None)],
)
async def test_caa_is_looked_up(world, ask, mode, challenge, verdict):
    world.options = replace(world.options, caa_identities=("ca.test",))
    world.dns.records["a.test", "CAA"] = ['0 issue "ca.test; validationmethods=http-01"']
    await world.put_in_force(world.bodies | {"default": f'caa = "{mode}"\n' + world.bodies["default"]})
    steps = await ask(await world.client(), "a.test", challenge=challenge)
    caa = [step for step in steps if step.name == "caa"]
    assert [step.verdict.value for step in caa] == ([] if verdict is None else [verdict])
    if verdict == "deny":
        assert denial(steps)[::2] == ("caa", "acme.caa")
        assert "validationmethods" in caa[0].detail
    else:
        assert steps[-1].name == "lint"


async def test_limits_are_looked_at_and_not_drawn_on(world, ask):
    world.options = replace(world.options, limits=Limits(orders_per_account=parse_rate("2 per 1h")))
    await world.serve()
    client = await world.client()
    for _ in range(2):
        for _ in range(3):
            assert denial_or_none(await ask(client, "a.test")) is None
        assert (await client.order("a.test")).status == 201
    assert denial(await ask(client, "a.test")) == ("limits", "deny", "acme.limits.orders_per_account")
    assert (await client.order("a.test")).problem == "rateLimited"


async def test_unfinished_orders_are_counted(world, ask):
    world.options = replace(world.options, max_open_orders=1)
    client = await world.client()
    await client.order("a.test")
    assert denial(await ask(client, "a.test")) == ("limits", "deny", "acme.max_open_orders")


async def test_limits_on_certificates(world, ask):
    client = await world.client()
    world.options = replace(world.options, limits=Limits(certificates_per_name=parse_rate("1 per 1h")))
    await world.serve()
    await client.issue("a.test", kind="dns-01")
    assert denial(await ask(client, "a.test")) == ("limits", "deny", "acme.limits.certificates_per_name")
    assert denial_or_none(await ask(client, "b.test")) is None


@ONE_DATABASE
async def test_whatever_would_be_written_is_an_error(world):
    """A change of the server that writes elsewhere must not make a simulation write."""
    store = RehearsalStore(world.database, "default")
    for write in (store.prune(NOW, 1), store.forget_orders(["a"]), store.deactivate_account("a", b"{}", [], None)):
        with pytest.raises(CaError, match="writes nothing"):
            await write


@ONE_DATABASE
@pytest.mark.parametrize(
    ("members", "rule"),
    [({"profiles": ("default",)}, "eab.profile"), ({"names": ("b.test",)}, "eab.names"), ({"live": 1}, "eab.live")],
    ids=["profile", "names", "quota"],
)
async def test_what_is_bound_to_an_external_account_key(world, ask, bound, members, rule):
    client, _kid = await bound(**members)
    if rule == "eab.live":
        assert denial_or_none(await ask(client, "a.test")) is None
        await client.issue("a.test", kind="dns-01")
    steps = await ask(client, "a.test", profile="holdable" if rule == "eab.profile" else "default")
    assert steps[-1].rule == rule
    assert {step.name for step in steps if step.verdict is Verdict.DENY} == {"names"}
    assert "let in by the external account key" in steps[0].detail


@ONE_DATABASE
async def test_a_device_counts_as_having_attested_the_key_of_the_csr(world, ask, csr):
    roots = Roots({"apple": (Chain.of("Apple").root.certificate,)})
    world.options = replace(world.options, validation=replace(world.options.validation, attestation_roots=roots))
    body = world.bodies["default"].replace("[names]", '[names]\npermanent_identifiers = ["SN*"]')
    await world.put_in_force(world.bodies | {"default": body.replace("server_auth", "client_auth")})
    for csr_der in (csr(), None):
        steps = await ask(await world.client(), "permanent-identifier:SN1", csr_der=csr_der)
        assert denial_or_none(steps) is None, steps
        assert steps[-1].name == "lint"
        assert [step.detail for step in steps if step.name == "authorization"] == [
            "SN1: to be shown by one of device-attest-01"
        ]
