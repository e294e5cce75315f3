"""Searching and counting certificates."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ca_server.domain.certificates import RevocationReason, RevokedEntry
from ca_server.store.der import join_der, split_der
from ca_server.store.inventory import InventoryStatus, SqlInventory
from ca_server.store.revocation import SqlRevocationStore

NOW = datetime(2026, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
async def inventory(world: Any) -> SqlInventory:
    await world.issue("a", names=("dns:a.example.test",))
    await world.issue("b", names=("dns:b.example.test", "dns:b.other.test"), requester_id="account-2")
    await world.issue("c", names=("dns:notexample.test",), profile="servers")
    await world.issue("d", names=("ip:10.0.0.1", "dns:example.test"), not_after=world.now - timedelta(seconds=1))
    revoked = await world.issue("e", names=("dns:*.example.test", "email:Ann@example.test"))
    entry = RevokedEntry(revoked.serial, world.now, RevocationReason.SUPERSEDED)
    await SqlRevocationStore(world.database).revoke(entry, "issuing", [])
    return SqlInventory(world.database)


@pytest.mark.parametrize(
    ("criteria", "found"),
    [
        ({}, "edcba"),
        ({"name": "a.example.test"}, "a"),
        ({"name": "A.Example.Test"}, "a"),
        ({"name": ".example.test"}, "eba"),
        ({"name": "example.test"}, "d"),
        ({"name": "%.test"}, ""),
        ({"name": "10.0.0.1"}, "d"),
        ({"name": "ann@example.test"}, "e"),
        ({"profile": "servers"}, "c"),
        ({"issuer": "issuing"}, "edcba"),
        ({"issuer": "root"}, ""),
        ({"requester": "account-2"}, "b"),
        ({"requester": "acme:account-2"}, "b"),
        ({"requester": "est:account-2"}, ""),
        ({"serial_prefix": "00A"}, "edcba"),
        ({"serial_prefix": "a"}, ""),
        ({"status": InventoryStatus.VALID}, "cba"),
        ({"status": InventoryStatus.REVOKED}, "e"),
        ({"status": InventoryStatus.EXPIRED}, "d"),
        ({"ends_before": NOW}, "d"),
        ({"ends_before": NOW - timedelta(days=1)}, ""),
        ({"ends_before": NOW + timedelta(days=3650)}, "edcba"),
        ({"ends_before": NOW, "status": InventoryStatus.VALID}, ""),
        ({"status": InventoryStatus.VALID, "name": ".example.test", "limit": 1}, "b"),
    ],
)
async def test_search(world: Any, inventory: SqlInventory, criteria: dict[str, Any], found: str) -> None:
    records = await inventory.search(now=world.now, **criteria)
    assert "".join(record.transaction_key for record in records) == found


async def test_pages(inventory: SqlInventory) -> None:
    first = await inventory.search(limit=2)
    second = await inventory.search(limit=2, after=(first[-1].issuer, first[-1].serial))
    third = await inventory.search(limit=2, after=(second[-1].issuer, second[-1].serial))
    assert "".join(record.transaction_key for record in first + second + third) == "edcba"
    assert second[0].names == ("dns:notexample.test",)
    assert second[1].names == ("dns:b.example.test", "dns:b.other.test")


async def test_counts(world: Any, inventory: SqlInventory) -> None:
    assert await inventory.count_by_status(world.now) == {
        InventoryStatus.VALID: 3,
        InventoryStatus.REVOKED: 1,
        InventoryStatus.EXPIRED: 1,
    }


@pytest.mark.parametrize("lengths", [(), (0,), (127, 128), (255, 256, 70_000)])
def test_der_after_der(lengths: tuple[int, ...]) -> None:
    parts = tuple(_sequence(length) for length in lengths)
    assert split_der(join_der(parts)) == parts


def _sequence(length: int) -> bytes:
    if length < 128:
        return bytes([0x30, length]) + b"x" * length
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([0x30, 0x80 + len(octets)]) + octets + b"x" * length


@pytest.mark.parametrize(
    "data", [b"\x30", b"\x31\x00", b"\x30\x05abc", b"\x30\x80", b"\x30\x85\x00\x00\x00\x00\x01x", b"\x30\x82\x01"]
)
def test_what_is_no_row_of_der(data: bytes) -> None:
    with pytest.raises(ValueError, match="DER"):
        split_der(data)
