"""DER that no honest client makes."""

import secrets

RSA_ENCRYPTION = bytes.fromhex("300d06092a864886f70d0101010500")
SHA256_WITH_RSA = bytes.fromhex("300d06092a864886f70d01010b0500")
EXTENSION_REQUEST = bytes.fromhex("06092a864886f70d01090e")
ALTERNATIVE_NAME = bytes.fromhex("0603551d11")


def tlv(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + content


def integer(value: int) -> bytes:
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def nested(levels: int) -> bytes:
    """Sequences in sequences."""
    inside = b""
    for _ in range(levels):
        inside = tlv(0x30, inside)
    return inside


def modulus(bits: int) -> int:
    return secrets.randbits(bits) | (1 << (bits - 1)) | 1


def rsa_key(bits: int, exponent: int = 65_537) -> bytes:
    """A SubjectPublicKeyInfo of a modulus that nobody knows the factors of."""
    return tlv(0x30, RSA_ENCRYPTION + tlv(0x03, b"\0" + tlv(0x30, integer(modulus(bits)) + integer(exponent))))


def rsa_csr(bits: int, exponent: int = 65_537, attributes: bytes = b"") -> bytes:
    """A CSR of such a key, whose signature is noise."""
    info = tlv(0x30, integer(0) + tlv(0x30, b"") + rsa_key(bits, exponent) + tlv(0xA0, attributes))
    noise = (modulus(bits) >> 8).to_bytes(bits // 8, "big")
    return tlv(0x30, info + SHA256_WITH_RSA + tlv(0x03, b"\0" + noise))


def extension(value: bytes) -> bytes:
    """The attribute extensionRequest with one subjectAltName of any value."""
    wanted = tlv(0x30, tlv(0x30, ALTERNATIVE_NAME + tlv(0x04, value)))
    return tlv(0x30, EXTENSION_REQUEST + tlv(0x31, wanted))
