"""The CSR by which another CA is asked to certify an issuer's key (RFC 2986). Pure."""

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.core.der import OCTET_STRING, SEQUENCE, SET, encode, encode_integer, encode_oid

_EXTENSION_REQUEST: Final = "1.2.840.113549.1.9.14"
_CRITICAL: Final = b"\x01\x01\xff"
_ATTRIBUTES: Final = 0xA0
_ASKED_FOR: Final = (x509.BasicConstraints, x509.KeyUsage, x509.SubjectKeyIdentifier)


def certification_request_info(standing: x509.Certificate) -> bytes:
    """CertificationRequestInfo (RFC 2986 section 4.1) in DER, to be signed by the key of a CA certificate that stands.

    It asks for subject, constraints, usage and key identifier as that has them.
    """
    extensions = []
    for kind in _ASKED_FOR:
        found = standing.extensions.get_extension_for_class(kind)
        critical = _CRITICAL if found.critical else b""
        value = encode(OCTET_STRING, found.value.public_bytes())
        extensions.append(encode(SEQUENCE, encode_oid(found.oid.dotted_string), critical, value))
    asked = encode(SEQUENCE, encode_oid(_EXTENSION_REQUEST), encode(SET, encode(SEQUENCE, *extensions)))
    spki = standing.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encode(SEQUENCE, encode_integer(0), standing.subject.public_bytes(), spki, encode(_ATTRIBUTES, asked))
