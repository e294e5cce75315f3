"""Attestation objects of devices (draft-ietf-acme-device-attest): pure and bounded, one file per format."""

from protocols.acme.attestation.model import MAX_OBJECT, AttestationError, Attested, Question, Roots
from protocols.acme.attestation.verification import FORMATS, verify

__all__ = ["FORMATS", "MAX_OBJECT", "AttestationError", "Attested", "Question", "Roots", "verify"]
