"""While the core is read-only, a front adds nothing to the database (section 6.7: serverInternal, with Retry-After)."""

import pytest
from sqlalchemy import Connection, text

WRITTEN = text(
    "SELECT (SELECT count(*) FROM acme_nonces) + (SELECT count(*) FROM audit_events) +"
    " (SELECT count(*) FROM acme_orders)"
)


def count(connection: Connection) -> int:
    return int(connection.execute(WRITTEN).scalar_one())


async def test_every_post_is_refused_and_nothing_written(world):
    client = await world.client()
    before = await world.database.read(count)
    world.core.read_only = True
    await world.front._watch.look()
    for answer in (await client.register(), await client.order("a.example.test"), await client.post(client.kid)):
        assert (answer.status, answer.problem) == (503, "serverInternal")
        assert answer.json["detail"] == "this CA is read-only until its operators act"
        assert answer.headers["Retry-After"] == "300"
    assert await world.database.read(count) == before
    world.core.read_only = False
    await world.front._watch.look()
    assert (await client.post(client.kid)).status == 200


@pytest.mark.parametrize(("read_only", "status"), [(False, 200), (True, 503)])
async def test_what_a_core_said_last_stands_while_it_is_away(world, read_only, status):
    client = await world.client()
    world.core.read_only = read_only
    await world.front._watch.look()
    world.core.hung, world.core.read_only = True, False
    await world.front._watch.look()
    assert (await client.post(client.kid)).status == status


async def test_nothing_is_admitted_before_the_core_has_answered(world):
    client = await world.client()
    world.core.hung = True
    await world.serve()
    assert (await client.post(client.kid)).status == 503
    world.core.hung = False
    await world.front._watch.look()
    assert (await client.post(client.kid)).status == 200
