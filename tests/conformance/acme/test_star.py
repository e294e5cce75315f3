"""RFC 8739: orders whose certificates the server renews by itself."""

import asyncio
from base64 import urlsafe_b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.cli.acme_described import order_description
from ca_server.domain.certificates import RevocationReason, RevocationRequest, serial_text
from ca_server.domain.errors import CaError
from ca_server.domain.rates import parse_rate
from ca_server.store.acme import SqlAcmeStore
from ca_server.store.acme_records import OrderSearch, SqlAcmeRecords
from ca_server.store.acme_retention import expired_orders, forget_orders
from protocols.acme.certid import certid_of
from protocols.acme.limits import Limits
from protocols.acme.model import OrderStatus
from protocols.acme.ports import Lessee
from protocols.acme.star.offering import StarOptions

ONE_DATABASE = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
DAY = timedelta(days=1)
LIFETIME = timedelta(days=4)
OFFERED = StarOptions(frozenset({"default"}), DAY, timedelta(days=400), allow_get=True)


def terms(**changes):
    """An auto-renewal object of twenty days."""
    end = datetime.now(UTC) + timedelta(days=20)
    asked = {"end_date": end.isoformat(), "lifetime": int(LIFETIME.total_seconds())} | changes
    return {name.replace("_", "-"): value for name, value in asked.items() if value is not None}


@pytest.fixture
async def star(world):
    """Serves with auto-renewal offered, as a front of its own."""

    async def serve(process="front-1", **options):
        await world.serve(replace(world.options, star=OFFERED, **options), process)

    await serve()
    return serve


@pytest.fixture
def issued(world, csr):
    """An order that has its first certificate, with its client."""

    async def issue(client=None, name="a.test", key=None, **changes):
        world.resolve(name)
        client = client or await world.client()
        order = await client.order(name, **{"auto-renewal": terms(**changes)})
        assert order.status == 201, order.body
        await client.authorize(order)
        done = await client.finalize(order, csr(name, key=key))
        assert done.json["status"] == "valid", done.body
        return client, done

    return issue


async def renew(world, later=None, front=None):
    """Move the clock, and have what is due renewed."""
    world.later = world.later if later is None else later
    renewing = (front or world.front)._renewing
    taken = await renewing.resume()
    await asyncio.gather(*renewing._tasks.values())
    return taken


async def newest(client, order):
    answer = await client.post(order.json["star-certificate"])
    assert answer.status == 200, answer.body
    return x509.load_pem_x509_certificates(answer.body)[0]


async def issued_certificates(world):
    rows = await world.query(
        "SELECT epoch, not_before, not_after FROM certificates JOIN enrollments ON enrollments.id = enrollment_id"
        " WHERE requester_protocol = 'acme' ORDER BY certificates.id"
    )
    return [tuple(row) for row in rows]


async def state(world):
    """When an order is to be looked at next, from now, and its failures."""
    ((ready_at, failures),) = await world.query("SELECT ready_at, failures FROM acme_star")
    if ready_at is None:
        return None, failures
    return datetime.fromtimestamp(ready_at / 1_000_000, UTC) - world.clock(), failures


# --- Section 3.2: what the directory tells -------------------------------------------------------------------------


@ONE_DATABASE
async def test_the_directory_tells_where_it_is_offered(world, external):
    async def told(path=""):
        return (await world.send("GET", f"{external}/acme{path}/directory")).json["meta"].get("auto-renewal")

    assert await told() is None, "off by default"
    await world.serve(replace(world.options, star=OFFERED))
    offered = {"min-lifetime": 86_400, "max-duration": 34_560_000, "allow-certificate-get": True}
    assert (await told(), await told("/default"), await told("/short")) == (offered, offered, None)
    await world.serve(replace(world.options, star=replace(OFFERED, allow_get=False)))
    assert "allow-certificate-get" not in await told()


# --- Section 3.1.1: the order ---------------------------------------------------------------------------------------


async def test_an_order_has_a_rolling_certificate(world, star, issued):
    client, order = await issued(allow_certificate_get=True)
    shown = order.json
    assert shown["star-certificate"].endswith("/" + order.headers["Location"].rpartition("/")[2])
    assert {"certificate", "notBefore", "notAfter"}.isdisjoint(shown)
    agreed = shown["auto-renewal"]
    assert agreed["end-date"] == shown["expires"], "the order lives until its end"
    assert (agreed["lifetime"], agreed["allow-certificate-get"]) == (345_600, True)
    assert 345_600 * 0.5 <= agreed["lifetime-adjust"] <= 345_600 * 0.7 + 1
    assert (await client.post(order.headers["Location"])).json == shown
    (event,) = await world.audit("order.created")
    assert (event["extra"]["lifetime"], event["extra"]["end-date"]) == ("345600", agreed["end-date"])


@ONE_DATABASE
async def test_the_first_certificate(world, star, issued):
    client, order = await issued()
    leaf = await newest(client, order)
    now = datetime.now(UTC)
    assert abs(leaf.not_valid_after_utc - (now + LIFETIME)) < timedelta(minutes=1)
    assert now - timedelta(hours=1, minutes=1) < leaf.not_valid_before_utc <= now, "as any certificate of the profile"


@ONE_DATABASE
async def test_a_start_in_the_future(world, star, issued):
    start = (datetime.now(UTC) + timedelta(hours=20)).replace(microsecond=0)
    client, order = await issued(start_date=start.isoformat(), lifetime_adjust=300_000)
    assert order.json["auto-renewal"]["start-date"] == f"{start:%Y-%m-%dT%H:%M:%SZ}"
    assert order.json["auto-renewal"]["lifetime-adjust"] == 300_000
    leaf = await newest(client, order)
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (start, start + LIFETIME)


REFUSED = {
    "no end": ({"end_date": None}, "malformed"),
    "no lifetime": ({"lifetime": None}, "malformed"),
    "lifetime is text": ({"lifetime": "86400"}, "malformed"),
    "lifetime is nothing": ({"lifetime": 0}, "malformed"),
    "lifetime is huge": ({"lifetime": 2**40}, "malformed"),
    "adjust is negative": ({"lifetime_adjust": -1}, "malformed"),
    "get is text": ({"allow_certificate_get": "yes"}, "malformed"),
    "end without a zone": ({"end_date": "2040-01-01T00:00:00"}, "malformed"),
    "end in the past": ({"end_date": "2020-01-01T00:00:00Z"}, "malformed"),
    "end before start": ({"start_date": "9999-12-31T23:59:59.9Z"}, "unauthorized"),
    "too short": ({"lifetime": 86_399}, "unauthorized"),
    "too long for the profile": ({"lifetime": 86_400 * 61}, "unauthorized"),
    "too long with its padding": ({"lifetime": 86_400 * 50, "lifetime_adjust": 86_400 * 50}, "unauthorized"),
    "for too long": ({"end_date": "2099-01-01T00:00:00Z"}, "unauthorized"),
    "beyond the issuer": ({"end_date": (datetime.now(UTC) + 366 * DAY).isoformat()}, "unauthorized"),
}


@ONE_DATABASE
async def test_orders_that_are_refused(world, star):
    client = await world.client()
    for fault, (changes, problem) in REFUSED.items():
        answer = await client.order("a.test", **{"auto-renewal": terms(**changes)})
        assert (answer.problem, fault) == (problem, fault)
        assert answer.json["detail"]
    for time in ("notBefore", "notAfter"):
        both = {"auto-renewal": terms(), time: (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
        assert (await client.order("a.test", **both)).problem == "malformed"
    for name, profile in (("a.short.test", "short"), ("a.test", "holdable")):
        answer = await client.order(name, profile=profile, **{"auto-renewal": terms()})
        assert (answer.problem, answer.json["rule"]) == ("unauthorized", "acme.auto_renewal")
    assert await world.count("acme_orders") == 0
    rules = {event["rule"] for event in await world.audit("issuance.refused")}
    assert rules == {"acme.auto_renewal", "validity.issuer"}


@ONE_DATABASE
async def test_without_auto_renewal_nothing_is_noted(world, star):
    world.resolve("a.test")
    client = await world.client()
    await client.issue("a.test")
    answer = await client.order("a.test", **{"auto-renewal": None})
    assert "auto-renewal" not in answer.json
    assert await world.count("acme_star") == 0


# --- Section 3.3: fetching -------------------------------------------------------------------------------------------


@ONE_DATABASE
async def test_the_certificate_is_had_without_an_account_where_the_order_says_so(world, star, issued):
    client, order = await issued(allow_certificate_get=True)
    url = order.json["star-certificate"]
    public, private = await world.send("GET", url), await client.post(url)
    assert (public.status, public.body) == (200, private.body)
    leaf = x509.load_pem_x509_certificates(public.body)[0]
    for answer in (public, private):
        assert answer.headers["Content-Type"] == "application/pem-certificate-chain"
        for name, moment in (("Before", leaf.not_valid_before_utc), ("After", leaf.not_valid_after_utc)):
            quoted = answer.headers[f"Cert-Not-{name}"]
            assert (quoted[0], quoted[-1]) == ('"', '"')
            assert parsedate_to_datetime(quoted.strip('"')) == moment
    assert public.headers["Cache-Control"] == "public, max-age=3600"
    assert parsedate_to_datetime(public.headers["Expires"]) <= leaf.not_valid_after_utc
    assert private.headers["Cache-Control"] == "no-store"
    assert "Replay-Nonce" not in public.headers
    world.later = timedelta(seconds=order.json["auto-renewal"]["lifetime"] - 100)
    assert (await world.send("GET", url)).headers["Cache-Control"] == "public, max-age=10", "the next is late"


@ONE_DATABASE
async def test_no_other_url_has_its_certificates(world, star, issued):
    client, order = await issued(allow_certificate_get=True)
    url = order.json["star-certificate"]
    answer = await client.post(url.replace("star-certificate", "certificate"))
    assert answer.status == 404
    assert answer.json["detail"] == "the certificates of this order are at its star-certificate URL"
    head, got = await world.send("HEAD", url), await world.send("GET", url)
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Length", "Cert-Not-After", "Cache-Control"):
        assert head.headers[name] == got.headers[name]


@ONE_DATABASE
async def test_renewal_information_is_as_of_any_certificate(world, star, issued, external):
    client, order = await issued()
    leaf = await newest(client, order)
    information = await world.send("GET", f"{external}/acme/renewal-info/{certid_of(leaf)}")
    window = {name: datetime.fromisoformat(at) for name, at in information.json["suggestedWindow"].items()}
    assert leaf.not_valid_before_utc < window["start"] < window["end"] < leaf.not_valid_after_utc
    assert (await client.order("a.test", replaces=str(certid_of(leaf)))).status == 201


@ONE_DATABASE
async def test_who_gets_the_certificate(world, star, issued):
    client, order = await issued()
    url = order.json["star-certificate"]
    assert (await world.send("GET", url)).problem == "malformed", "the client did not ask for it"
    stranger = await world.client()
    assert (await stranger.post(url)).status == 404
    assert (await client.post(url)).status == 200
    assert (await client.post(f"{url}/{'0' * 16}")).status == 404
    assert (await world.send("GET", f"{url[:-1]}x")).status == 404
    ordinary = await client.order("a.test")
    where = ordinary.headers["Location"].replace("/order/", "/star-certificate/")
    assert (await client.post(where)).status == 404
    pending = await client.order("b.test", **{"auto-renewal": terms(allow_certificate_get=True)})
    where = pending.headers["Location"].replace("/order/", "/star-certificate/")
    assert (await world.send("GET", where)).problem == "orderNotReady"


@ONE_DATABASE
async def test_the_operator_may_allow_no_get(world, star, issued):
    await world.serve(replace(world.options, star=replace(OFFERED, allow_get=False)))
    _, order = await issued(allow_certificate_get=True)
    assert "allow-certificate-get" not in order.json["auto-renewal"]
    assert (await world.send("GET", order.json["star-certificate"])).status == 404


# --- Sections 3.3 and 3.5: renewal -----------------------------------------------------------------------------------


async def test_certificates_follow_each_other_until_the_end(world, star, issued):
    client, order = await issued()
    agreed = order.json["auto-renewal"]
    end = datetime.fromisoformat(agreed["end-date"])
    leaf = await newest(client, order)
    key, first = leaf.public_key(), leaf.not_valid_after_utc - LIFETIME
    adjust = timedelta(seconds=agreed["lifetime-adjust"])
    for number in range(1, 6):
        due = first + number * LIFETIME - adjust
        before = due - datetime.now(UTC) - timedelta(minutes=1)
        assert await renew(world, before) == 0, "not before it is due"
        if due + adjust >= end:
            break
        assert await renew(world, before + timedelta(minutes=2)) == 1
        leaf = await newest(client, order)
        assert (leaf.public_key(), leaf.not_valid_before_utc) == (key, due)
        assert leaf.not_valid_after_utc == min(due + adjust + LIFETIME, end)
        assert await renew(world) == 0
    assert leaf.not_valid_after_utc == end
    assert (await state(world))[0] is None
    assert world.renewals == ["renewed"] * (number - 1)
    stored = [event["extra"].get("renewal") for event in await world.audit("issuance.stored")]
    assert stored[-(number - 1) :] == [str(each) for each in range(1, number)]
    world.later += LIFETIME
    shown = await client.post(order.headers["Location"])
    assert shown.json["status"] == "valid", "as the base protocol has it"
    for answer in (await client.post(order.json["star-certificate"]), await world.send("GET", shown.json["finalize"])):
        assert answer.status in {403, 405}
    expired = await client.post(order.json["star-certificate"])
    assert (expired.status, expired.problem) == (403, "autoRenewalExpired")
    assert await renew(world) == 0


async def test_renewals_go_on_when_authorizations_have_expired_and_take_nothing_from_limits(world, star, issued):
    one = parse_rate("1 per 365d")
    limits = Limits(orders_per_account=one, certificates_per_name=one, certificates_per_set=one, orders=one)
    await star(limits=limits, authorization_lifetime=timedelta(minutes=10))
    await issued()
    await world.execute("UPDATE acme_authorizations SET expires_at = 1")
    assert await renew(world, LIFETIME * 0.6) == 1
    assert await renew(world, LIFETIME * 1.6) == 1
    assert [row[0] for row in await issued_certificates(world)] == [0, 1, 2]
    assert await world.audit("issuance.refused") == []
    assert world.limited == []


@ONE_DATABASE
async def test_an_outage_is_not_made_up_for(world, star, issued):
    client, order = await issued()
    assert await renew(world, LIFETIME * 3.55) == 1
    rows = await issued_certificates(world)
    assert [row[0] for row in rows] == [0, 3] or [row[0] for row in rows] == [0, 4]
    leaf = await newest(client, order)
    assert leaf.not_valid_before_utc <= world.clock() < leaf.not_valid_after_utc


@ONE_DATABASE
async def test_a_certificate_that_could_not_be_renewed_in_time_is_not_given_out(world, star, issued):
    client, order = await issued()
    world.later = LIFETIME * 1.1
    late = await client.post(order.json["star-certificate"])
    assert (late.status, late.problem) == (503, "serverInternal")
    assert await renew(world) == 1
    assert (await client.post(order.json["star-certificate"])).status == 200


async def test_a_core_that_is_away_or_whose_answer_is_lost(world, star, issued):
    client, order = await issued()
    world.core.outages = 1
    assert await renew(world, LIFETIME * 0.6) == 1
    assert await state(world) != (None, 0)
    assert "error" not in (await client.post(order.headers["Location"])).json
    world.core.lost_answers = 1
    assert await renew(world, world.later + timedelta(seconds=16)) == 1
    assert await renew(world, world.later + timedelta(seconds=16)) == 1
    assert [row[0] for row in await issued_certificates(world)] == [0, 1], "the same one is found again"
    assert world.renewals == ["failed", "failed"]
    assert (await state(world))[0] > DAY


async def test_two_fronts_renew_an_order_once(world, star, issued):
    await issued()
    other = world.make_front(replace(world.options, star=OFFERED), "front-2")
    world.core.gate.clear()
    world.later = LIFETIME * 0.6
    taken = await asyncio.gather(world.front._renewing.resume(), other._renewing.resume())
    assert sorted(taken) == [0, 1]
    # The lease of who has it runs out, while it is still at it.
    world.later += timedelta(minutes=3)
    assert sum(await asyncio.gather(world.front._renewing.resume(), other._renewing.resume())) == 1
    world.core.gate.set()
    await asyncio.gather(*world.front._renewing._tasks.values(), *other._renewing._tasks.values())
    assert [row[0] for row in await issued_certificates(world)] == [0, 1]
    assert (await state(world))[0] > timedelta(days=1)


async def test_what_a_process_that_died_left_is_taken_up(world, star, issued):
    client, order = await issued()
    world.later = LIFETIME * 0.6
    lessee = Lessee("node/front-9/dead", world.clock(), timedelta(minutes=2))
    (work,) = await world.front._store.claim_renewals(lessee, 10)
    assert await renew(world) == 0
    assert await renew(world, world.later + timedelta(minutes=3)) == 1
    store = SqlAcmeStore(world.database)
    assert not await store.finish_renewal(work, "node/front-9/dead", None), "its lease is another's"
    assert not await store.postpone_renewal(work, "node/front-9/dead", world.clock(), b"{}")
    assert (await state(world))[0] > timedelta(days=1)
    assert (await client.post(order.headers["Location"])).json["status"] == "valid"


async def test_policy_is_asked_each_time(world, star, issued, profiles):
    client, order = await issued()
    await world.put_in_force(profiles | {"default": profiles["short"].replace('"1d"', '"90d"')})
    assert await renew(world, LIFETIME * 0.6) == 1
    shown = (await client.post(order.headers["Location"])).json
    assert (shown["status"], shown["error"]["rule"]) == ("valid", "names.dns")
    assert [event["rule"] for event in await world.audit("issuance.refused")] == ["names.dns"]
    pauses = [await state(world)]
    for _ in range(8):
        assert await renew(world, world.later + pauses[-1][0]) == 1
        pauses.append(await state(world))
    assert [failures for _, failures in pauses] == list(range(1, 10))
    lengths = [round(pause.total_seconds() / 60) for pause, _ in pauses]
    assert lengths == [1, 2, 4, 8, 16, 32, 60, 60, 60], "longer each time"
    await world.put_in_force(profiles)
    assert await renew(world, world.later + timedelta(hours=1)) == 1
    assert "error" not in (await client.post(order.headers["Location"])).json
    assert world.renewals == ["refused"] * 9 + ["renewed"]
    assert (await state(world))[1] == 0


@ONE_DATABASE
async def test_a_renewal_is_by_the_profile_as_it_now_stands(world, star, issued, profiles):
    client, order = await issued()
    changed = profiles["default"].replace('["server_auth"]', '["client_auth"]')
    await world.put_in_force(profiles | {"default": changed})
    await world.execute("UPDATE profiles SET superseded_at = 1 WHERE superseded_at IS NOT NULL")
    assert await renew(world, LIFETIME * 0.6) == 1
    usage = (await newest(client, order)).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]


@ONE_DATABASE
async def test_a_blocked_key_is_not_certified_again(world, star, issued):
    key = ec.generate_private_key(ec.SECP256R1())
    client, order = await issued(key=key)
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    await world.block(sha256(spki).digest())
    assert await renew(world, LIFETIME * 0.6) == 1
    assert (await client.post(order.headers["Location"])).json["status"] == "canceled"
    (event,) = await world.audit("order.canceled")
    assert event["reason"] == "its key is on the blocklist"
    assert len(await issued_certificates(world)) == 1


@ONE_DATABASE
@pytest.mark.parametrize("left", [{"short"}, ()], ids=["another", "none"])
async def test_orders_of_a_profile_that_offers_it_no_more(world, star, issued, left):
    client, order = await issued()
    admission = world.core.issuance._admission
    admission._ages = replace(admission._ages, renewed=frozenset(left))
    await world.serve(replace(world.options, star=replace(OFFERED, profiles=frozenset(left))), "front-1")
    assert await renew(world, LIFETIME * 0.6) == 1
    shown = (await client.post(order.headers["Location"])).json
    assert (shown["status"], shown["error"]["rule"]) == ("valid", "acme.auto_renewal")
    assert "profile 'default'" in shown["error"]["detail"]
    assert len(await issued_certificates(world)) == 1


@ONE_DATABASE
async def test_a_hold_puts_renewals_off(world, star, issued, profiles):
    await world.put_in_force(profiles | {"default": "allow_hold = true\n" + profiles["default"]})
    client, order = await issued()
    leaf = await newest(client, order)
    held = RevocationRequest(
        "issuing", serial_text(leaf.serial_number), RevocationReason.CERTIFICATE_HOLD, "uid", "0", "operator"
    )
    await world.core.revocation.revoke(held)
    assert await renew(world, LIFETIME * 0.6) == 1
    shown = (await client.post(order.headers["Location"])).json
    assert (shown["status"], shown["error"]["detail"]) == ("valid", "the newest certificate of the order is on hold")
    answer = await client.post(order.json["star-certificate"])
    assert (answer.status, answer.json["detail"]) == (503, "the newest certificate of the order is on hold")
    released = replace(held, reason=RevocationReason.REMOVE_FROM_CRL)
    await world.core.revocation.revoke(released, may_release=True)
    assert await renew(world, world.later + timedelta(hours=1)) == 1
    assert [row[0] for row in await issued_certificates(world)] == [0, 1]


async def test_the_quota_of_an_external_account_key_has_room_for_renewals(world, star, issued, bound):
    client, _ = await bound(live=1, rate="1 per 365d")
    await issued(client)
    assert (await client.order("b.test")).problem == "rateLimited"
    for number in (1, 2):
        assert await renew(world, LIFETIME * (number - 0.4)) == 1
    # The one before has expired, and the key is good for nothing new any more.
    await world.execute("UPDATE eab_keys SET live = 0")
    assert await renew(world, LIFETIME * 4.2) == 1
    assert [row[0] for row in await issued_certificates(world)] == [0, 1, 2, 4]
    assert world.renewals == ["renewed"] * 3


# --- Section 3.1.2: cancellation -------------------------------------------------------------------------------------


async def test_an_order_is_canceled(world, star, issued):
    client, order = await issued(allow_certificate_get=True)
    stranger = await world.client()
    assert (await stranger.post(order.headers["Location"], {"status": "canceled"})).status == 404
    for payload in ({}, {"status": "valid"}):
        assert (await client.post(order.headers["Location"], payload)).json["status"] == "valid"
    done = await client.post(order.headers["Location"], {"status": "canceled"})
    assert (done.status, done.json["status"]) == (200, "canceled")
    assert done.json["expires"] == order.json["expires"], "who fetches is told for as long"
    assert "star-certificate" not in done.json
    url = order.json["star-certificate"]
    for answer in (await client.post(url), await world.send("GET", url)):
        assert (answer.status, answer.problem) == (403, "autoRenewalCanceled")
    assert await renew(world, LIFETIME * 0.6) == 0
    assert len(await issued_certificates(world)) == 1
    again = await client.post(order.headers["Location"], {"status": "canceled"})
    assert (again.status, again.problem) == (400, "autoRenewalCancellationInvalid")
    order_id = order.headers["Location"].rpartition("/")[2]
    (event,) = await world.audit("order.canceled")
    assert event["object"] == f"acme-order:{order_id}"
    records = SqlAcmeRecords(world.database, "default")
    page = await records.orders(OrderSearch(status=OrderStatus.CANCELED), datetime.now(UTC), 10, None)
    assert [line.order.id for line in page.lines] == [order_id]


async def test_an_operator_sees_where_renewals_stand(world, star, issued, profiles):
    client, order = await issued(allow_certificate_get=True)
    assert await renew(world, LIFETIME * 0.6) == 1
    await world.put_in_force(profiles | {"default": profiles["short"].replace('"1d"', '"90d"')})
    assert await renew(world, LIFETIME * 1.6) == 1
    record = await SqlAcmeRecords(world.database, "default").order(order.headers["Location"].rpartition("/")[2])
    told = order_description(record, None, (), world.clock())
    leaf = await newest(client, order)
    assert told["auto_renewal"]["newest_serial"] == serial_text(leaf.serial_number)
    assert told["auto_renewal"]["newest_ends_at"] == leaf.not_valid_after_utc
    assert (told["auto_renewal"]["renewals"], told["auto_renewal"]["failures"]) == (1, 1)
    assert told["auto_renewal"]["next_look_at"] > world.clock()
    assert (told["status"], told["error"]["rule"]) == ("valid", "names.dns")


@ONE_DATABASE
async def test_orders_that_can_not_be_canceled(world, star):
    world.resolve("a.test")
    client = await world.client()
    pending = await client.order("a.test", **{"auto-renewal": terms()})
    await client.issue("a.test")
    ordinary = (await client.post(f"{client.kid}/orders")).json["orders"][1]
    for url in (pending.headers["Location"], ordinary):
        refused = await client.post(url, {"status": "canceled"})
        assert (refused.status, refused.problem) == (400, "autoRenewalCancellationInvalid")
        assert (await client.post(url)).json["status"] != "canceled"
    assert await world.audit("order.canceled") == []


async def test_a_renewal_under_way_does_not_revive_a_canceled_order(world, star, issued):
    client, order = await issued()
    world.core.gate.clear()
    world.later = LIFETIME * 0.6
    assert await world.front._renewing.resume() == 1
    await asyncio.sleep(0)
    await client.post(order.headers["Location"], {"status": "canceled"})
    world.core.gate.set()
    await asyncio.gather(*world.front._renewing._tasks.values())
    assert await state(world) == (None, 0)
    assert (await client.post(order.json["star-certificate"])).problem == "autoRenewalCanceled"
    assert await renew(world, LIFETIME * 1.6) == 0


async def test_revocation_is_for_operators_alone(world, star, issued):
    client, order = await issued(allow_certificate_get=True)
    leaf = await newest(client, order)

    der = leaf.public_bytes(Encoding.DER)
    text = urlsafe_b64encode(der).rstrip(b"=").decode()
    stranger = await world.client()
    for each in (client, stranger):
        refused = await each.post(f"{each.base}/revoke-cert", {"certificate": text})
        assert (refused.status, refused.problem) == (403, "autoRenewalRevocationNotSupported")
    serial = serial_text(leaf.serial_number)
    by_operator = RevocationRequest("issuing", serial, RevocationReason.SUPERSEDED, "uid", "0", "operator")
    await world.core.revocation.revoke(by_operator)
    assert (await world.send("GET", order.json["star-certificate"])).problem == "autoRenewalCanceled"
    assert await renew(world, LIFETIME * 0.6) == 1
    assert len(await issued_certificates(world)) == 1
    assert (await client.post(order.headers["Location"])).json["status"] == "canceled"
    (event,) = await world.audit("order.canceled")
    assert event["reason"] == "its newest certificate was revoked"


async def test_a_deactivated_account_cancels_its_orders(world, star, issued):
    client, order = await issued(allow_certificate_get=True)
    assert (await client.post(client.kid, {"status": "deactivated"})).status == 200
    answer = await world.send("GET", order.json["star-certificate"])
    assert (answer.status, answer.problem) == (403, "autoRenewalCanceled")
    assert await renew(world, LIFETIME * 0.6) == 0
    assert [row[0] for row in await world.query("SELECT status FROM acme_orders")] == ["canceled"]


@pytest.mark.parametrize("gone", ["account", "authorization"])
async def test_what_an_order_was_accepted_on_is_gone(world, star, issued, gone):
    client, order = await issued(allow_certificate_get=True)
    if gone == "account":
        await world.execute("UPDATE acme_accounts SET status = 'revoked'")
        assert (await world.send("GET", order.json["star-certificate"])).problem == "autoRenewalCanceled"
    else:
        await client.post(order.json["authorizations"][0], {"status": "deactivated"})
    assert await renew(world, LIFETIME * 0.6) == 1
    assert len(await issued_certificates(world)) == 1
    assert (await world.send("GET", order.json["star-certificate"])).problem == "autoRenewalCanceled"
    (event,) = await world.audit("order.canceled")
    assert gone in event["reason"]
    assert world.renewals == ["canceled"]


# --- Orders that get no first certificate, and orders that are forgotten ----------------------------------------------


async def test_an_order_whose_first_certificate_is_late_is_renewed_after_it(world, star, csr):
    world.resolve("a.test")
    await star(finalize_wait=0.01)
    client = await world.client()
    order = await client.order("a.test", **{"auto-renewal": terms(lifetime=86_400)})
    await client.authorize(order)
    world.core.gate.clear()
    assert (await client.finalize(order, csr("a.test"))).json["status"] == "processing"
    assert await renew(world, DAY * 0.6) == 1
    assert (await state(world))[0] < timedelta(minutes=2)
    world.core.gate.set()
    await client.poll(order.headers["Location"], "processing")
    assert await renew(world, world.later + timedelta(minutes=2)) == 1
    assert [row[0] for row in await issued_certificates(world)] == [0, 1]


@ONE_DATABASE
async def test_an_order_that_failed_is_not_looked_at_again(world, star, csr, profiles):
    world.resolve("a.test")
    client = await world.client()
    order = await client.order("a.test", **{"auto-renewal": terms()})
    await client.authorize(order)
    await world.put_in_force(profiles | {"default": profiles["short"]})
    assert (await client.finalize(order, csr("a.test"))).json["status"] == "invalid"
    assert await renew(world, LIFETIME * 0.6) == 1
    assert (await state(world))[0] is None


async def test_an_order_that_ended_is_forgotten_and_none_that_lives(world, star, issued):
    await issued()
    await world.execute("UPDATE acme_authorizations SET expires_at = 1")
    await world.execute("UPDATE certificates SET not_after = 2, not_before = 1 WHERE requester_protocol = 'acme'")
    read = world.database.read
    assert await read(lambda connection: expired_orders(connection, datetime.now(UTC), "default", 10)) == ()
    after = datetime.now(UTC) + timedelta(days=21)
    await world.execute("UPDATE acme_orders SET status = 'valid'")
    (found,) = await read(lambda connection: expired_orders(connection, after, "default", 10))
    await world.database.write(lambda connection: forget_orders(connection, [found]))
    assert await world.count("acme_star") == await world.count("acme_orders") == 0


# --- What the core believes -------------------------------------------------------------------------------------------


@ONE_DATABASE
async def test_a_front_that_lies_gets_no_renewal(world, star, issued, csr):
    await issued()
    request = world.core.asked[-1]
    world.resolve("a.short.test")
    client = await world.client()
    order = await client.order("a.short.test", profile="short")
    await client.authorize(order)
    assert (await client.finalize(order, csr("a.short.test"))).json["status"] == "valid"
    ordinary = world.core.asked[-1]
    later = replace(request, epoch=1, profile_hash="", not_before=None, not_after=request.not_after + LIFETIME)
    year = timedelta(days=365)
    for fault, wrong in {
        "no first certificate": replace(later, transaction_key="another"),
        "another CSR": replace(later, csr_der=csr("a.test")),
        "another account": replace(later, requester=replace(later.requester, id="another")),
        "no end": replace(later, not_after=None),
        "beyond the longest duration": replace(later, not_after=later.not_after + year),
        "an order of another profile": replace(ordinary, epoch=1, profile_hash=""),
    }.items():
        with pytest.raises(CaError) as refused:
            await world.core.issuance.issue(wrong)
        assert (refused.value.rule, fault) == ("acme.auto_renewal", fault)
    assert (await world.core.issuance.issue(later)).serial != (await world.core.issuance.issue(request)).serial
    (proof,) = later.evidence
    old = replace(later, epoch=2, evidence=(replace(proof, validated_at=proof.validated_at - year),))
    with pytest.raises(CaError) as refused:
        await world.core.issuance.issue(old)
    assert refused.value.rule == "names.evidence", "fresh when the first certificate was issued, or never"
