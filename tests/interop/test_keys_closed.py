"""Keys stay in the token and PINs in their file: pkcs11-tool's word, and a search through every byte on disk."""

import os
import pwd
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from interoplib.enrollment import Enrollment
from interoplib.secrets import files_below, forms, private_keys
from interoplib.server import Server
from interoplib.tools import need, run

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")
SEPARATED = os.getuid() == 0
as_root = pytest.mark.skipif(not SEPARATED, reason="only root can give core and fronts different users")


@pytest.fixture
def busy_ca(ca: Server, enroll: Callable[[Server], Enrollment], tmp_path: Path) -> Server:
    """A CA that has issued and revoked, so that all its keys were used and all its files written."""
    enrollment = enroll(ca)
    enrollment.certificate(tmp_path, "closed.example.test")
    ca.cli("eab", "create")
    return ca


def pin_files(server: Server) -> list[Path]:
    return [server.home / "core" / "pin", server.home / "core" / "so-pin"]


def objects(server: Server, kind: str) -> list[str]:
    """One text for each object of a kind in the token, as pkcs11-tool shows it."""
    module = next(path for path in MODULES if Path(path).exists())
    # The PIN goes by environment: it is nobody's business in the list of processes.
    pin = {"TOKEN_PIN": pin_files(server)[0].read_text().strip()}
    configuration = {"SOFTHSM2_CONF": str(server.home / "core" / "softhsm2.conf")}
    argv = [need("pkcs11-tool"), "--module", module, "--token-label", "ca-server", "--login", "--pin", "env:TOKEN_PIN"]
    done = run([*argv, "--list-objects", "--type", kind], env={**pin, **configuration})
    return [f"{part}" for part in re.split(r"(?m)^(?=\S)", done.stdout) if "label:" in part]


def test_private_keys_are_sensitive_and_never_extractable(busy_ca: Server) -> None:
    keys = objects(busy_ca, "privkey")
    assert len(keys) >= 4, "root, issuing CA, OCSP responder and log have a key each"
    for key in keys:
        access = re.search(r"Access:\s*(.*)", key)
        assert access is not None, key
        assert {"sensitive", "always sensitive", "never extractable", "local"} <= set(access[1].split(", ")), key


def test_secret_keys_are_sensitive_and_never_extractable(busy_ca: Server) -> None:
    keys = objects(busy_ca, "secrkey")
    assert keys
    for key in keys:
        assert {"sensitive", "never extractable"} <= set(
            re.findall(r"(?:always |never )?(?:sensitive|extractable)", key)
        )


def test_no_pin_on_disk_but_in_its_file(busy_ca: Server) -> None:
    pins = [file.read_bytes().strip() for file in pin_files(busy_ca)]
    assert all(len(pin) >= 16 for pin in pins), "drawn PINs are strong"
    looked_at = 0
    for path, content in files_below(busy_ca.home, busy_ca.log, apart_from=pin_files(busy_ca)):
        looked_at += 1
        assert not [form for pin in pins for form in forms(pin) if form in content], path
    assert looked_at > 10


def test_pin_files_are_readable_by_their_owner_alone(busy_ca: Server) -> None:
    for file in pin_files(busy_ca):
        assert stat.S_IMODE(file.stat().st_mode) in {0o600, 0o400}, file
        assert file.stat().st_uid == (pwd.getpwnam("ca-server-core").pw_uid if SEPARATED else os.getuid())


def test_no_private_key_on_disk_but_the_listeners(busy_ca: Server) -> None:
    tls = busy_ca.home / "tls"
    for path, content in files_below(busy_ca.home, busy_ca.log):
        if tls not in path.parents:
            assert list(private_keys(content)) == [], path


def test_the_listeners_key_is_readable_by_the_fronts_user_alone(busy_ca: Server) -> None:
    keys = [path for path, content in files_below(busy_ca.home / "tls") if list(private_keys(content))]
    assert keys
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) & 0o077 == 0, key
        assert key.stat().st_uid == (pwd.getpwnam("ca-server-front").pw_uid if SEPARATED else os.getuid())


def test_no_pin_in_arguments_and_none_in_a_fronts_environment(busy_ca: Server) -> None:
    pins = [file.read_bytes().strip() for file in pin_files(busy_ca)]
    processes = busy_ca.processes()
    assert len(processes) >= 3, "supervisor, core and front"
    for pid in processes:
        for name in ("cmdline", "environ"):
            content = Path(f"/proc/{pid}/{name}").read_bytes()
            assert not [pin for pin in pins if pin in content], (pid, name)


@as_root
def test_core_and_fronts_are_different_users(busy_ca: Server) -> None:
    uids = [Path(f"/proc/{pid}").stat().st_uid for pid in busy_ca.processes()]
    core, front = (pwd.getpwnam(f"ca-server-{name}").pw_uid for name in ("core", "front"))
    assert uids[0] == 0, "the supervisor"
    assert uids.count(0) == 1
    assert set(uids) == {0, core, front}


@as_root
def test_a_front_opens_neither_token_nor_pin(busy_ca: Server) -> None:
    core = busy_ca.home / "core"
    closed = [core, *core.rglob("*")]
    assert len(closed) > 5
    for path in closed:
        run(["test", "-r", path], user="ca-server-front", expect=1)
        run(["test", "-x", path], user="ca-server-front", expect=1)


@pytest.fixture(params=["P-256", "P-384", "RSA", "Ed25519"])
def some_key(
    request: pytest.FixtureRequest,
) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey:
    return {
        "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
    }[request.param]()


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_the_search_finds_keys(some_key: ec.EllipticCurvePrivateKey, encoding: Encoding) -> None:
    """The search that the tests above stand on sees a key in the middle of other bytes."""
    data = some_key.private_bytes(encoding, PrivateFormat.PKCS8, NoEncryption())
    assert list(private_keys(b"before" + data + b"after"))
    assert list(private_keys(data.hex().upper().encode())) or encoding is Encoding.PEM
