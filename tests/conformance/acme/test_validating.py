"""How challenges are worked on: in turns, under leases, with a bounded number of attempts."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from protocols.acme.validation import ValidationProblem


class Scripted:
    """A validator that does as it is told: `answer` by name; it remembers the names."""

    def __init__(self, answer, kind="dns-01"):
        self.type = kind
        self.asked = []
        self._answer = answer

    def applies(self, identifier, wildcard):
        return True

    async def validate(self, target):
        self.asked.append(target.identifier.value)
        return await self._answer(target.identifier.value)


async def begin(client, *names):
    """Say of each name's dns-01 that it is ready; return the URLs of the authorizations."""
    order = await client.order(*names)
    for url in order.json["authorizations"]:
        found = (await client.post(url)).json
        challenge = next(each for each in found["challenges"] if each["type"] == "dns-01")
        assert (await client.post(challenge["url"], {})).status == 200
    return order.json["authorizations"]


async def test_a_validator_that_fails_is_a_failed_attempt(world):
    async def fail(_name):
        raise IndexError("inside a library")

    scripted = world.front._validating._validators["dns-01"] = Scripted(fail)
    client = await world.client()
    (url,) = await begin(client, "a.test")
    found = await client.poll(url, "pending")
    (challenge,) = [each for each in found["challenges"] if each["type"] == "dns-01"]
    assert (found["status"], challenge["status"]) == ("invalid", "invalid")
    assert challenge["error"]["type"].endswith(":serverInternal")
    assert "library" not in challenge["error"]["detail"]
    assert scripted.asked == ["a.test"] * 2
    assert await world.query("SELECT attempts, lease_holder FROM acme_challenges WHERE type = 'dns-01'") == [(2, None)]


async def test_an_attempt_that_takes_the_process_with_it_is_not_made_for_ever(world):
    world.front._validating._add = lambda _job: None
    client = await world.client()
    (url,) = await begin(client, "a.test")
    other = world.make_front(process="front-2")
    added = []
    other._validating._add = added.append
    for attempt_number in (2, 3):
        await world.execute("UPDATE acme_challenges SET lease_until = 1 WHERE status = 'processing'")
        await other._validating.resume()
        assert added[-1].work.attempt == attempt_number
    del other._validating._add
    other._validating._add(added[-1])
    found = await client.poll(url, "pending")
    assert [each["error"]["detail"] for each in found["challenges"] if "error" in each] == [
        "validation was interrupted too often"
    ]
    assert world.dns.asked == []
    await other.stop()


async def test_one_account_does_not_hold_up_another(world):
    """Whoever has a thousand names that do not answer waits for them alone."""
    await world.serve(replace(world.options, validation_concurrency=4))
    held = asyncio.Event()

    async def answer(name):
        if name.startswith("n"):
            await held.wait()

    scripted = world.front._validating._validators["dns-01"] = Scripted(answer)
    slow, quick = await world.client(), await world.client()
    waiting = await begin(slow, *(f"n{number}.test" for number in range(20)))
    for url in await begin(quick, *(f"q{number}.test" for number in range(10))):
        assert (await quick.poll(url, "pending"))["status"] == "valid"
    assert len([name for name in scripted.asked if name.startswith("n")]) == 2, "half of the pool"
    held.set()
    for url in waiting:
        assert (await slow.poll(url, "pending"))["status"] == "valid"


async def test_accounts_take_turns(world):
    await world.serve(replace(world.options, validation_concurrency=1))
    held = asyncio.Event()

    async def answer(_name):
        await held.wait()

    scripted = world.front._validating._validators["dns-01"] = Scripted(answer)
    first, second = await world.client(), await world.client()
    many = await begin(first, *(f"n{number}.test" for number in range(5)))
    (one,) = await begin(second, "q.test")
    held.set()
    for client, url in (*((first, url) for url in many), (second, one)):
        await client.poll(url, "pending")
    assert scripted.asked.index("q.test") <= 2


async def test_between_two_attempts_no_slot_is_held(world, monkeypatch):
    monkeypatch.setattr("protocols.acme.validating._PAUSES", (3600.0,))
    await world.serve(replace(world.options, validation_concurrency=1))

    async def answer(name):
        return ValidationProblem("dns", "not yet", retryable=True) if name == "late.test" else None

    world.front._validating._validators["dns-01"] = Scripted(answer)
    client = await world.client()
    (late,) = await begin(client, "late.test")
    (good,) = await begin(client, "good.test")
    assert (await client.poll(good, "pending"))["status"] == "valid"
    (challenge,) = [each for each in (await client.post(late)).json["challenges"] if each["type"] == "dns-01"]
    assert (challenge["status"], challenge["error"]["detail"]) == ("processing", "not yet")
    rows = await world.query("SELECT attempts, lease_until FROM acme_challenges WHERE status = 'processing'")
    assert rows[0][0] == 2
    due = datetime.fromtimestamp(rows[0][1] / 1_000_000, UTC)
    assert due > datetime.now(UTC) + timedelta(minutes=50), "nobody takes it over meanwhile"


async def test_the_pauses_between_attempts_grow(world):
    await world.serve(replace(world.options, validation_attempts=6))

    async def answer(_name):
        return ValidationProblem("dns", "not yet", retryable=True)

    validating = world.front._validating
    scripted = validating._validators["dns-01"] = Scripted(answer)
    attempt, pauses = validating._validate, []

    async def at_once(job):
        pauses.append(await attempt(job))
        return None if pauses[-1] is None else 0.0

    validating._validate = at_once
    client = await world.client()
    (url,) = await begin(client, "a.test")
    assert (await client.poll(url, "pending"))["status"] == "invalid"
    assert pauses == [0.5, 1.0, 2.0, 4.0, 4.0, None]
    assert scripted.asked == ["a.test"] * 6


async def test_leases_of_what_waits_are_kept(world):
    await world.serve(replace(world.options, validation_concurrency=1))
    held = asyncio.Event()

    async def answer(_name):
        await held.wait()

    scripted = world.front._validating._validators["dns-01"] = Scripted(answer)
    client = await world.client()
    urls = await begin(client, "a.test", "b.test", "c.test")
    validating = world.front._validating
    for job in validating._jobs.values():
        job.lease_until = datetime.now(UTC)
    await world.execute("UPDATE acme_challenges SET lease_until = 1 WHERE status = 'processing'")
    stolen = next(iter(validating._queues.values()))[-1].work.id
    await world.execute(f"UPDATE acme_challenges SET lease_holder = 'another' WHERE id = '{stolen}'")
    await validating._prolong()
    rows = await world.query("SELECT lease_holder = 'another', lease_until > 1 FROM acme_challenges WHERE attempts = 1")
    assert sorted((bool(lost), bool(kept)) for lost, kept in rows) == [(False, True), (False, True), (True, False)]
    held.set()
    for url in urls[:2]:
        assert (await client.poll(url, "pending"))["status"] == "valid"
    assert scripted.asked == ["a.test", "b.test"], "another works on the third"


async def test_too_many_validations_of_one_account(world):
    await world.serve(replace(world.options, max_validations=2))
    world.front._validating._add = lambda _job: None
    client = await world.client()
    await begin(client, "a.test", "b.test")
    order = await client.order("c.test")
    challenge = await client.challenge(order.json["authorizations"][0], "dns-01")
    refused = await client.post(challenge["url"], {})
    assert (refused.status, refused.problem) == (429, "rateLimited")
    assert 1 <= int(refused.headers["Retry-After"]) < 600
    assert (await client.post(challenge["url"])).json["status"] == "pending"
    await begin(await world.client(), "c.test")


async def test_an_authorization_that_was_told_invalid_stays_so(world):
    held = asyncio.Event()

    async def answer(_name):
        await held.wait()

    world.front._validating._validators["dns-01"] = Scripted(answer)
    client = await world.client()
    (url,) = await begin(client, "a.test")
    await world.execute("UPDATE acme_authorizations SET expires_at = 1")
    assert (await client.post(url)).json["status"] == "invalid"
    held.set()
    for _ in range(300):
        if not world.front._validating._jobs:
            break
        await asyncio.sleep(0.02)
    assert (await client.post(url)).json["status"] == "invalid"
    assert await world.audit("challenge.validated") == []


async def test_a_sibling_that_starts_leaves_running_leases_alone(world):
    held = asyncio.Event()

    async def answer(_name):
        await held.wait()

    scripted = world.front._validating._validators["dns-01"] = Scripted(answer)
    client = await world.client()
    (url,) = await begin(client, "a.test")
    sibling = world.make_front(process="front-2")
    sibling._validating._validators["dns-01"] = scripted
    assert await sibling._validating.resume(restarted=True) == 0
    held.set()
    assert (await client.poll(url, "pending"))["status"] == "valid"
    assert scripted.asked == ["a.test"]
