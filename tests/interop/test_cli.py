"""The command line, as operators and their scripts use it: beside a running server and without one."""

import hashlib
import json
import os
import pty
import re
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from interoplib.acme import AcmeClient
from interoplib.commands import column, lines_of, refusal, rows, told
from interoplib.enrollment import Enrollment, Surroundings
from interoplib.server import Server
from interoplib.tools import run
from interoplib.web import ChallengeServer

NAMES = (
    "one.cli.test",
    "two.cli.test",
    "three.cli.test",
    "four.cli.test",
    "five.cli.test",
    "again.cli.test",
    "six.other.test",
)
HELD = ("one.hold.test", "two.hold.test", "three.hold.test")
"""Names of certificates that may be put on hold."""
ACTOR = f"uid:{os.getuid()}"
UNKNOWN_SERIAL = "7f" * 19


@pytest.fixture(scope="module")
def operated(
    ca_server_command: Path, surroundings: Surroundings, open_folder: Callable[[str], Path]
) -> Iterator[Server]:
    """A CA of this module's own, with certificates by ACME for NAMES."""
    folder = open_folder("cli")
    server = Server(ca_server_command, folder, (*surroundings.settings, "acme.limits.orders_per_account=7 per 7h"))
    server.init()
    profile = server.home / "profiles" / "short.toml"
    profile.write_text("allow_hold = true\n" + profile.read_text())
    server.start()
    with ChallengeServer(folder / "www", surroundings.http_01_port) as web:
        client = AcmeClient(server.directory, server.root).register()
        enrollment = Enrollment(client, web, surroundings.dns)
        for name in NAMES:
            enrollment.certificate(folder, name)
        short = AcmeClient(server.directory.replace("/directory", "/short/directory"), server.root).register()
        for name in HELD:
            Enrollment(short, web, surroundings.dns).certificate(folder, name)
    yield server
    if server.process is not None:
        assert server.stop() == 0, server.log_tail()


BOTH_WAYS = pytest.mark.parametrize("server", ["running", "stopped"], indirect=True)
"""Commands that change something go through the running core, or do its work while it is stopped."""


@pytest.fixture(scope="module", params=["running"])
def server(request: pytest.FixtureRequest, operated: Server) -> Server:
    """The CA, running, or stopped for tests that run both ways."""
    if request.param == "running" and operated.process is None:
        operated.start()
    if request.param == "stopped" and operated.process is not None:
        assert operated.stop() == 0
    return operated


def serial_of(server: Server, name: str) -> str:
    return str(server.certificates(name)[0]["serial"])


def fresh(server: Server) -> str:
    """The serial of one of NAMES that is not revoked yet."""
    found = told(server, "cert", "list", "--name", ".cli.test", "--status", "valid")
    assert found, "all were revoked: add names"
    return str(found[-1]["serial"])


def events(server: Server, *criteria: str) -> list[dict[str, Any]]:
    return lines_of(server, "audit", "tail", "--json", "-n", "1000", *criteria)


def crl_of(server: Server, issuer: str = "issuing") -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl(server.cli("crl", "show", issuer, "--pem").stdout.encode())


# --- init ---------------------------------------------------------------------------------------------------------


def test_init_made_strong_pins_for_the_owner_alone(operated: Server) -> None:
    pins = [(operated.home / "core" / name) for name in ("pin", "so-pin")]
    texts = [pin.read_text().strip() for pin in pins]
    assert len(set(texts)) == 2
    for pin, text in zip(pins, texts, strict=True):
        assert len(set(text)) >= 8
        assert len(text) >= 16
        assert stat.S_IMODE(pin.stat().st_mode) == 0o600


def test_init_takes_no_pin_as_an_argument(operated: Server) -> None:
    line = refusal(operated, "init", "--pin", "123456", code=2)
    assert "--pin" in line


@pytest.mark.parametrize("by", ["file", "environment"])
def test_init_takes_a_pin(ca_server_command: Path, open_folder: Callable[[str], Path], by: str) -> None:
    folder = open_folder("pin")
    server = Server(ca_server_command, folder)
    options: list[str] = []
    environment: dict[str, str] = {}
    if by == "file":
        (folder / "pin").write_text("Chosen-Pin-1\n")
        options = ["--pin-file", str(folder / "pin")]
    else:
        environment = {"CA_SERVER_PIN": "Chosen-Pin-1"}
    done = run([server.command, "init", *server.options, *options], env=environment)
    assert "Chosen-Pin-1" not in done.stdout + done.stderr
    kept = server.home / "core" / "pin"
    assert kept.read_text().strip() == "Chosen-Pin-1"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert {check["name"]: check["verdict"] for check in told(server, "doctor")}["token"] == "good"


@pytest.mark.parametrize(
    ("text", "told_of"), [("123", "PIN"), ("", "PIN"), ("1" * 256, "PIN"), (None, "can't be read")]
)
def test_init_refuses_a_pin(
    ca_server_command: Path, open_folder: Callable[[str], Path], text: str | None, told_of: str
) -> None:
    folder = open_folder("badpin")
    if text is not None:
        (folder / "pin").write_text(text)
    server = Server(ca_server_command, folder)
    line = refusal(server, "init", "--pin-file", str(folder / "pin"), code=2)
    assert str(folder / "pin") in line
    assert told_of in line
    assert not text or text not in line


def test_init_writes_its_options_down(ca_server_command: Path, open_folder: Callable[[str], Path]) -> None:
    server = Server(ca_server_command, open_folder("options"))
    server.init("--allow-domain", "corp.example", "--allow-domain", "lab.example")
    settings = told(server, "config", "check")["settings"]
    assert settings["policy"]["extra_domains"] == ["corp.example", "lab.example"]
    assert settings["listeners"]["https"]["port"] == server.https_port
    assert settings["listeners"]["http"]["port"] == server.http_port
    assert settings["server"]["external_host"] == "127.0.0.1"


# --- issuer -------------------------------------------------------------------------------------------------------


def test_issuer_list(server: Server) -> None:
    listed = told(server, "issuer", "list")
    assert [(row["name"], row["kind"], row["parent"]) for row in listed] == [
        ("root", "root", None),
        ("issuing", "issuing", "root"),
    ]
    assert column(server.cli("issuer", "list").stdout) == ["name", "root", "issuing"]


def test_issuer_show(server: Server) -> None:
    shown = told(server, "issuer", "show", "issuing")
    certificate = x509.load_pem_x509_certificate(server.cli("issuer", "export", "issuing").stdout.encode())
    assert int(shown["serial"], 16) == certificate.serial_number
    assert shown["subject"] == certificate.subject.rfc4514_string()
    assert shown["crl_url"] == f"{server.http_url}/crl/issuing.1.0.crl"
    assert shown["ocsp_url"] == f"{server.http_url}/ocsp"
    assert told(server, "issuer", "show", "root")["ocsp_url"] is None
    human = server.cli("issuer", "show", "issuing").stdout
    assert f"serial           {shown['serial']}\n" in human
    assert shown["sha256"] in human


def test_issuer_export(server: Server) -> None:
    root = x509.load_pem_x509_certificate(server.cli("issuer", "export", "root").stdout.encode())
    chain = x509.load_pem_x509_certificates(server.cli("issuer", "export", "issuing", "--chain").stdout.encode())
    assert [each.subject for each in chain[1:]] == [root.subject]
    chain[0].verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)


@pytest.mark.parametrize(
    "arguments", [("issuer", "show"), ("issuer", "export"), ("crl", "show"), ("crl", "publish")], ids=" ".join
)
def test_unknown_issuer(server: Server, arguments: tuple[str, str]) -> None:
    assert "there is no issuer 'nobody'" in refusal(server, *arguments, "nobody", code=1)


# --- cert list, show, export --------------------------------------------------------------------------------------


def test_cert_list_is_newest_first(server: Server) -> None:
    listed = told(server, "cert", "list")
    assert [row["issued_at"] for row in listed] == sorted((row["issued_at"] for row in listed), reverse=True)
    assert len(listed) >= len(NAMES) + 4, "issuers, responder and listener have certificates too"
    table = server.cli("cert", "list").stdout
    assert column(table) == ["serial", *(row["serial"] for row in listed)]


def names_of(listed: list[dict[str, Any]]) -> set[str]:
    return {name.removeprefix("dns:") for row in listed for name in row["names"]}


@pytest.mark.parametrize(
    ("criteria", "found"),
    [
        ("--name one.cli.test", NAMES[:1]),
        ("--name .cli.test", NAMES[:6]),
        ("--name .cli.test --issuer root", ()),
        ("--name .test --profile default", NAMES),
        ("--name .test --profile short", HELD),
        ("--name .test --expiring-within 13w", (*NAMES, *HELD)),
        ("--name .test --expiring-within 80d", HELD),
        ("--name .test --status expired", ()),
    ],
)
def test_cert_list_finds(operated: Server, criteria: str, found: tuple[str, ...]) -> None:
    revoked = names_of(told(operated, "cert", "list", "--name", ".test", "--status", "revoked"))
    expected = set(found) - revoked if "--expiring-within" in criteria else set(found)
    assert names_of(told(operated, "cert", "list", *criteria.split())) == expected


def test_cert_list_by_serial_and_requester(operated: Server) -> None:
    row = operated.certificates("one.cli.test")[0]
    assert told(operated, "cert", "list", "--serial", row["serial"][:12]) == [row]
    assert told(operated, "cert", "list", "--serial", row["serial"].upper()) == [row]
    of_requester = told(operated, "cert", "list", "--requester", row["requester"])
    assert names_of(of_requester) == set(NAMES)


def test_cert_list_pages(operated: Server) -> None:
    whole = [row["serial"] for row in told(operated, "cert", "list", "--profile", "default")]
    collected: list[str] = []
    while True:
        after = ("--after", collected[-1]) if collected else ()
        done = operated.cli("cert", "list", "--profile", "default", "-n", "4", *after, "--json")
        page = [row["serial"] for row in json.loads(done.stdout)]
        collected += page
        if not done.stderr:
            break
        assert len(page) == 4
        assert done.stderr == f"there are more: --after {page[-1]}\n"
    assert collected == whole


@pytest.mark.parametrize(
    "arguments",
    [
        ("--status", "good"),
        ("--expiring-within", "soon"),
        ("--expiring-within", "30d", "--status", "revoked"),
        ("--limit", "0"),
        ("--limit", "many"),
        ("--no-such-option",),
    ],
    ids=" ".join,
)
def test_cert_list_refuses(operated: Server, arguments: tuple[str, ...]) -> None:
    line = refusal(operated, "cert", "list", *arguments, code=2)
    assert arguments[0] in line
    assert "see ca-server cert list --help" in line


@BOTH_WAYS
def test_cert_show(server: Server) -> None:
    serial = serial_of(server, "six.other.test")
    shown = told(server, "cert", "show", serial)
    assert shown["status"] == "valid"
    assert shown["names"] == ["dns:six.other.test"]
    assert shown["key"] == "ec-p256"
    assert shown["requester"].startswith("acme:")
    assert shown["validated_by"] == "http-01"
    (validation,) = shown["validations"]
    assert (validation["name"], validation["method"]) == ("dns:six.other.test", "http-01")
    assert validation["validated_at"] <= shown["issued_at"]
    assert validation["evidence"]
    assert shown["source"] == "127.0.0.1"
    assert shown["request_id"]
    assert [event["type"] for event in shown["events"]][:2] == ["issuance.reserved", "issuance.stored"]
    human = server.cli("cert", "show", serial).stdout
    for told_of in (serial, shown["sha256"], shown["requester"], "issuance.stored", "http-01"):
        assert told_of in human


@pytest.mark.parametrize("form", ["{}", "0x{}", "00{}", "{:.10}"])
def test_cert_show_takes_a_serial_as_it_is_written_elsewhere(operated: Server, form: str) -> None:
    serial = serial_of(operated, "six.other.test")
    assert told(operated, "cert", "show", form.format(serial))["serial"] == serial
    with_colons = ":".join(re.findall("..", serial)).upper()
    assert told(operated, "cert", "show", with_colons)["serial"] == serial


@pytest.mark.parametrize("command", ["show", "export", "revoke"])
@pytest.mark.parametrize(
    ("serial", "why"),
    [
        (UNKNOWN_SERIAL, f"there is no certificate with serial {UNKNOWN_SERIAL}"),
        ("xyz", "'xyz' is no serial number in hexadecimal"),
        ("", "'' is no serial number in hexadecimal"),
        ("0" * 12, f"there is no certificate with serial {'0' * 12}"),
    ],
)
def test_unknown_serial(server: Server, command: str, serial: str, why: str) -> None:
    assert refusal(server, "cert", command, serial, code=1) == f"ca-server: {why}"


def test_a_serial_under_another_issuer_is_unknown(operated: Server) -> None:
    serial = serial_of(operated, "six.other.test")
    assert "no certificate" in refusal(operated, "cert", "show", serial, "--issuer", "root", code=1)


def test_first_digits_of_several_certificates(operated: Server) -> None:
    listed = [row["serial"] for row in told(operated, "cert", "list")]
    prefix = next(
        (digit for digit in "0123456789abcdef" if sum(serial.startswith(digit) for serial in listed) > 1), None
    )
    if prefix is None:
        pytest.fail("no two of ten serials begin with the same digit")
    assert "more than one certificate" in refusal(operated, "cert", "show", prefix, code=1)


def test_cert_export(server: Server) -> None:
    serial = serial_of(server, "six.other.test")
    certificate = x509.load_pem_x509_certificate(server.cli("cert", "export", serial).stdout.encode())
    assert certificate.serial_number == int(serial, 16)


# --- Revocation and CRLs ------------------------------------------------------------------------------------------


@BOTH_WAYS
def test_cert_revoke(server: Server) -> None:
    """Running or stopped: recorded with the actor, and on the published CRL."""
    serial = fresh(server)
    answer = told(server, "cert", "revoke", serial, "--reason", "superseded")
    assert (answer["serial"], answer["reason"]) == (serial, "superseded")
    event = events(server, "--serial", serial)[-1]
    assert (event["type"], event["actor"], event["authenticated_by"]) == ("certificate.revoked", ACTOR, "operator")
    assert event["reason"] == "superseded"
    shown = told(server, "cert", "show", serial)
    assert (shown["status"], shown["revocation_reason"], shown["revoked_by"]) == ("revoked", "superseded", ACTOR)
    entry = wait_for_entry(server, serial)
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.superseded
    shown = told(server, "cert", "show", serial)
    listed = told(server, "crl", "show", "issuing")
    assert shown["on_crl"] == listed["number"]
    assert {"serial": serial, "revoked_at": shown["revoked_at"], "reason": "superseded"} in listed["revoked"]
    assert serial in column(server.cli("crl", "show", "issuing").stdout)


def wait_for_entry(server: Server, serial: str, *, gone: bool = False) -> Any:
    """The running server signs its CRL a moment later; a stopped one has none to wait for."""
    for _ in range(100 if server.process else 1):
        entry = crl_of(server).get_revoked_certificate_by_serial_number(int(serial, 16))
        if (entry is None) is gone:
            return entry
    pytest.fail("the CRL does not show it")


def test_revoking_twice(server: Server) -> None:
    serial = fresh(server)
    server.cli("cert", "revoke", serial)
    assert refusal(server, "cert", "revoke", serial, code=1) == "ca-server: the certificate was revoked before"
    human = server.cli("cert", "revoke", serial, "--reason", "key-compromise").stdout
    assert human == f"revoked {serial} of issuing: key-compromise\n"


@pytest.mark.parametrize(("reason", "code"), [("bored", 2), ("remove-from-crl", 2), ("certificate-hold", 1)])
def test_wrong_reason(server: Server, reason: str, code: int) -> None:
    serial = serial_of(server, "six.other.test")
    line = refusal(server, "cert", "revoke", serial, "--reason", reason, code=code)
    if code == 2:
        assert "superseded" in line, "says what there is"
    else:
        assert line.endswith("(rule profile.allow_hold)")
        refused = events(server, "--serial", serial, "--type", "revocation.refused")[-1]
        assert (refused["actor"], refused["rule"]) == (ACTOR, "profile.allow_hold")
    assert told(server, "cert", "show", serial)["status"] == "valid"


@BOTH_WAYS
def test_hold(server: Server) -> None:
    """Where the profile allows it; out of a hold the certificate is revoked for good."""
    found = [server.certificates(name)[0] for name in HELD[1:]]
    serial = next(row["serial"] for row in found if row["status"] == "valid")
    server.cli("cert", "revoke", serial, "--reason", "certificate-hold")
    assert told(server, "cert", "show", serial)["revocation_reason"] == "certificate-hold"
    wait_for_entry(server, serial)
    server.cli("cert", "revoke", serial, "--reason", "cessation-of-operation")
    assert told(server, "cert", "show", serial)["revocation_reason"] == "cessation-of-operation"
    story = events(server, "--serial", serial, "--type", "certificate.revoked")
    assert [(event["actor"], event["reason"]) for event in story] == [
        (ACTOR, "certificate-hold"),
        (ACTOR, "cessation-of-operation"),
    ]


@BOTH_WAYS
def test_hold_and_release(server: Server) -> None:
    """Off the list again, and the whole story on record."""
    serial = serial_of(server, HELD[0])
    assert "not on hold" in refusal(server, "cert", "release", serial, code=1)
    server.cli("cert", "revoke", serial, "--reason", "certificate-hold")
    assert told(server, "cert", "show", serial)["revocation_reason"] == "certificate-hold"
    wait_for_entry(server, serial)
    assert told(server, "cert", "release", serial) == {"issuer": "issuing", "serial": serial, "status": "valid"}
    assert told(server, "cert", "show", serial)["status"] == "valid"
    wait_for_entry(server, serial, gone=True)
    story = events(server, "--serial", serial, "--type", "certificate.revoked")[-2:]
    assert [(event["actor"], event["reason"]) for event in story] == [
        (ACTOR, "certificate-hold"),
        (ACTOR, "remove-from-crl"),
    ]
    server.cli("cert", "revoke", serial, "--reason", "certificate-hold")
    assert server.cli("cert", "release", serial).stdout == f"released {serial} of issuing\n"


@BOTH_WAYS
def test_crl_publish(server: Server) -> None:
    before = told(server, "crl", "show", "root")
    published = told(server, "crl", "publish", "root")
    assert published["number"] == before["number"] + 1
    assert told(server, "crl", "show", "root") == published
    event = events(server, "--type", "crl.published")[-1]
    assert (event["actor"], event["extra"]["number"]) == (ACTOR, str(published["number"]))
    human = rows(server.cli("crl", "publish", "root").stdout)
    assert ["number", str(published["number"] + 1)] in [[cell.strip() for cell in row] for row in human]


# --- Blocked keys -------------------------------------------------------------------------------------------------


@BOTH_WAYS
def test_blocklist(server: Server, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    file = tmp_path / "leaked.pem"
    file.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    assert server.cli("key", "block", str(file), "--reason", "leaked").stdout == f"blocked: {digest}\n"
    assert server.cli("key", "block", digest, "--reason", "again").stdout == f"was blocked already: {digest}\n"
    assert (digest, "leaked") in {(row["spki_sha256"], row["reason"]) for row in told(server, "key", "list")}
    assert digest in server.cli("key", "list").stdout
    assert server.cli("key", "unblock", digest.upper()).stdout == f"unblocked: {digest}\n"
    assert refusal(server, "key", "unblock", digest, code=1) == f"ca-server: this key is not blocked: {digest}"
    story = events(server, "--object", f"spki:{digest}")
    assert [(event["type"], event["actor"], event.get("reason")) for event in story] == [
        ("key.blocked", ACTOR, "leaked"),
        ("key.unblocked", ACTOR, None),
    ]
    assert "can't be read" in refusal(server, "key", "block", "nowhere.pem", "--reason", "x", code=1)
    file.write_text("no key")
    assert "no public key" in refusal(server, "key", "block", str(file), "--reason", "x", code=1)


def test_a_compromised_key_is_blocked(server: Server) -> None:
    serial = fresh(server)
    server.cli("cert", "revoke", serial, "--reason", "key-compromise")
    spki = told(server, "cert", "show", serial)["spki_sha256"]
    assert spki in {row["spki_sha256"] for row in told(server, "key", "list")}


# --- Incidents ----------------------------------------------------------------------------------------------------


@BOTH_WAYS
def test_incidents(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "serials"
    file.write_text("0A:0b\n0c\n")
    wanted = ("--reason", "weak", "--serial", "1f", "--serials", str(file), "--method", "http-01")
    made = told(server, "incident", "create", *wanted, "--explanation-url", "https://ca.test/why")
    assert made["targets"] == ["serial:1f", "serial:0a0b", "serial:0c", "method:http-01"]
    listed = next(each for each in told(server, "incident", "list") if each["id"] == made["id"])
    assert listed == made | {"targets": sorted(made["targets"])}
    assert made["id"] in server.cli("incident", "list").stdout
    assert server.cli("incident", "end", made["id"]).stdout == f"ended: {made['id']}\n"
    assert "no incident" in refusal(server, "incident", "end", made["id"], code=1)
    story = events(server, "--object", f"incident:{made['id']}")
    assert [(event["type"], event["actor"], event.get("reason")) for event in story] == [
        ("incident.created", ACTOR, "weak"),
        ("incident.ended", ACTOR, None),
    ]
    said = server.cli("incident", "create", "--reason", "weak", "--profile", "short").stdout
    assert said.endswith("begins now; targets: 1\n")
    for wrong in (("--serial", "xyz"), ("--issuer", "nobody"), ("--serials", "nowhere"), ()):
        refusal(server, "incident", "create", "--reason", "weak", *wrong, code=1)


# --- External account keys ----------------------------------------------------------------------------------------


@BOTH_WAYS
def test_eab_life(server: Server) -> None:
    made = told(
        server, "eab", "create", "--profile", "short", "--owner", "[red]web[/red] :key: team", "--expires", "2d"
    )
    kid, secret = made["kid"], made["hmac_key"]
    assert not kid.startswith("-")
    assert len(secret) == 43
    listed = {row["kid"]: row for row in told(server, "eab", "list")}
    assert (listed[kid]["status"], listed[kid]["profiles"], listed[kid]["max_uses"]) == ("usable", ["short"], 1)
    assert "hmac_key" not in listed[kid]
    expires = datetime.fromisoformat(listed[kid]["expires_at"])
    assert abs(expires - datetime.now(UTC) - timedelta(days=2)) < timedelta(minutes=5)
    table = server.cli("eab", "list").stdout
    assert "[red]web[/red] :key: team" in table, "text is shown, not obeyed"
    assert secret not in table
    event = events(server, "--object", f"eab:{kid}")[-1]
    assert (event["type"], event["actor"]) == ("eab.created", ACTOR)
    assert server.cli("eab", "disable", kid).stdout == f"disabled {kid}\n"
    event = events(server, "--object", f"eab:{kid}")[-1]
    assert (event["type"], event["actor"]) == ("eab.disabled", ACTOR)
    assert {row["kid"]: row["status"] for row in told(server, "eab", "list")}[kid] == "disabled"
    assert refusal(server, "eab", "disable", kid, code=1) == f"ca-server: the key '{kid}' was disabled before"


def test_eab_for_people(server: Server) -> None:
    lines = server.cli("eab", "create", "--reusable").stdout.splitlines()
    kid = lines[0].split()[-1]
    secret = lines[1].split()[-1]
    assert lines[2].split()[1:] == [f"--eab-kid={kid}", f"--eab-hmac-key={secret}"]
    done = told(server, "eab", "disable", kid, "--and-accounts")
    assert done == {"kid": kid, "status": "disabled", "accounts_revoked": True}


def test_eab_policy_is_bound_shown_and_changed(server: Server) -> None:
    wanted = ("--names", "*.web.example", "--names", "10.0.0.0/8", "--quota", "20 live", "--quota", "100 per 7d")
    kid = told(server, "eab", "create", "--reusable", "--max-uses", "5", *wanted)["kid"]
    shown = told(server, "eab", "show", kid)
    assert (shown["names"], shown["quota"]) == (["*.web.example", "10.0.0.0/8"], ["20 live", "100 per 7d"])
    assert (shown["uses"], shown["max_uses"], shown["accounts"], shown["certificates_live"]) == (0, 5, {}, 0)
    changed = told(server, "eab", "update", kid, "--quota", "3 live", "--owner", "web team", "--expires", "1d")
    assert (changed["quota"], changed["names"], changed["owner"]) == (["3 live"], shown["names"], "web team")
    changed = told(server, "eab", "update", kid, "--names", "none", "--expires", "none", "--max-uses", "none")
    assert (changed["quota"], changed["names"], changed["owner"]) == (["3 live"], [], "web team")
    assert (changed["expires_at"], changed["max_uses"]) == (None, None)
    event = events(server, "--object", f"eab:{kid}")[-1]
    assert (event["type"], event["actor"], event["extra"]["live"]) == ("eab.updated", ACTOR, "3")
    assert "web team" in server.cli("eab", "show", kid).stdout


def test_eab_mistakes(server: Server) -> None:
    assert "there is no key 'nobody'" in refusal(server, "eab", "disable", "nobody", code=1)
    assert "there is no profile 'nobody'" in refusal(server, "eab", "create", "--profile", "nobody", code=1)
    assert "10.0.0.1/8" in refusal(server, "eab", "create", "--names", "10.0.0.1/8", code=1)


def test_acme_limits(server: Server) -> None:
    """The first account has taken all, the other one three of seven; each takes an hour to come back."""
    listed = told(server, "acme", "limits", "list")
    assert [row["refuses"] for row in listed] == [True, False]
    assert all(row["key"].startswith("default/orders_per_account/") for row in listed)
    whole = [datetime.fromisoformat(row["whole_at"]) - datetime.now(UTC) for row in listed]
    assert timedelta(hours=2) < whole[1] <= timedelta(hours=3) < timedelta(hours=6) < whole[0] <= timedelta(hours=7)
    assert told(server, "acme", "limits", "list", "--refusing") == listed[:1]
    assert told(server, "acme", "limits", "list", "--limit", "1") == listed[:1]
    assert listed[1]["key"] in server.cli("acme", "limits", "list").stdout
    key = listed[1]["key"]
    assert server.cli("acme", "limits", "reset", key).stdout == f"reset {key}\n"
    event = events(server, "--object", f"acme-limit:{key}")[-1]
    assert (event["type"], event["actor"]) == ("limit.reset", ACTOR)
    assert "nothing is taken from" in refusal(server, "acme", "limits", "reset", key, code=1)
    assert told(server, "acme", "limits", "list") == listed[:1]


def test_acme_order_show(server: Server) -> None:
    """From a name to the order, and from the order to what each attempt saw, the certificate and the log."""
    name = "three.cli.test"
    (listed,) = told(server, "acme", "order", "list", "--name", name)
    assert (listed["status"], listed["names"]) == ("valid", [f"dns:{name}"])
    shown = told(server, "acme", "order", "show", listed["id"])
    assert shown["certificate"]["serial"] == serial_of(server, name)
    (authorization,) = shown["authorizations"]
    attempts = [attempt for challenge in authorization["challenges"] for attempt in challenge["attempts"]]
    assert [attempt["outcome"] for attempt in attempts] == ["valid"]
    assert attempts[0]["seen"]
    found = {event["type"]: event for event in shown["events"]}
    assert {"order.created", "challenge.validated", "issuance.reserved", "issuance.stored"} <= set(found)
    assert found["issuance.stored"]["serial"] == shown["certificate"]["serial"]
    leaves = [event["leaf"] for event in shown["events"]]
    assert None not in leaves
    assert found["order.created"]["request_id"] == shown["request_id"]
    table = server.cli("acme", "order", "show", listed["id"]).stdout
    for text in (shown["account"]["key_thumbprint"], attempts[0]["seen"][0], shown["certificate"]["serial"]):
        assert text in table
    account = told(server, "acme", "account", "show", listed["account"])
    assert account["orders"] == len(NAMES)
    assert account["id"] in [each["id"] for each in told(server, "acme", "account", "list")]


def test_acme_simulate(server: Server, tmp_path: Path) -> None:
    """Beside a running server, and with no trace in its log."""
    account = told(server, "acme", "order", "list", "--name", HELD[0])[0]["account"]
    before = logged(server)
    asked = ("acme", "simulate", "--account", account, "--profile", "short")
    steps = told(server, *asked, "--name", HELD[0], "--name", "new.hold.test")
    assert {step["verdict"] for step in steps} == {"allow"}
    assert [step["name"] for step in steps][-3:] == ["csr", "certificate", "lint"]
    reused, made = [step["detail"] for step in steps if step["name"] == "authorization"]
    assert "a valid one is reused" in reused
    assert "dns-01" in made
    weak = tmp_path / "weak.pem"
    key = rsa.generate_private_key(65537, 1024)
    names = x509.SubjectAlternativeName([x509.DNSName(HELD[0])])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False)
    weak.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    options = ("--name", HELD[0], "--csr", str(weak), "--home", server.home, "--json")
    last = json.loads(run([server.command, *asked, *options], expect=1).stdout)[-1]
    assert (last["name"], last["verdict"], last["rule"]) == ("csr", "deny", "keys.allowed")
    assert logged(server) == before


def logged(server: Server) -> list[str]:
    """The log, but for what it says of keys every now and then."""
    return [line for line in server.cli("audit", "export").stdout.splitlines() if '"type":"key.used"' not in line]


@BOTH_WAYS
def test_acme_account_revoke(server: Server) -> None:
    account = told(server, "acme", "account", "list", "--status", "valid")[-1]["id"]
    revoked = told(server, "acme", "account", "revoke", account, "--reason", "a test")
    assert revoked == {"id": account, "status": "revoked"}
    assert "there is no valid account" in refusal(server, "acme", "account", "revoke", account, "--reason", "a", code=1)
    (event,) = events(server, "--type", "account.revoked", "--object", f"acme:{account}")
    assert (event["actor"], event["reason"]) == (ACTOR, "a test")


def test_acme_order_mistakes(server: Server) -> None:
    assert "there is no order 'none'" in refusal(server, "acme", "order", "show", "none", code=1)
    assert "there is no account 'none'" in refusal(server, "acme", "account", "show", "none", code=1)
    assert "--status" in refusal(server, "acme", "order", "list", "--status", "lost", code=2)
    done = run([server.command, "acme", "order", "list", "-n", "1", "--home", str(server.home)])
    assert re.search(r"^there may be more: --after \S+$", done.stderr, re.MULTILINE)


# --- The audit log ------------------------------------------------------------------------------------------------


def test_audit_verify(server: Server) -> None:
    report = told(server, "audit", "verify")
    assert report["ok"] is True
    assert report["findings"] == []
    assert report["certificates"] >= len(NAMES)
    done = server.cli("audit", "verify")
    assert done.stdout.startswith("the log is whole: ")
    assert done.stderr == "", "no progress bar where nobody looks"


def test_audit_verify_shows_progress_on_a_terminal(operated: Server) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [operated.command, "audit", "verify", "--home", operated.home],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:  # how Linux tells that nobody writes to a terminal any more
        pass
    output = process.communicate(timeout=60)[0]
    os.close(master)
    assert process.returncode == 0
    assert output.startswith(b"the log is whole")
    assert b"verifying leaves" in shown


def test_audit_verify_with_another_key(operated: Server, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    assert str(file) in refusal(operated, "audit", "verify", "--key", str(file), code=2)
    file.write_text("no key")
    assert str(file) in refusal(operated, "audit", "verify", "--key", str(file), code=2)
    root = x509.load_pem_x509_certificate(operated.cli("issuer", "export", "root").stdout.encode())
    from cryptography.hazmat.primitives.serialization import PublicFormat

    file.write_bytes(root.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    done = operated.cli("audit", "verify", "--key", str(file), expect=1)
    assert "THE LOG WAS ALTERED" in done.stdout
    assert "Traceback" not in done.stderr


def test_audit_export_gives_the_leaves(server: Server) -> None:
    """Each line is the leaf: hashing them all gives the root that `audit verify` found."""
    from ca_server.core.tlog import Frontier, leaf_hash

    if server.process is not None:
        report = told(server, "audit", "verify")
        last = ("--to", str(report["size"] - 1))
    else:
        report, last = told(server, "audit", "verify"), ()
    exported = server.cli("audit", "export", *last).stdout.encode()
    tree = Frontier()
    for line in exported.splitlines():
        assert json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == line
        tree.append(leaf_hash(line))
    assert (tree.size, tree.root().hex()) == (report["size"], report["root"])
    part = server.cli("audit", "export", "--from", "3", "--to", "5").stdout.encode()
    assert part.splitlines() == exported.splitlines()[3:6]
    assert server.cli("audit", "export", "--from", "1000000").stdout == ""


@pytest.mark.parametrize("server", ["stopped"], indirect=True)
def test_audit_tail(server: Server) -> None:
    """Of a stopped server: a running one has new events between two looks."""
    whole = server.cli("audit", "tail", "--json", "-n", "10000").stdout.splitlines()
    last = server.cli("audit", "tail", "--json", "-n", "3").stdout.splitlines()
    assert len(last) == 3
    assert last == whole[-3:]
    assert set(server.cli("audit", "export").stdout.splitlines()) <= set(whole)
    table = rows(server.cli("audit", "tail", "-n", "3").stdout)
    assert [row[2].strip() for row in table[1:]] == [json.loads(line)["type"] for line in last]
    created = events(server, "--type", "issuer.created")
    assert {event["type"] for event in created} == {"issuer.created"}
    assert len(created) == 2


def test_audit_tail_mistakes(operated: Server) -> None:
    assert "issuance.refused" in refusal(operated, "audit", "tail", "--type", "nothing", code=1)
    assert events(operated, "--serial", UNKNOWN_SERIAL) == []


def test_audit_tail_follows(operated: Server) -> None:
    if operated.process is None:
        operated.start()
    # Shells start what runs in the background with SIGINT ignored, and that is inherited.
    interruptible = ["env", "--default-signal=INT", operated.command]
    process = subprocess.Popen(
        [*interruptible, "audit", "tail", "--follow", "--json", "-n", "1", "--home", operated.home],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        made = told(operated, "eab", "create")
        for line in process.stdout:
            if json.loads(line).get("object") == f"eab:{made['kid']}":
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# --- Configuration, other mistakes --------------------------------------------------------------------------------


def test_config_check(operated: Server) -> None:
    file = operated.home / "ca-server.toml"
    line = operated.cli("config", "check").stdout
    assert line == f"{file}: good; profiles: default, listener, mutual, ocsp-responder, short\n"
    done = told(operated, "config", "check", "--set", "acme.require_eab=true")
    assert done["settings"]["acme"]["require_eab"] is True
    assert "default" in done["profiles"]


def test_config_check_names_the_place(operated: Server) -> None:
    line = refusal(operated, "config", "check", "--set", "token.threads=0", code=2)
    assert line == "ca-server: --set: token.threads = '0': write a whole number from 1 to 64"
    line = refusal(operated, "config", "check", "--set", "policy.default_profile=nobody", code=2)
    assert "policy.default_profile = 'nobody'" in line
    done = run(
        [operated.command, "config", "check", "--home", operated.home],
        env={"CA_SERVER__LOG__LEVEL": "loud"},
        expect=2,
    )
    assert done.stderr.startswith("ca-server: environment CA_SERVER__LOG__LEVEL: log.level = 'loud': write one of ")


@pytest.mark.parametrize(
    "command",
    [
        "issuer list",
        "cert list",
        "cert revoke 00ff",
        "crl publish issuing",
        "eab create",
        "audit verify",
        "audit export",
        "config check",
        "doctor",
        "serve",
    ],
)
def test_home_that_is_not_there(operated: Server, tmp_path: Path, command: str) -> None:
    line = refusal(operated, *command.split(), "--home", str(tmp_path / "nowhere"), code=2, home=False)
    assert str(tmp_path / "nowhere") in line
    assert "ca-server init" in line


@pytest.mark.parametrize("command", ["nobody", "cert nobody", "cert show", "crl publish a b", "issuer show --pem x"])
def test_mistakes_on_the_command_line(operated: Server, command: str) -> None:
    assert "--help" in refusal(operated, *command.split(), code=2, home=False)


def test_output_into_a_closed_pipe(operated: Server) -> None:
    done = run(["bash", "-c", f"'{operated.command}' audit export --home '{operated.home}' | head -n 1"])
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_long_rows_are_not_wrapped_in_a_file(operated: Server) -> None:
    owner = "a long name " * 30
    operated.cli("eab", "create", "--owner", owner)
    lines = operated.cli("eab", "list").stdout.splitlines()
    assert sum(owner.strip() in line for line in lines) == 1
    assert len(lines) == 1 + len(told(operated, "eab", "list"))


def test_control_characters_are_shown_not_obeyed(operated: Server) -> None:
    operated.cli("eab", "create", "--owner", "\x1b[31mred\nnew line")
    table = operated.cli("eab", "list").stdout
    assert "\\x1b[31mred\\x0anew line" in table
    assert "\x1b" not in table
