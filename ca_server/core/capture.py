"""What a builder of `cryptography` would sign, without signing it.

A capturing key has the issuer's public key, keeps the bytes that a builder hands to `sign`, and returns a placeholder
of the right form. So certificates, CRLs, OCSP responses and CSRs are encoded by a well-tested builder, and the
private key stays in the token: the captured bytes are linted, then signed there, then assembled (`der.assemble`).
"""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric import utils as asymmetric_utils

from ca_server.core.der import PublicKey, hash_for, key_algorithm

T = TypeVar("T")

CapturingKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
SigningHash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None

_REFUSAL = "a capturing key has no private key"


class _Capture:
    """What the three capturing keys share: they keep what they are asked to sign, and can do nothing else."""

    def __init__(self) -> None:
        self.captured: bytes | None = None

    def _keep(self, data: Any, placeholder: bytes) -> bytes:
        if self.captured is not None:
            raise RuntimeError("a capturing key serves one builder")
        self.captured = bytes(data)
        return placeholder

    def private_numbers(self) -> NoReturn:
        raise TypeError(_REFUSAL)

    def private_bytes(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(_REFUSAL)

    def private_bytes_raw(self) -> NoReturn:
        raise TypeError(_REFUSAL)

    def exchange(self, *_: object) -> NoReturn:
        raise TypeError(_REFUSAL)

    def decrypt(self, *_: object) -> NoReturn:
        raise TypeError(_REFUSAL)

    def __copy__(self) -> NoReturn:
        raise TypeError(_REFUSAL)

    def __deepcopy__(self, memo: dict[Any, Any]) -> NoReturn:
        raise TypeError(_REFUSAL)


class _CapturingEc(_Capture, ec.EllipticCurvePrivateKey):
    def __init__(self, public_key: ec.EllipticCurvePublicKey) -> None:
        super().__init__()
        self._public_key = public_key

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public_key

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        return self._public_key.key_size

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:  # noqa: ARG002
        full = 1 << (self._public_key.key_size - 2)
        return self._keep(data, asymmetric_utils.encode_dss_signature(full, full))


class _CapturingRsa(_Capture, rsa.RSAPrivateKey):
    def __init__(self, public_key: rsa.RSAPublicKey) -> None:
        super().__init__()
        self._public_key = public_key

    def public_key(self) -> rsa.RSAPublicKey:
        return self._public_key

    @property
    def key_size(self) -> int:
        return self._public_key.key_size

    def sign(self, data: Any, padding: Any, algorithm: Any) -> bytes:  # noqa: ARG002
        return self._keep(data, b"\x01" * ((self._public_key.key_size + 7) // 8))


class _CapturingEd25519(_Capture, ed25519.Ed25519PrivateKey):
    def __init__(self, public_key: ed25519.Ed25519PublicKey) -> None:
        super().__init__()
        self._public_key = public_key

    def public_key(self) -> ed25519.Ed25519PublicKey:
        return self._public_key

    def sign(self, data: Any) -> bytes:
        return self._keep(data, b"\x01" * 64)


def capture(public_key: PublicKey, build: Callable[[CapturingKey, SigningHash], T]) -> tuple[bytes, T]:
    """Run `build(key, hash)`, a builder's final call, and return the bytes to be signed with the built object.

    The object carries a placeholder signature: it is for looking at, never for handing out. ValueError for a key
    that no KeyAlgorithm names.
    """
    algorithm = key_algorithm(public_key)
    if algorithm is None:
        raise ValueError("no signature algorithm for this public key")
    key = _capturing_key(public_key)
    built = build(key, hash_for(algorithm))
    if key.captured is None:
        raise RuntimeError("the builder did not ask for a signature")
    return key.captured, built


def _capturing_key(public_key: PublicKey) -> _CapturingEc | _CapturingRsa | _CapturingEd25519:
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return _CapturingEc(public_key)
    if isinstance(public_key, rsa.RSAPublicKey):
        return _CapturingRsa(public_key)
    return _CapturingEd25519(public_key)
