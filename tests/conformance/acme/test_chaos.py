"""Clients of staging profiles are tried, and nobody else's; what is drawn comes from a source that tests choose."""

from collections import deque
from dataclasses import replace

import pytest

from protocols.acme.chaos import Chaos, ChaosOptions
from protocols.acme.nonces import Flavour, NonceBook

pytestmark = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
ALWAYS, NEVER = 0.0, 0.999
TRIED = ChaosOptions(frozenset({"short"}), frozenset({"issuing"}), 0.05, 0.0, 0.5)


class Chance:
    """What is drawn: first what a test wants, then what does no harm."""

    def __init__(self, rest=NEVER):
        self.wanted = deque()
        self.rest = rest
        self.drawn = 0

    def __call__(self):
        self.drawn += 1
        return self.wanted.popleft() if self.wanted else self.rest


@pytest.fixture
def chance():
    return Chance()


@pytest.fixture
async def tried(world, chance):
    """A world whose profile `short` is a staging one that tries its clients."""
    await world.serve(replace(world.options, chaos=Chaos(TRIED, chance)))
    return world


async def test_a_refused_nonce_comes_with_a_good_one(tried, chance):
    client = await tried.client(profile="short")
    client.spare.clear()
    chance.wanted.append(ALWAYS)
    doomed = await client.nonce()
    assert (await client.order("a.short.test")).status == 201, "its own nonce was good"
    chance.rest = ALWAYS
    for _ in range(2):
        refused = await client.post(f"{client.base}/new-order", {}, nonce=doomed)
        assert (refused.status, refused.problem) == (400, "badNonce")
        assert "to test you" in refused.json["detail"]
        fresh = refused.headers["Replay-Nonce"]
        assert (await client.post(client.kid, nonce=fresh)).status == 200


async def test_who_was_refused_is_given_a_good_nonce_where_it_asks_for_one(tried, chance):
    """certbot takes no nonce from a refusal."""
    client = await tried.client(profile="short")
    client.spare.clear()
    chance.rest = ALWAYS
    assert (await client.order("a.short.test")).problem == "badNonce"
    client.spare.clear()
    assert (await client.order("a.short.test")).status == 201
    client.spare.clear()
    assert (await client.order("a.short.test")).problem == "badNonce", "once"


def test_few_addresses_are_remembered(monkeypatch, url):
    monkeypatch.setattr("protocols.acme.chaos._REMEMBERED", 2)
    chaos = Chaos(TRIED)
    for address in ("a", "b", "c"):
        chaos._remember(address)
    assert list(chaos._refused) == ["b", "c"]


async def test_resources_are_tried_by_the_nonces_that_lead_to_them(tried, chance):
    client = await tried.client(profile="short")
    client.spare.clear()
    first = await client.nonce()
    chance.wanted.append(ALWAYS)
    doomed = (await client.post(client.kid, nonce=first)).headers["Replay-Nonce"]
    assert (await client.post(client.kid, nonce=doomed)).problem == "badNonce"


async def test_every_front_refuses_the_same_nonces(tried, chance):
    client = await tried.client(profile="short")
    client.spare.clear()
    chance.wanted.append(ALWAYS)
    doomed = await client.nonce()
    await tried.serve(replace(tried.options, chaos=Chaos(TRIED, Chance())), process="front-2")
    assert (await client.post(client.kid, nonce=doomed)).problem == "badNonce"


async def test_clients_of_other_profiles_are_left_alone(tried, chance):
    """Also with a nonce that a staging profile gave, at the entry points that name a real one."""
    chance.rest = ALWAYS
    client = await tried.client()
    client.spare.clear()
    for _ in range(20):
        assert (await client.post(client.kid)).status == 200
    assert chance.drawn == 0
    doomed = (await tried.send("HEAD", f"{client.base}/short/new-nonce")).headers["Replay-Nonce"]
    assert NonceBook.flavour_of(doomed) is Flavour.DOOMED
    answer = await client.post(f"{client.base}/new-order", {}, nonce=doomed)
    assert answer.problem == "malformed"
    assert NonceBook.flavour_of(answer.headers["Replay-Nonce"]) is Flavour.PLAIN


async def test_a_profile_of_another_issuer_is_left_alone(world, chance):
    """Whatever the setting of this front says, the issuers' certificates decide."""
    chance.rest = ALWAYS
    await world.serve(replace(world.options, chaos=Chaos(replace(TRIED, issuers=frozenset({"other"})), chance)))
    client = await world.client(profile="short")
    assert (await client.order("a.short.test")).status == 201
    assert chance.drawn == 0


async def test_without_chaos_no_nonce_is_refused_for_its_flavour(world):
    client = await world.client()
    doomed = NonceBook(world.nonce_key, world.options.nonce_lifetime).issue(Flavour.DOOMED)
    assert (await client.post(client.kid, nonce=doomed)).status == 200


async def test_a_refused_nonce_is_no_refusal_on_record(tried, chance):
    client = await tried.client(profile="short")
    client.spare.clear()
    chance.wanted.append(ALWAYS)
    assert (await client.post(client.kid)).problem == "badNonce"
    await tried.front._record_refusals_once()
    assert await tried.audit("access.refused") == []


async def test_authorizations_are_reused_by_chance(tried, chance):
    tried.resolve("a.short.test")
    client = await tried.client(profile="short")
    first = await client.ready("a.short.test")
    chance.rest = 0.5
    afresh = await client.order("a.short.test")
    assert (afresh.json["status"], afresh.json["authorizations"] == first.json["authorizations"]) == ("pending", False)
    chance.rest = 0.49
    reused = await client.order("a.short.test")
    assert (reused.json["status"], reused.json["authorizations"] == first.json["authorizations"]) == ("ready", True)
    chance.rest = NEVER
    client.base = client.base.removesuffix("/short")
    await tried.put_in_force({**tried.bodies, "default": tried.bodies["short"]})
    assert (await client.order("a.short.test")).json["status"] == "ready", "not a staging profile"


async def test_a_validation_begins_late(world, chance):
    await world.serve(replace(world.options, chaos=Chaos(replace(TRIED, validation_delay=4000.0), chance)))
    chance.rest = 0.5
    client = await world.client(profile="short")
    order = await client.order("a.short.test")
    challenge = await client.challenge(order.json["authorizations"][0], "dns-01")
    answer = await client.post(challenge["url"], {})
    assert answer.json["status"] == "processing"
    (job,) = world.front._validating._jobs.values()
    begin = job.timer.when() - job.timer._loop.time()
    assert 1000 < begin <= 2000
    job.timer.cancel()
    world.front._validating._enqueue(job)
    assert (await client.poll(order.json["authorizations"][0], "pending"))["status"] == "valid"


async def test_a_validation_of_others_begins_at_once(world, chance):
    await world.serve(replace(world.options, chaos=Chaos(replace(TRIED, validation_delay=4000.0), chance)))
    chance.rest = 0.5
    client = await world.client()
    order = await client.order("a.test")
    challenge = await client.challenge(order.json["authorizations"][0], "dns-01")
    await client.post(challenge["url"], {})
    assert (await client.poll(order.json["authorizations"][0], "pending"))["status"] == "valid"
