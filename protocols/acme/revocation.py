"""Revocation by ACME (RFC 8555 section 7.6): by the account, by the certificate's key, by who controls the names."""

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_server.core.ports import CorePort
from ca_server.domain.audit import EventType, Outcome
from ca_server.domain.certificates import CertificateRecord, RevocationReason, RevocationRequest
from ca_server.domain.enrollment import Protocol
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.exchange import Exchange
from protocols.acme.objects import RevokeCert, decode_payload
from protocols.acme.ports import AcmeStore


class Revocations:
    """Checks the right to revoke, then asks the core."""

    def __init__(self, store: AcmeStore, core: CorePort) -> None:
        self._store = store
        self._core = core

    async def revoke(self, exchange: Exchange) -> None:
        """RevokeCert. The reasons of RFC 5280 but 7, 8 and what is above 10; 6 where the profile allows a hold."""
        wanted = decode_payload(RevokeCert, exchange.payload)
        presented = bytes(wanted.certificate)
        record = await self._store.certificate_by_der(presented)
        if record is None:
            raise CaError(ErrorKind.NOT_FOUND, "this CA did not issue that certificate")
        reason = _reason(wanted.reason)
        how = await self._right(exchange, record)
        if how is None:
            event = exchange.event(
                EventType.REVOCATION_REFUSED,
                Outcome.DENIED,
                issuer=record.issuer,
                serial=record.serial,
                rule="revocation.right",
            )
            await self._store.record([event], exchange.nonce)
            exchange.nonce_used()
            raise CaError(
                ErrorKind.UNAUTHORIZED,
                "revoke with the account that asked for it, with its key, or with authorizations for all its names",
                rule="revocation.right",
            )
        nonce = exchange.nonce
        if nonce is not None:
            await self._store.consume_nonce(nonce)
            exchange.nonce_used()
        await self._core.revoke(
            RevocationRequest(
                issuer=record.issuer,
                serial=record.serial,
                reason=reason,
                requester_protocol=Protocol.ACME.value,
                requester_id=exchange.account.id if exchange.account else f"key:{exchange.key.thumbprint}",
                authenticated_by=how,
                request_id=exchange.request_id,
                source=exchange.source,
                presented_der=presented,
            )
        )

    async def _right(self, exchange: Exchange, record: CertificateRecord) -> str | None:
        """By what right the request may revoke; None where it may not."""
        if exchange.account is None:
            certificate = x509.load_der_x509_certificate(record.certificate_der)
            spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            return "certificate-key" if spki == exchange.key_spki() else None
        account = exchange.account
        if record.requester_protocol == Protocol.ACME.value and record.requester_id == account.id:
            return "account"
        held = await self._store.valid_identifiers(account.id, exchange.now)
        exactly = {(identifier, wildcard) for identifier, wildcard, _ in held}
        domains = {identifier for identifier, _, subdomains in held if subdomains}
        names = [_identifier(name) for name in record.names]
        covered = [
            (name.base, name.is_wildcard) in exactly
            or (not name.is_wildcard and not domains.isdisjoint(name.domains_above))
            for name in names
        ]
        return "authorizations" if names and all(covered) else None


def _identifier(name: str) -> Identifier:
    kind, _, value = name.partition(":")
    return Identifier(IdentifierType(kind), value)


def _reason(code: int | None) -> RevocationReason:
    """The reason of a code (RFC 5280 section 5.3.1). BAD_REVOCATION_REASON."""
    try:
        reason = RevocationReason(0 if code is None else code)
    except ValueError:
        raise CaError(ErrorKind.BAD_REVOCATION_REASON, f"there is no reason {code}") from None
    if reason is RevocationReason.REMOVE_FROM_CRL:
        raise CaError(ErrorKind.BAD_REVOCATION_REASON, "removeFromCRL is for delta CRLs only")
    return reason
