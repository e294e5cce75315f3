"""Names and CSRs, made for the cost of a signature: the DER of one CSR with another name of the same length in it."""

import ipaddress
import os
from base64 import urlsafe_b64encode
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

_ES256 = ec.ECDSA(hashes.SHA256())
_ALGORITHM = bytes.fromhex("300a06082a8648ce3d040302")


def b64url(data: bytes) -> str:
    """Base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def es256(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """An ES256 signature as JWS has it: r and s."""
    r, s = decode_dss_signature(key.sign(data, _ES256))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _sequence(content: bytes, tag: int = 0x30) -> bytes:
    length = len(content)
    if length < 128:
        return bytes((tag, length)) + content
    size = length.to_bytes(2, "big").lstrip(b"\0")
    return bytes((tag, 0x80 | len(size))) + size + content


class CsrMaker:
    """Makes CSRs for new names, all with one key."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = b"x" * 16 + b".bench.test"
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        names = x509.SubjectAlternativeName([x509.DNSName(self._name.decode())])
        csr = builder.add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        self._info = csr.tbs_certrequest_bytes

    def name(self) -> str:
        """A name that nobody used."""
        return f"{os.urandom(8).hex()}.bench.test"

    def csr(self, name: str) -> bytes:
        """A CSR for the name, in DER."""
        info = self._info.replace(self._name, name.encode())
        signature = self._key.sign(info, _ES256)
        return _sequence(info + _ALGORITHM + _sequence(b"\0" + signature, 0x03))


class AddressCsrMaker:
    """Makes CSRs for IPv4 addresses, all with one key."""

    def __init__(self, address: Callable[[], str]) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.name = address

    def csr(self, name: str) -> bytes:
        """A CSR for the address, in DER."""
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))])
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return builder.add_extension(names, critical=False).sign(self._key, hashes.SHA256()).public_bytes(Encoding.DER)
