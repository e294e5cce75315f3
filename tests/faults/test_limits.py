"""Floods of connections, headers and bodies: others get their certificates meanwhile, and memory stays where it was.

The bound on memory is far above what is used (docs/performance.md has the figures) and far below what one of these
attacks would take without the limit that it meets.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from floodlib.besieged import SHARE, Besieged, until
from floodlib.bystander import Bystander
from floodlib.flood import Flood

MEMORY = 400
"""MiB that the front may have at any moment of any of these attacks."""
CRL = 4 * 2**20
SHARES = {"http": 1_000, "https": SHARE, "log": SHARE}
"""Connections of one address."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def besieged(ca_server_command: Path, open_folder: Callable[[str], Path]) -> Iterator[Besieged]:
    besieged = Besieged(ca_server_command, open_folder("flood"))
    besieged.pad_crl(CRL)
    yield besieged
    assert besieged.server.stop() == 0, besieged.server.log_tail()


@pytest.fixture(scope="module")
def bystander(besieged: Besieged) -> Bystander:
    return Bystander(besieged.server)


@dataclass(frozen=True)
class Attack:
    """What is done to a listener, for which reason it is cut off, and what the attacker may be told."""

    attack: str
    listener: str
    reason: str
    told: set[str]
    count: int = 50
    path: str = "/livez"
    options: tuple[str, ...] = ()
    name: str = ""
    tls: bool | None = None


NEW_ORDER = "/acme/new-order"
OCSP = ("--type", "application/ocsp-request")
ONCE = ("--once",)
CLOSED = {"closed"}
ATTACKS = [
    Attack("idle", "http", "evicted", CLOSED, 10_000, options=ONCE, name="10,000 idle connections of one address"),
    Attack("idle", "http", "evicted", CLOSED, 10_000, options=(*ONCE, "--sources", "20"), name="of twenty addresses"),
    Attack("idle", "https", "evicted", CLOSED, 1_000, options=ONCE, name="handshakes that never end", tls=False),
    Attack("idle", "https", "handshake", CLOSED, 100, options=ONCE, name="handshakes that take too long", tls=False),
    Attack("idle", "https", "evicted", CLOSED, 300, options=ONCE, name="idle over TLS"),
    Attack("idle", "log", "evicted", CLOSED, 500, options=ONCE),
    Attack("slow-headers", "https", "slow_headers", CLOSED, 150),
    Attack("slow-headers", "log", "slow_headers", CLOSED, 150),
    Attack("slow-body", "https", "time", {"408", "503", "closed"}, 150, NEW_ORDER),
    Attack("slow-body", "http", "time", {"408", "503", "closed"}, 150, "/ocsp", OCSP),
    Attack("many-headers", "https", "malformed", {"400", "closed"}, 10),
    Attack("huge-header", "https", "malformed", {"431", "closed"}, 10),
    Attack("huge-header", "log", "malformed", {"431", "closed"}, 10, "/log/checkpoint"),
    Attack("huge-body", "https", "body", {"413", "closed"}, 10, NEW_ORDER),
    Attack("huge-body", "http", "body", {"200", "closed"}, 10, "/ocsp", OCSP),
    Attack("endless-chunks", "https", "lines", CLOSED, 10, NEW_ORDER),
    Attack("endless-trailers", "https", "malformed", {"400", "closed"}, 10, NEW_ORDER),
    Attack("endless-extensions", "http", "time", {"408", "closed"}, 10, "/ocsp", OCSP),
    Attack("pipeline", "https", "slow_client", CLOSED, 2, "/acme/directory"),
    Attack("unread", "http", "slow_client", CLOSED, 200, "/crl/issuing.crl"),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda each: f"{each.name or each.attack}, {each.listener}")
def test_flood(besieged: Besieged, bystander: Bystander, attack: Attack) -> None:
    reason = f"{attack.listener} {attack.reason}"
    before = besieged.refused()[reason]
    files = besieged.descriptors()
    besieged.memory.forget_peak()
    tls = attack.listener == "https" if attack.tls is None else attack.tls
    options = ("--count", str(attack.count), "--path", attack.path, *attack.options, *(("--tls",) if tls else ()))
    flood = Flood(attack.attack, besieged.port(attack.listener), *options)
    with flood:
        bystander.be_served()
        assert besieged.descriptors() < files + 8_000 + 50
        if "--sources" not in attack.options:
            assert besieged.descriptors() < files + SHARES[attack.listener] + 50
        until(lambda: besieged.refused()[reason] > before, f"nothing was refused: {besieged.refused()}")
        bystander.be_served()
    assert set(flood.done) <= attack.told, flood.done
    assert besieged.memory.peak < MEMORY
    until(lambda: besieged.connections() == 0, "connections stay")
    until(lambda: besieged.descriptors() <= files + 5, "descriptors stay")
    bystander.be_served()


def test_what_the_log_says_of_it(besieged: Besieged, bystander: Bystander) -> None:
    """The last test of all: a few lines of each kind in ten seconds, no errors, no stacks, nobody died."""
    lines = besieged.log_lines()
    refusals = [line for line in lines if line.get("reason") in {attack.reason for attack in ATTACKS}]
    assert 0 < len(refusals) < 1_000
    assert sum(besieged.refused().values()) > 10_000
    assert [line for line in lines if line["level"] in {"error", "critical"}][1:] == [], "but that nothing is validated"
    assert not [line for line in lines if "exception" in line]
    assert not [line for line in lines if line["event"] == "child died"]


def test_memory_is_given_back(besieged: Besieged, bystander: Bystander) -> None:
    until(lambda: besieged.memory.now < MEMORY / 2, f"{besieged.memory.now} MiB stay")
    assert besieged.core_memory.now < MEMORY / 2
