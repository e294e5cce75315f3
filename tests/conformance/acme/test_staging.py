"""The staging switch: challenges are valid without a look, and the log says so."""

from dataclasses import replace


async def test_a_challenge_is_valid_at_once_and_on_record_as_skipped(world, csr):
    await world.serve(replace(world.options, unsafe_skip_validation=True))
    client = await world.client()
    order = await client.order("nowhere.test")
    (url,) = order.json["authorizations"]
    challenge = next(item for item in (await client.post(url)).json["challenges"] if item["type"] == "http-01")
    answer = (await client.post(challenge["url"], {})).json
    assert answer["status"] == "valid"
    assert answer["validated"]
    assert (await client.finalize(order, csr("nowhere.test"))).json["status"] == "valid"
    assert not world.web.asked
    assert not world.dns.asked
    (event,) = await world.audit("challenge.validated")
    assert event["extra"] == {"challenge": "http-01", "skipped": "true"}


async def test_otherwise_nothing_is_said_of_skipping(world):
    world.resolve("a.test")
    client = await world.client()
    await client.ready("a.test")
    (event,) = await world.audit("challenge.validated")
    assert event["extra"]["challenge"] == "http-01"
    assert "skipped" not in event["extra"]
