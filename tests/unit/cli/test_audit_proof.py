"""`audit verify-proof`: offline, with the log's public key alone; whatever is altered is told."""

import json
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from victims import MemoryKey

from ca_server.bootstrap.logkey import write_log_key
from ca_server.core.audit import EventFactory, encode_event
from ca_server.core.notes import InclusionProof, NoteKey, NoteSignature, TreeHead, checkpoint_text, encode_note
from ca_server.core.tlog import inclusion_ranges, leaf_hash, range_hashes, tree_root
from ca_server.domain.audit import EventType

ORIGIN = "ca-server/default"


def certificate(name: str) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 10, now, now + timedelta(days=1))
    return builder.sign(key, SHA256())


class Case:
    """A proof in a file, the key in another, and the certificate that it is about."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proof = folder / "a.tlog-proof"
        self.key = folder / "log-key.pem"
        self.certificate = certificate("a.example.test")
        self.signer = MemoryKey()

    async def write(self, kind: EventType = EventType.ISSUANCE_STORED) -> None:
        make = EventFactory(node="n", process="core", software="test", configuration="0").make
        digest = sha256(self.certificate.public_bytes(Encoding.DER)).hexdigest()
        stored = make(kind, serial="0a", issuer="ca", extra={"certificate_sha256": digest})
        leaves = [encode_event(make(EventType.SERVER_START)) for _ in range(7)]
        leaves[4] = encode_event(stored)
        hashed = [leaf_hash(leaf) for leaf in leaves]
        text = checkpoint_text(TreeHead(ORIGIN, 7, tree_root(hashed)))
        key_id = NoteKey(ORIGIN, self.signer.spki_der).key_id
        note = encode_note(text, [NoteSignature(ORIGIN, key_id, await self.signer.sign(text.encode()))])
        self.proof.write_bytes(
            InclusionProof(4, range_hashes(inclusion_ranges(4, 7), hashed), note, leaves[4]).encode()
        )
        write_log_key(self.key, self.signer.spki_der)

    def run(self, *options: str, proof: str = "", stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Nothing of a home in the environment, and nothing in the folder but these files."""
        argv = [sys.executable, "-m", "ca_server", "audit", "verify-proof", proof or str(self.proof), *options]
        return subprocess.run(
            [*argv, "--key", str(self.key)], input=stdin, capture_output=True, env={}, cwd=self.folder, check=False
        )


@pytest.fixture
async def case(tmp_path: Path) -> Case:
    made = Case(tmp_path)
    await made.write()
    return made


def test_a_proof_holds(case: Case) -> None:
    done = case.run()
    assert (done.returncode, done.stderr) == (0, b"")
    event, verdict = done.stdout.decode().splitlines()
    assert json.loads(event)["serial"] == "0a"
    assert verdict.startswith(f"in the log: leaf 4 of 7 of {ORIGIN}, root ")
    told = json.loads(case.run("--json").stdout)
    assert (told["ok"], told["index"], told["size"], told["event"]["type"]) == (True, 4, 7, "issuance.stored")
    assert case.run(proof="-", stdin=case.proof.read_bytes()).returncode == 0


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_a_proof_is_about_its_certificate(case: Case, encoding: Encoding) -> None:
    file = case.folder / "certificate"
    file.write_bytes(case.certificate.public_bytes(encoding))
    assert case.run("--certificate", str(file)).returncode == 0
    file.write_bytes(certificate("a.example.test").public_bytes(encoding))
    done = case.run("--certificate", str(file))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"not the issuance of this certificate" in done.stderr


async def test_only_an_issuance_proves_a_certificate(case: Case) -> None:
    """Other events may name a certificate's digest too."""
    case.key.unlink()
    await case.write(EventType.LINT_SAMPLE)
    file = case.folder / "certificate"
    file.write_bytes(case.certificate.public_bytes(Encoding.PEM))
    assert case.run().returncode == 0
    assert case.run("--certificate", str(file)).returncode == 1


def other_event(text: str) -> str:
    header, extra, rest = text.split("\n", 2)
    leaf = b64decode(extra.removeprefix("extra ")).replace(b'"serial":"0a"', b'"serial":"0b"')
    return f"{header}\nextra {b64encode(leaf).decode()}\n{rest}"


def without_a_hash(text: str) -> str:
    lines = text.split("\n")
    return "\n".join([*lines[:3], *lines[4:]])


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (other_event, "does not lead from the leaf"),
        (without_a_hash, "does not lead from the leaf"),
        (lambda text: text.replace("index 4", "index 3"), "does not lead from the leaf"),
        (lambda text: text.replace("\n7\n", "\n8\n"), "does not verify"),
        (lambda text: text.replace(f"\n{ORIGIN}\n", "\nanother\n"), "no known key"),
        (lambda text: text.replace("tlog-proof@v1", "tlog-proof@v2"), "not a proof"),
        (lambda text: text.partition("\n\n")[0], "not a proof"),
        (lambda _text: "", "not a proof"),
        (lambda text: text * 5_000, "longer than"),
    ],
    ids=["event", "hash gone", "index", "size", "origin", "version", "no checkpoint", "empty", "huge"],
)
def test_an_altered_proof_does_not_hold(case: Case, alter: Callable[[str], str], reason: str) -> None:
    case.proof.write_text(alter(case.proof.read_text("utf-8")), "utf-8")
    done = case.run()
    assert (done.returncode, done.stdout) == (1, b"")
    assert reason in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_another_log_s_key(case: Case) -> None:
    case.key.unlink()
    write_log_key(case.key, MemoryKey().spki_der)
    done = case.run()
    assert done.returncode == 1
    assert b"no known key has signed" in done.stderr


def test_files_that_are_not_there(case: Case) -> None:
    done = case.run(proof="none")
    assert done.returncode == 1
    assert b"none can't be read" in done.stderr
    case.key.unlink()
    assert case.run().returncode == 2
