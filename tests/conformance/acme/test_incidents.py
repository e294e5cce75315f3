"""Incidents: windows that begin now, and why (RFC 9773 section 4.2)."""

from datetime import UTC, datetime, timedelta

import pytest

from ca_server.core.incidents import MAX_TARGETS, Incidents
from ca_server.core.ports import CreateIncident
from ca_server.domain.certificates import serial_text
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.incidents import Scope, Target
from ca_server.store.incidents import SqlIncidentStore
from protocols.acme.certid import certid_of

PAGE = "https://ca.example.test/why"


@pytest.fixture
async def incidents(world):
    return Incidents(SqlIncidentStore(world.database), world.events("core"))


@pytest.fixture
async def leaf(world):
    world.resolve("a.test")
    return (await (await world.client()).issue("a.test"))[0]


async def window(world, external, certificate):
    answer = await world.send("GET", f"{external}/acme/renewal-info/{certid_of(certificate)}")
    shown = answer.json["suggestedWindow"]
    start, end = (datetime.fromisoformat(shown[name]) for name in ("start", "end"))
    assert start < end
    return start, end, answer.json.get("explanationURL")


def targets(*texts):
    return tuple(Target(Scope(text.partition(":")[0]), text.partition(":")[2]) for text in texts)


@pytest.mark.parametrize("text", ["serial:", "issuer:issuing", "profile:default", "key:issuing-1", "method:http-01"])
async def test_windows_begin_now(world, external, incidents, leaf, text):
    before = await window(world, external, leaf)
    assert before[0] > datetime.now(UTC) + timedelta(days=50)
    if text == "serial:":
        text += serial_text(leaf.serial_number)
    made = await incidents.create(CreateIncident("weak", targets("serial:00", text), PAGE), "uid:0")
    start, end, page = await window(world, external, leaf)
    assert start == made.created_at.replace(microsecond=0)
    assert end - start == timedelta(days=1), "not all in one hour"
    assert page == PAGE
    assert await incidents.end(made.id, "uid:0")
    assert await window(world, external, leaf) == before
    assert not await incidents.end(made.id, "uid:0")


@pytest.mark.parametrize("text", ["serial:00", "issuer:root", "profile:short", "key:root-1", "method:dns-01"])
async def test_windows_of_others_stay(world, external, incidents, leaf, text):
    before = await window(world, external, leaf)
    await incidents.create(CreateIncident("weak", targets(text), PAGE), "uid:0")
    assert await window(world, external, leaf) == before


async def test_a_renewed_certificate_is_not_renewed_again(world, external, incidents, leaf):
    await incidents.create(CreateIncident("weak", targets("issuer:issuing")), "uid:0")
    renewed = (await (await world.client()).issue("a.test"))[0]
    assert (await window(world, external, renewed))[0] > datetime.now(UTC) + timedelta(days=50)
    assert (await window(world, external, leaf))[2] is None, "no page was given"


async def test_another_tenants_incident(world, external, incidents, leaf):
    before = await window(world, external, leaf)
    await incidents.create(CreateIncident("weak", targets("issuer:issuing")), "uid:0")
    await world.execute("UPDATE incidents SET tenant = 'other'")
    assert await window(world, external, leaf) == before


async def test_incidents_are_on_record(world, incidents):
    asked = CreateIncident("weak", targets("profile:default", "method:http-01"), PAGE)
    made = await incidents.create(asked, "uid:0")
    await incidents.end(made.id, "uid:7")
    (created,), (ended,) = await world.audit("incident.created"), await world.audit("incident.ended")
    assert (created["actor"], created["object"], created["reason"]) == ("uid:0", f"incident:{made.id}", "weak")
    assert created["extra"] == {"targets": "profile:default method:http-01", "explanation_url": PAGE}
    assert (ended["actor"], ended["object"]) == ("uid:7", f"incident:{made.id}")
    (listed,) = await SqlIncidentStore(world.database).incidents()
    assert set(listed.targets) == set(made.targets)
    assert listed.ended_at is not None


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (CreateIncident("weak", ()), ErrorKind.MALFORMED),
        (CreateIncident("weak", targets(*(f"serial:{n:04x}" for n in range(MAX_TARGETS + 1)))), ErrorKind.MALFORMED),
        (CreateIncident("", targets("profile:default")), ErrorKind.MALFORMED),
        (CreateIncident("x" * 1001, targets("profile:default")), ErrorKind.MALFORMED),
        (CreateIncident("we\nak", targets("profile:default")), ErrorKind.MALFORMED),
        (CreateIncident("weak", targets("profile:")), ErrorKind.MALFORMED),
        (CreateIncident("weak", targets("profile:" + "x" * 129)), ErrorKind.MALFORMED),
        (CreateIncident("weak", targets("profile:default"), "javascript:x"), ErrorKind.MALFORMED),
        (CreateIncident("weak", targets("profile:default"), "https://"), ErrorKind.MALFORMED),
        (CreateIncident("weak", targets("profile:default"), "https://[x"), ErrorKind.MALFORMED),
        (CreateIncident("weak", targets("issuer:nobody")), ErrorKind.NOT_FOUND),
        (CreateIncident("weak", targets("key:nothing")), ErrorKind.NOT_FOUND),
    ],
)
async def test_what_is_no_incident(world, incidents, request_, kind):
    with pytest.raises(CaError) as refused:
        await incidents.create(request_, "uid:0")
    assert refused.value.kind is kind
    assert await world.count("incidents") == await world.count("incident_targets") == 0
    assert await world.audit("incident.created") == []


async def test_the_largest_incident_fits_its_event(world, incidents):
    largest = targets(*(f"serial:{number:040x}" for number in range(MAX_TARGETS)))
    await incidents.create(CreateIncident("x" * 1000, largest, PAGE), "uid:0")
    assert len(await world.audit("incident.created")) == 1
