"""What a TPM 2.0 (swtpm, in software) says of its keys, verified as format `tpm` of device-attest-01."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
from attestations import ECC, ECDSA, NOW, NULL, RSA, RSASSA, Chain, Tpm, attestation, tpm2b, u
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from interoplib.tools import need

from protocols.acme.attestation import AttestationError, Attested, Question, Roots, verify

SHA256 = 0x000B
RETRY = 0x922
"""The TPM could not begin."""
OWNER, PASSWORD = 0x4000_0001, 0x4000_0009
CREATE_PRIMARY, CERTIFY, FLUSH_CONTEXT = 0x131, 0x148, 0x165
ATTESTATION_KEY, KEY, DUPLICABLE = 0x0005_0072, 0x0004_0072, 0x0004_0060
KEY_AUTHORIZATION = "token.thumbprint"


class SoftwareTpm:
    """Speaks with the TPM: commands of the specification's part 3, each authorized by an empty password."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def flush(self, handle: int) -> None:
        """Take a key out of the TPM's memory, which holds three."""
        assert self._answer(u(2, 0x8001) + u(4, 14) + u(4, FLUSH_CONTEXT) + u(4, handle))[6:10] == u(4, 0)

    def command(self, code: int, handles: tuple[int, ...], parameters: bytes) -> bytes:
        """Handles and parameters of the answer."""
        session = u(4, PASSWORD) + tpm2b(b"") + b"\x00" + tpm2b(b"")
        sessions = session * len(handles)
        body = b"".join(u(4, handle) for handle in handles) + u(4, len(sessions)) + sessions + parameters
        answer = self._answer(u(2, 0x8002) + u(4, 10 + len(body)) + u(4, code) + body)
        while answer[6:10] == u(4, RETRY):
            answer = self._answer(u(2, 0x8002) + u(4, 10 + len(body)) + u(4, code) + body)
        assert answer[6:10] == u(4, 0), f"command {code:#x}: {answer[6:10].hex()}"
        return answer[10:]

    def _answer(self, command: bytes) -> bytes:
        self._connection.sendall(command)
        answer = b""
        while len(answer) < 10 or len(answer) < int.from_bytes(answer[2:6], "big"):
            answer += self._connection.recv(4096) or pytest.fail("the TPM hung up")
        return answer

    def create(self, kind: int, attributes: int) -> tuple[int, bytes]:
        """A new key of the owner's: its handle and its TPMT_PUBLIC."""
        restricted = attributes == ATTESTATION_KEY
        if kind == ECC:
            scheme = u(2, ECDSA) + u(2, SHA256) if restricted else u(2, NULL)
            details = u(2, NULL) + scheme + u(2, 3) + u(2, NULL) + tpm2b(b"") + tpm2b(b"")
        else:
            scheme = u(2, RSASSA) + u(2, SHA256) if restricted else u(2, NULL)
            details = u(2, NULL) + scheme + u(2, 2048) + u(4, 0) + tpm2b(b"")
        public = u(2, kind) + u(2, SHA256) + u(4, attributes) + tpm2b(b"") + details
        parameters = tpm2b(tpm2b(b"") + tpm2b(b"")) + tpm2b(public) + tpm2b(b"") + u(4, 0)
        answer = self.command(CREATE_PRIMARY, (OWNER,), parameters)
        return int.from_bytes(answer[:4], "big"), answer[10 : 10 + int.from_bytes(answer[8:10], "big")]

    def certify(self, key: int, by: int, extra_data: bytes) -> tuple[bytes, bytes]:
        """TPMS_ATTEST and TPMT_SIGNATURE."""
        answer = self.command(CERTIFY, (key, by), tpm2b(extra_data) + u(2, NULL))
        parameters = answer[4 : 4 + int.from_bytes(answer[:4], "big")]
        size = int.from_bytes(parameters[:2], "big")
        return parameters[2 : 2 + size], parameters[2 + size :]


def connected(path: Path) -> socket.socket:
    """A connection to who will listen there in a moment."""
    for _ in range(1000):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(30)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            time.sleep(0.01)
        else:
            return connection
    pytest.fail("swtpm does not listen")


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    place: Path = tmp_path_factory.mktemp("tpm")
    argv = [
        need("swtpm"),
        "socket",
        "--tpm2",
        "--tpmstate",
        f"dir={place}",
        "--server",
        f"type=unixio,path={place}/tpm",
    ]
    argv += ["--ctrl", f"type=unixio,path={place}/ctrl", "--flags", "not-need-init,startup-clear"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        with closing(connected(place / "tpm")) as connection:
            yield SoftwareTpm(connection)
    finally:
        process.terminate()
        process.wait(10)


def public_key(area: bytes) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    """The key at the end of a TPMT_PUBLIC: P-256, or RSA of 2048 bits."""
    if area[:2] == u(2, RSA):
        return rsa.RSAPublicNumbers(65_537, int.from_bytes(area[-256:], "big")).public_key()
    x, y = int.from_bytes(area[-66:-34], "big"), int.from_bytes(area[-32:], "big")
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()


def attested(tpm: SoftwareTpm, kinds: tuple[int, int], attributes: int = KEY) -> tuple[bytes, Attested]:
    """A key that was certified, and what its attestation shows; kinds of attestation key and key."""
    chain = Chain.of("Privacy")
    by, by_area = tpm.create(kinds[0], ATTESTATION_KEY)
    key, area = tpm.create(kinds[1], attributes)
    signed, signature = tpm.certify(key, by, sha256(KEY_AUTHORIZATION.encode()).digest())
    for handle in (key, by):
        tpm.flush(handle)
    device = Tpm(chain, ak=SimpleNamespace(public_key=lambda: public_key(by_area)))
    statement = {"ver": "2.0", "alg": -257, "x5c": device.x5c(), "sig": signature, "certInfo": signed, "pubArea": area}
    roots = Roots({"tpm": (chain.root.certificate,)})
    return area, verify(attestation("tpm", statement), Question("token", KEY_AUTHORIZATION, NOW), roots)


@pytest.mark.parametrize("kinds", [(ECC, ECC), (RSA, ECC), (ECC, RSA)], ids=["ecc", "rsa by", "rsa key"])
def test_keys_of_a_tpm(tpm: SoftwareTpm, kinds: tuple[int, int]) -> None:
    area, shown = attested(tpm, kinds)
    spki = public_key(area).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert shown.spki_sha256 == sha256(spki).digest()
    assert [each.value for each in shown.identifiers] == ["PC-0001"]


def test_keys_that_can_leave_it(tpm: SoftwareTpm) -> None:
    with pytest.raises(AttestationError, match="can leave it"):
        attested(tpm, (ECC, ECC), DUPLICABLE)
