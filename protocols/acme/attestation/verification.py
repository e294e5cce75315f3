"""One attestation object, of whichever format is allowed: octets in, what it shows out."""

from collections.abc import Callable, Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from protocols.acme.attestation import apple, step, tpm
from protocols.acme.attestation.cbor import decode_object
from protocols.acme.attestation.model import AttestationError, Attested, Question, Roots, Statement, refuse

Verify = Callable[[Statement, Question, Sequence[x509.Certificate]], Attested]

_FORMATS: Final[dict[str, Verify]] = {"apple": apple.verify, "step": step.verify, "tpm": tpm.verify}
FORMATS: Final = tuple(_FORMATS)
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
)
"""What cryptography raises for certificates and keys that it can't read."""


def verify(attestation: bytes, question: Question, roots: Roots) -> Attested:
    """Verify an attestation object against the roots of its format. Raises AttestationError, and nothing else."""
    statement = decode_object(attestation)
    check = _FORMATS.get(statement.format)
    trusted = roots.by_format.get(statement.format, ())
    if check is None or not trusted:
        allowed = ", ".join(name for name in FORMATS if roots.by_format.get(name))
        refuse(f"attestations of format {statement.format!r} are not accepted here; accepted: {allowed}")
    try:
        return check(statement, question, trusted)
    except AttestationError:
        raise
    except _UNREADABLE as error:
        raise AttestationError("a certificate or key of the attestation can't be read") from error
