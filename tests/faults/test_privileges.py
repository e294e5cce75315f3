"""Code in the place of a front can't get at PIN, token, core or what a front must not write."""

import grp
import json
import os
import pwd
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from interoplib.commands import told
from interoplib.enrollment import Enrollment, Surroundings
from interoplib.server import Server
from interoplib.tools import run
from placelib.place import Place

import ca_server
from ca_server.domain.certificates import serial_text

BURGLAR, VANDAL, IMPOSTOR = (
    Path(__file__).parent / "placelib" / f"{name}.py" for name in ("burglar", "vandal", "impostor")
)
PIN = "8f2c-pin-of-the-burgled-8f2c"


@dataclass
class Burgled:
    server: Server
    place: Place
    core: int
    told: dict[str, Any]


def burgle(server: Server, place: Place, *only: str) -> Burgled:
    core = place.pid("core")
    told = place.run(
        BURGLAR,
        HOME=str(server.home),
        CORE_FILES=[str(path) for path in (server.home / "core").rglob("*") if path.is_file()],
        ONLY=only,
        METRICS=[str(path) for path in (server.home / "metrics").rglob(f"*_{core}.db")],
    )
    return Burgled(server, place, core, told)


@pytest.fixture(scope="module")
def burgled(
    ca_server_command: Path, surroundings: Surroundings, open_folder: Callable[[str], Path]
) -> Iterator[Burgled]:
    if os.getuid() != 0:
        pytest.skip("only root's server has users of its own")
    server = Server(ca_server_command, open_folder("burgled"), surroundings.settings)
    server.environment = {
        "CA_SERVER_PIN": PIN,
        "OTHER_PIN": PIN,
        "CA_SERVER__TOKEN__PIN_ENVIRONMENT": "OTHER_PIN",
        "CODE": str(Path(ca_server.__file__).parent),
    }
    place = Place(server, open_folder("place"))
    server.environment["CA_SERVER__ACME__CAA_IDENTITIES"] = "ca.test"
    server.init()
    profile = server.home / "profiles" / "short.toml"
    profile.write_text('caa = "enforce"\n' + profile.read_text())
    server.start()
    try:
        yield burgle(server, place)
        assert server.stop() == 0, server.log_tail()
    finally:
        server.kill()


def test_it_was_a_fronts_place(burgled: Burgled) -> None:
    """What the refusals stand on: the code ran as a front runs, and no test's rights were its own."""
    status, front = burgled.told["status"], pwd.getpwnam("ca-server-front")
    assert set(status["Uid"].split()) == {str(front.pw_uid)}
    assert set(status["Gid"].split()) == {str(grp.getgrnam("ca-server").gr_gid)}
    assert status["Groups"].split() == []
    assert burgled.told["umask"] == 0o007
    assert burgled.told["environment"]["HOME"] == front.pw_dir
    assert burgled.told["read"] == ["the configuration", "a profile", "the log's key"]
    assert burgled.told["ended"]["speak to the core's port"] == "done"


def test_every_attempt_is_refused(burgled: Burgled) -> None:
    ended = dict(burgled.told["ended"])
    del ended["speak to the core's port"]
    assert len(ended) > 60
    assert {name: how for name, how in ended.items() if how != "PermissionError"} == {}


def test_it_has_no_rights_to_gain(burgled: Burgled) -> None:
    status = burgled.told["status"]
    assert {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {
        "CapInh": 0,
        "CapPrm": 0,
        "CapEff": 0,
        "CapAmb": 0,
    }
    assert status["NoNewPrivs"] == "1", "no setuid program helps it"
    assert burgled.told["session"], "a session of its own: no terminal of root's"


def test_it_inherited_listeners_and_two_pipes(burgled: Burgled) -> None:
    """Of the pipes one tells that it is ready, one that the supervisor lives."""
    assert sorted(burgled.told["descriptors"].values()) == ["listener", "listener", "pipe", "pipe"]


def test_no_pin_in_its_environment(burgled: Burgled) -> None:
    environment = burgled.told["environment"]
    assert environment["CA_SERVER_FRONT_UID"], "it is the environment of a front"
    assert PIN not in "".join(environment.values())
    core = Path(f"/proc/{burgled.core}/environ").read_bytes()
    assert PIN.encode() in core, "there was something to find"


def test_the_core_went_on(burgled: Burgled) -> None:
    assert burgled.place.pid("core") == burgled.core
    assert burgled.server.is_ready()
    burgled.server.cli("audit", "verify")


NO_MESSAGES = {
    "an unknown operation": "malformed",
    "an operator's operation": "malformed",
    "another version": "malformed",
    "an argument of the wrong type": "malformed",
    "a frame too large": "cut off",
    "a frame of 4 GiB": "cut off",
    "no msgpack": "cut off",
    "no envelope": "cut off",
    "nested without end": "cut off",
    "another protocol": "cut off",
}
REFUSED = {
    "a name outside policy": ("names.dns", "issuance.refused"),
    "a wildcard without DNS": ("names.evidence", "issuance.refused"),
    "no evidence": ("names.evidence", "issuance.refused"),
    "evidence of another name": ("names.evidence", "issuance.refused"),
    "old evidence": ("names.evidence", "issuance.refused"),
    "no check of CAA": ("names.caa", "issuance.refused"),
    "an old check of CAA": ("names.caa", "issuance.refused"),
    "a check of another name's CAA": ("names.caa", "issuance.refused"),
    "no names": ("names.empty", "issuance.refused"),
    "names that the CSR has not": ("csr.names", "issuance.refused"),
    "no proof of possession": ("csr.signature", "issuance.refused"),
    "no CSR": ("csr.der", "issuance.refused"),
    "a weak key": ("keys.allowed", "issuance.refused"),
    "a validity too long": ("validity.maximum", "issuance.refused"),
    "an unknown profile": ("profile.unknown", "issuance.refused"),
    "the core's own profile": ("profile.frontends", "issuance.refused"),
    "an unknown pinned profile": ("profile.pinned", "issuance.refused"),
    "a CA": ("port.front", "access.refused"),
    "an operator's right": ("port.front", "access.refused"),
    "another tenant": ("port.front", "access.refused"),
    "to revoke what is another's": ("revocation.internal", "revocation.refused"),
    "to revoke as an operator": ("port.front", "access.refused"),
    "to revoke as the core": ("port.front", "access.refused"),
}
"""By what is asked: the rule that is answered, and the event with that rule on record."""


def test_the_cores_port_refuses(burgled: Burgled) -> None:
    """Whoever speaks in a front's place: what is no message, what no front may ask, what policy forbids."""
    server = burgled.server
    (responder,) = (each for each in told(server, "cert", "list") if each["profile"] == "ocsp-responder")
    python = server.command.with_name("python")
    said = run([python, IMPOSTOR, server.home / "run" / "core.sock", responder["serial"]], user="ca-server-front")
    answers = json.loads(said.stdout)
    assert answers.pop("what policy allows"), "the core goes on serving, on the connection that was there before"
    assert answers.pop("an unknown external account key")[0] == "bad-binding"
    assert {name: answers.pop(name) for name in NO_MESSAGES} == NO_MESSAGES
    assert {name: rule for name, (_, rule) in answers.items()} == {name: rule for name, (rule, _) in REFUSED.items()}
    with closing(sqlite3.connect(server.home / "data" / "ca.db")) as connection:
        events = connection.execute("SELECT request_id, rule, type FROM audit_events WHERE outcome = 'denied'")
        on_record = {request_id: (rule, kind) for request_id, rule, kind in events}
    assert on_record == REFUSED | {None: ("eab", "access.refused")}
    assert burgled.place.pid("core") == burgled.core


def test_what_is_not_defended_where_a_plain_user_starts_it(
    ca_server_command: Path, open_folder: Callable[[str], Path]
) -> None:
    """As docs/security.md says: its files are open to a front, the core's memory is not."""
    folder = open_folder("plain")
    server = Server(ca_server_command, folder)
    place = Place(server, open_folder("place"))
    as_nobody: tuple[str, ...] = ()
    if os.getuid() == 0:
        os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
        as_nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--")
    run([*as_nobody, ca_server_command, "init", *server.options], env=server.environment)
    server.start(*as_nobody, ca_server_command, "serve")
    try:
        open_to_it = [f"read {server.home}/core/pin", f"write {server.home}/core/anchor"]
        memory = [
            "read the core's environ",
            "open the core's memory",
            "read the core's memory",
            "list the core's descriptors",
            "take the core's descriptor",
            "trace the core",
        ]
        ended = burgle(server, place, *open_to_it, *memory).told["ended"]
        assert ended == dict.fromkeys(open_to_it, "done") | dict.fromkeys(memory, "PermissionError")
    finally:
        server.stop()


def findings(server: Server) -> list[dict[str, str]]:
    """What `audit verify` finds."""
    return list(json.loads(server.cli("audit", "verify", "--json", expect=1).stdout)["findings"])


# The last test: it leaves no server behind that could be tested.
def test_what_a_front_alters_in_sqlite_is_revealed(
    burgled: Burgled, enroll: Callable[[Server], Enrollment], tmp_path: Path
) -> None:
    server, place, customer = burgled.server, burgled.place, enroll(burgled.server)
    serials = {}
    for name in ("edited", "deleted", "forged", "revoked"):
        file = customer.certificate(tmp_path, f"{name}.example.test")
        serials[name] = serial_text(x509.load_pem_x509_certificate(file.read_bytes()).serial_number)
    server.cli("cert", "revoke", serials["revoked"])
    database = str(server.home / "data" / "ca.db")
    with closing(sqlite3.connect(database)) as connection:
        ((first,),) = connection.execute("SELECT event_id FROM audit_leaves WHERE leaf_index = 0")
        ((size,),) = connection.execute("SELECT max(size) / 2 FROM audit_checkpoints")
    revocation = "revoked_at = {}, revocation_reason = {} WHERE serial = '{}'"
    certificate = f"SELECT id FROM certificates WHERE serial = '{serials['deleted']}'"
    deeds = [
        f"UPDATE certificates SET der = x'3000' WHERE serial = '{serials['edited']}'",
        f"DELETE FROM certificate_names WHERE certificate_id IN ({certificate})",
        f"DELETE FROM certificates WHERE serial = '{serials['deleted']}'",
        "UPDATE certificates SET " + revocation.format(1, 1, serials["forged"]),
        "UPDATE certificates SET " + revocation.format("NULL", "NULL", serials["revoked"]),
        "DROP TRIGGER audit_events_no_update",
        f"UPDATE audit_events SET leaf = replace(leaf, 'server', 'nobody') WHERE id = '{first}'",
    ]
    assert place.run(VANDAL, DATABASE=database, STATEMENTS=deeds).count(1) == 6
    found = {(finding["where"], finding["kind"]) for finding in findings(server)}
    for name, kind in (
        ("edited", "edited"),
        ("deleted", "missing-certificate"),
        ("forged", "missing-event"),
        ("revoked", "missing-revocation"),
    ):
        assert (f"serial {serials[name]} of issuer issuing", kind) in found, name
    assert ("leaf 0", "edited") in found

    last = "SELECT max(size) FROM audit_checkpoints"
    cut = [
        *(f"DROP TRIGGER audit_{table}_no_delete" for table in ("events", "leaves", "checkpoints")),
        f"DELETE FROM audit_checkpoints WHERE size > {size}",
        f"CREATE TEMP TABLE kept AS SELECT event_id FROM audit_leaves WHERE leaf_index < ({last})",
        "DELETE FROM audit_leaves WHERE event_id NOT IN (SELECT event_id FROM kept)",
        "DELETE FROM audit_pending",
        "DELETE FROM audit_events WHERE id NOT IN (SELECT event_id FROM kept)",
    ]
    place.run(VANDAL, DATABASE=database, STATEMENTS=cut)
    assert [finding for finding in findings(server) if finding["text"].startswith("the anchor has seen")]
