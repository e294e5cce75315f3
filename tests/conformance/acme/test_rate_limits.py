"""Rate limits over HTTP (RFC 8555 section 6.6), and the keys that they count by."""

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from ca_server.domain.names import dns_identifier, ip_identifier
from ca_server.domain.rates import parse_rate
from protocols.acme.limits import NO_LIMITS, Limits
from protocols.acme.model import Authorization, AuthorizationStatus, Order, OrderIdentifier, OrderStatus

HELP = "https://wiki.example.test/limits"
NOW = datetime(2026, 11, 1, tzinfo=UTC)


async def serve(world, **rates):
    """Serve with these limits; a second front over the same database has them too."""
    limits = Limits(**{name: parse_rate(text) for name, text in rates.items()})
    world.options = replace(world.options, limits=limits, limits_help_url=HELP)
    await world.serve()


def check_refused(answer, rule, *, retry_after):
    assert answer.status == 429
    assert answer.json["type"] == "urn:ietf:params:acme:error:rateLimited"
    assert answer.json["rule"] == rule
    assert rule in answer.json["detail"]
    assert answer.headers["Retry-After"] == str(retry_after)
    assert answer.links("help") == [HELP]
    assert answer.headers["Replay-Nonce"]


async def keys(world):
    return sorted(row[0] for row in await world.query("SELECT key FROM acme_limits"))


async def test_fact_25_orders_of_an_account(world):
    await serve(world, orders_per_account="2 per 200s")
    client, other = await world.client(), await world.client()
    for name in ("a.test", "b.test"):
        assert (await client.order(name)).status == 201
    refused = await client.order("c.test")
    check_refused(refused, "acme.limits.orders_per_account", retry_after=100)
    assert "2 per 200s" in refused.json["detail"]
    assert (await other.order("c.test")).status == 201
    assert await world.count("acme_orders") == 3
    assert world.limited == ["acme.limits.orders_per_account"]


async def test_fact_25_retry_after_is_below_600_and_the_detail_says_when(world):
    await serve(world, orders="1 per 1h")
    client = await world.client()
    await client.order("a.test")
    refused = await client.order("b.test")
    check_refused(refused, "acme.limits.orders", retry_after=599)
    assert "3600 seconds" in refused.json["detail"] or "3599 seconds" in refused.json["detail"]


async def test_another_front_has_the_same_verdict(world):
    await serve(world, orders="1 per 1h", orders_per_network="9 per 1h")
    client = await world.client()
    assert (await client.order("a.test")).status == 201
    await world.serve(process="front-2")
    assert (await client.order("b.test")).status == 429


async def test_refusals_are_on_record_as_a_count(world):
    await serve(world, orders="1 per 1h", accounts_per_network="1 per 1h")
    client = await world.client()
    await client.order("a.test")
    for _ in range(3):
        await client.order("b.test")
    await world.front.stop()
    (event,) = await world.audit("access.refused")
    assert event["rule"] == "acme.limits"
    assert event["extra"] == {"acme.limits.orders": "3", "sources": "127.0.0.1"}


async def test_accounts_of_a_network(world, new_client, new_key):
    await serve(world, accounts_per_network="2 per 1000s")
    first = await world.client()
    assert (await first.register()).status == 200, "it stands, and takes nothing"
    await world.client()
    third = new_client(world, new_key("ES256"), "")
    check_refused(await third.register(), "acme.limits.accounts_per_network", retry_after=500)
    assert await world.count("acme_accounts") == 2
    assert (await first.register()).status == 200
    assert await keys(world) == ["default/accounts_per_network/127.0.0.1/32"]


async def test_accounts_with_a_binding_are_counted_too(world, new_client, new_key, binding, external):
    await serve(world, accounts_per_network="1 per 300s")
    kid, secret = await world.eab(reusable=True)
    url = f"{external}/acme/new-account"
    for status in (201, 429):
        client = new_client(world, new_key("ES256"), "")
        answer = await client.register(externalAccountBinding=binding(client.key.jwk, url, kid, secret))
        assert answer.status == status, answer.body
    check_refused(answer, "acme.limits.accounts_per_network", retry_after=300)
    assert await world.query("SELECT uses FROM eab_keys") == [(1,)]


async def test_what_policy_refuses_takes_nothing(world):
    await serve(world, orders="1 per 1h")
    client = await world.client()
    assert (await client.order("a.elsewhere")).json["rule"] == "names.dns"
    assert await keys(world) == []
    assert (await client.order("a.test")).status == 201


async def test_certificates_of_a_name_are_taken_when_the_order_is_finalized(world, csr):
    await serve(world, certificates_per_name="1 per 400s", orders_per_account="9 per 1h")
    world.resolve("a.test", "b.test")
    client = await world.client()
    second = await client.ready("a.test", "b.test")
    await client.issue("a.test")
    assert await keys(world) == [
        "default/certificates_per_name/dns:a.test",
        f"default/orders_per_account/{client.kid.rpartition('/')[2]}",
    ]
    refused = await client.finalize(second, csr("a.test", "b.test"))
    check_refused(refused, "acme.limits.certificates_per_name", retry_after=int(refused.headers["Retry-After"]))
    assert 390 <= int(refused.headers["Retry-After"]) <= 400
    assert (await client.post(second.headers["Location"])).json["status"] == "ready"
    early = await client.order("a.test", "c.test")
    assert (early.status, early.json["rule"]) == (429, "acme.limits.certificates_per_name")
    before = await world.query("SELECT arrival FROM acme_limits WHERE key LIKE '%orders_per_account%'")
    await client.order("a.test")
    assert await world.query("SELECT arrival FROM acme_limits WHERE key LIKE '%orders_per_account%'") == before
    await client.issue("b.test")


async def test_failed_validations_of_an_account_and_name(world):
    await serve(world, failures_per_name="1 per 500s")
    world.resolve("a.test")
    client, other = await world.client(), await world.client()
    first, second = await client.order("a.test"), await client.order("a.test")
    await fail(world, client, first)
    (authorization,) = second.json["authorizations"]
    challenge = await client.challenge(authorization, "http-01")
    refused = await client.post(challenge["url"], {})
    check_refused(refused, "acme.limits.failures_per_name", retry_after=int(refused.headers["Retry-After"]))
    assert (await client.post(challenge["url"])).json["status"] == "pending"
    again = await client.order("a.test", "b.test")
    check_refused(again, "acme.limits.failures_per_name", retry_after=int(again.headers["Retry-After"]))
    assert (await client.order("b.test")).status == 201
    assert (await other.order("a.test")).status == 201


async def test_a_failure_of_the_server_itself_is_not_the_accounts(world):
    await serve(world, failures_per_name="1 per 500s")
    client = await world.client()
    order = await client.order("a.test")

    class Broken:
        type = "http-01"

        async def validate(self, _target):
            raise RuntimeError("a mistake of ours")

    world.front._validating._validators["http-01"] = Broken()
    await fail(world, client, order)
    assert await keys(world) == []


async def fail(world, client, order):
    (authorization,) = order.json["authorizations"]
    challenge = await client.challenge(authorization, "http-01")
    world.web.put(challenge["token"], "something else")
    await client.post(challenge["url"], {})
    assert (await client.poll(authorization, "pending"))["status"] == "invalid"


async def test_without_limits_no_key_is_kept(world):
    world.resolve("a.test")
    client = await world.client()
    await client.issue("a.test")
    assert await keys(world) == []


async def test_newauthz_is_held_to_failed_validations_as_orders_are(world):
    await serve(world, failures_per_name="1 per 500s")
    world.resolve("a.test")
    client = await world.client()
    await fail(world, client, await client.order("a.test"))
    name = {"identifier": {"type": "dns", "value": "a.test"}}
    refused = await client.post(f"{client.base}/new-authz", name)
    check_refused(refused, "acme.limits.failures_per_name", retry_after=int(refused.headers["Retry-After"]))
    assert await world.audit("authorization.created") == []
    other = {"identifier": {"type": "dns", "value": "b.test"}}
    assert (await client.post(f"{client.base}/new-authz", other)).status == 201


# --- Renewals -----------------------------------------------------------------------------------------------------

ALL = ("orders_per_account", "orders_per_network", "orders")
CERTIFICATES = ("certificates_per_name", "certificates_per_domain", "certificates_per_set")


async def aged(world, days):
    """Let all certificates be so many days older."""
    moved = days * 86_400_000_000
    change = ", ".join(f"{column} = {column} - {moved}" for column in ("not_before", "not_after", "issued_at"))
    await world.execute(f"UPDATE certificates SET {change}")


def certid(certificate):
    authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    serial = certificate.serial_number
    octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    return ".".join(base64.urlsafe_b64encode(each).rstrip(b"=").decode() for each in (authority, octets))


async def test_renewals_in_their_window_take_nothing(world, csr):
    await serve(world, **dict.fromkeys((*ALL, *CERTIFICATES), "1 per 30d"))
    world.resolve("a.test", "b.test")
    client = await world.client()
    leaf = (await client.issue("a.test"))[0]
    before = await world.query("SELECT key, arrival FROM acme_limits ORDER BY key")
    early = await client.order("a.test", replaces=certid(leaf))
    assert early.status == 429, "it is before its window"
    await aged(world, 70)
    assert (await client.order("a.test")).status == 429, "it does not say what it replaces"
    other = await client.order("a.test", "b.test", replaces=certid(leaf))
    assert other.status == 429, "it has other names"
    renewal = await client.order("a.test", replaces=certid(leaf))
    assert renewal.status == 201
    done = await client.finalize(renewal, csr("a.test"))
    assert done.json["status"] == "valid"
    assert await world.query("SELECT key, arrival FROM acme_limits ORDER BY key") == before
    assert (await client.order("a.test", replaces=certid(leaf))).status == 409, "it is replaced"


async def test_after_an_incident_all_may_renew(world, csr):
    await serve(world, orders_per_account="1 per 30d")
    world.resolve("a.test")
    client = await world.client()
    leaf = (await client.issue("a.test"))[0]
    assert (await client.order("a.test", replaces=certid(leaf))).status == 429
    revoked = "UPDATE certificates SET revoked_at = issued_at, revocation_reason = 0 WHERE requester_protocol = 'acme'"
    await world.execute(revoked)
    assert (await client.order("a.test", replaces=certid(leaf))).status == 201


async def test_an_expired_certificate_is_not_renewed(world):
    await serve(world, orders_per_account="1 per 30d")
    world.resolve("a.test")
    client = await world.client()
    leaf = (await client.issue("a.test"))[0]
    await aged(world, 91)
    assert (await client.order("a.test", replaces=certid(leaf))).status == 429


async def test_failed_validations_count_for_renewals_too(world):
    await serve(world, failures_per_name="1 per 500s", orders="9 per 1h")
    world.resolve("a.test")
    client = await world.client()
    leaf = (await client.issue("a.test"))[0]
    await aged(world, 70)
    await world.execute("UPDATE acme_authorizations SET status = 'expired'")
    await fail(world, client, await client.order("a.test"))
    refused = await client.order("a.test", replaces=certid(leaf))
    assert refused.json["rule"] == "acme.limits.failures_per_name"


# --- Keys ---------------------------------------------------------------------------------------------------------

RATE = parse_rate("5 per 1h")


@pytest.mark.parametrize(
    ("source", "ipv4", "ipv6", "network"),
    [
        ("192.0.2.77", 32, 64, "192.0.2.77/32"),
        ("192.0.2.77", 24, 64, "192.0.2.0/24"),
        ("::ffff:192.0.2.77", 24, 64, "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", 32, 64, "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3:4:5:6", 32, 48, "2001:db8:1::/48"),
        ("fe80::1%eth0", 32, 64, "fe80::/64"),
        (None, 32, 64, None),
        ("", 32, 64, None),
    ],
)
def test_networks(source, ipv4, ipv6, network):
    limits = Limits(accounts_per_network=RATE, ipv4_prefix=ipv4, ipv6_prefix=ipv6)
    found = [draw.key for draw in limits.new_account(source)]
    assert found == ([] if network is None else [f"default/accounts_per_network/{network}"])


def order(*names):
    identifiers = [dns_identifier(name) if name[-1].isalpha() else ip_identifier(name) for name in names]
    items = tuple(OrderIdentifier(identifier, str(identifier)) for identifier in identifiers)
    return Order("order", "account", "default", "hash", OrderStatus.PENDING, items, NOW, NOW, source="192.0.2.1")


@pytest.mark.parametrize(
    ("names", "domains"),
    [
        (("a.corp.test", "b.corp.test"), {"corp.test"}),
        (("*.corp.test", "corp.test"), {"corp.test", "test"}),
        (("test",), set()),
        (("192.0.2.1",), set()),
    ],
)
def test_domains(names, domains):
    found = Limits(certificates_per_domain=RATE).certificate(order(*names))
    assert {draw.key for draw in found} == {f"default/certificates_per_domain/{domain}" for domain in domains}


def test_a_wildcard_is_another_name_than_its_domain():
    found = Limits(certificates_per_name=RATE).certificate(order("*.a.test", "a.test"))
    assert len({draw.key for draw in found}) == 2


def test_a_set_has_no_order():
    limits = Limits(certificates_per_set=RATE)
    one, other, less = (
        limits.certificate(order(*names)) for names in (("a.test", "b.test"), ("b.test", "a.test"), ("a.test",))
    )
    assert one == other != less


def test_tenants_have_keys_of_their_own():
    limits = Limits(orders=RATE)
    assert limits.new_order(order("a.test"))[0].key != replace(limits, tenant="other").new_order(order("a.test"))[0].key


def test_what_an_order_takes_and_what_it_looks_at():
    limits = Limits(**{name: RATE for name in Limits.__slots__ if name not in {"ipv4_prefix", "ipv6_prefix", "tenant"}})
    found = limits.new_order(order("a.test", "*.a.test"))
    assert {draw.rule.rpartition(".")[2] for draw in found if draw.takes} == {
        "orders_per_account",
        "orders_per_network",
        "orders",
    }
    looked_at = [draw.rule.rpartition(".")[2] for draw in found if not draw.takes]
    assert sorted(set(looked_at)) == [
        "certificates_per_domain",
        "certificates_per_name",
        "certificates_per_set",
        "failures_per_name",
    ]
    assert looked_at.count("failures_per_name") == 1, "a name and its wildcard are validated as one"
    assert all(draw.takes for draw in limits.certificate(order("a.test")))


def test_a_validation_looks_at_what_the_order_did():
    limits = Limits(failures_per_name=RATE)
    (looked_at,) = limits.new_order(order("*.a.test"))
    authorization = Authorization(
        "id", "account", dns_identifier("a.test"), True, AuthorizationStatus.PENDING, NOW, NOW + timedelta(days=1), ()
    )
    assert limits.validation(authorization, failed=False) == (looked_at,)
    assert limits.validation(authorization, failed=True) == (replace(looked_at, takes=True),)


def test_nothing_is_limited_unless_configured():
    some = order("a.test", "b.test")
    assert (NO_LIMITS.new_account("192.0.2.1"), NO_LIMITS.new_order(some), NO_LIMITS.certificate(some)) == ((), (), ())
