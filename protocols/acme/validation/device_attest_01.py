"""The device-attest-01 challenge (draft-ietf-acme-device-attest section 5): the client sends what shows the device."""

from datetime import UTC, datetime
from hashlib import sha256

from ca_server.domain.names import Identifier
from protocols.acme.attestation import AttestationError, Question, Roots, verify
from protocols.acme.attestation.model import printable
from protocols.acme.validation.model import Evidence, ValidationProblem, ValidationTarget, problem

BAD_ATTESTATION = "badAttestationStatement"


class DeviceAttest01Validator:
    """Verifies the attestation that came with the client's answer to the challenge; looks at no network."""

    type = "device-attest-01"

    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    def applies(self, identifier: Identifier, wildcard: bool) -> bool:  # noqa: ARG002 - devices have none
        """For devices and hardware modules."""
        return identifier.is_device

    async def validate(self, target: ValidationTarget) -> ValidationProblem | Evidence:
        """Milliseconds of arithmetic; the same attestation is no better the next time."""
        digest = sha256(target.response).hexdigest()
        target.sightings.note(f"attestation object of {len(target.response)} octets, SHA-256 {digest}")
        question = Question(target.token, target.key_authorization, datetime.now(UTC))
        try:
            shown = verify(target.response, question, self._roots)
        except AttestationError as error:
            return problem(BAD_ATTESTATION, str(error), retryable=False)
        named = ", ".join(sorted(printable(each.value) for each in shown.identifiers))
        target.sightings.note(f"format {shown.format}, key {shown.spki_sha256.hex()}, of {named}")
        if target.identifier not in shown.identifiers:
            wanted = printable(target.identifier.value)
            detail = f"the attestation is of {named}, not of the {target.identifier.type.value} {wanted}"
            return problem(BAD_ATTESTATION, detail, retryable=False)
        details = {
            "attestation": shown.format,
            "attestation_sha256": shown.certificate_sha256.hex(),
            "key_sha256": shown.spki_sha256.hex(),
        }
        return Evidence(details | dict(shown.details))
