"""The process that runs pkilint: documents in DER on standard input, findings as JSON on standard output.

A message is one octet for its kind, four for its length, and the document; an answer four octets of length and a
JSON array of [severity, code, path, message]. An empty answer comes first: ready. The end of input ends the process.
Only documents that this server made itself are sent here.
"""

import json
import os
import re
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, Final

from pkilint import loader, pkix
from pkilint.pkix import certificate, crl, extension, name, ocsp

from ca_server.domain.names import InvalidNameError, dns_identifier, email_identifier

HEADER: Final = struct.Struct(">cI")
LENGTH: Final = struct.Struct(">I")
CERTIFICATE: Final = b"c"
CRL: Final = b"r"
OCSP_RESPONSE: Final = b"o"
MAX_DOCUMENT: Final = 64 * 1024 * 1024

_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?:[A-Za-z0-9._~:/?#@!$&'()*+,;=\[\]-]|%[0-9A-Fa-f]{2})+")
"""The characters of RFC 3986 section 2 after a scheme."""


def _uri(text: str) -> None:
    if not _URI.fullmatch(text):
        raise InvalidNameError("not a URI")


_SYNTAX: Final[dict[str, Callable[[str], object]]] = {
    "pkix.invalid_domain_name_syntax": dns_identifier,
    "pkix.invalid_uri_syntax": _uri,
    "pkix.invalid_email_address_syntax": email_identifier,
}


def _severity(item: Any, result: Any) -> str:
    """The severity, but NOTICE where pkilint asks more of a name than RFC 5280 section 4.2.1.6 does.

    It takes single labels (`localhost`), wildcards (RFC 9525 section 6.3) and URIs other than of the public web for
    errors: the private names that an internal CA is for.
    """
    well_formed = _SYNTAX.get(item.finding.code)
    if well_formed is not None:
        try:
            well_formed(str(result.node.pdu))
        except InvalidNameError:
            pass
        else:
            return "NOTICE"
    return str(item.finding.severity.name)


def _certificate_validator() -> Any:
    return certificate.create_pkix_certificate_validator_container(
        certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
        [
            certificate.create_issuer_validator_container([]),
            certificate.create_validity_validator_container(),
            certificate.create_subject_validator_container([]),
            certificate.create_extensions_validator_container([]),
            certificate.create_spki_validator_container([]),
        ],
    )


def _decoders() -> list[Any]:
    return [
        pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
        pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
    ]


def _crl_validator() -> Any:
    return crl.create_pkix_crl_validator_container(
        _decoders(),
        [
            crl.create_issuer_validator_container([]),
            crl.create_validity_validator_container([]),
            crl.create_extensions_validator_container([]),
        ],
    )


def _ocsp_validator() -> Any:
    return ocsp.create_pkix_ocsp_response_validator_container([ocsp.create_response_decoder(), *_decoders()], [])


def linters() -> dict[bytes, Callable[[bytes], list[tuple[str, str, str, str]]]]:
    """Build the linters by kind of document: the RFC 5280 and RFC 6960 ones of pkilint's own commands."""

    def make(document_loader: Any, validator: Any) -> Callable[[bytes], list[tuple[str, str, str, str]]]:
        def lint(document: bytes) -> list[tuple[str, str, str, str]]:
            root = document_loader.load_der_document(document).root
            return [
                (_severity(item, result), item.finding.code, str(result.node.path), str(item.message or ""))
                for result in validator.validate(root)
                for item in result.finding_descriptions
            ]

        return lint

    return {
        CERTIFICATE: make(loader.RFC5280CertificateDocumentLoader(), _certificate_validator()),
        CRL: make(loader.RFC5280CertificateListDocumentLoader(), _crl_validator()),
        OCSP_RESPONSE: make(loader.RFC6960OCSPResponseDocumentLoader(), _ocsp_validator()),
    }


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until the input ends. What pkilint can't even read is a fatal finding."""
    by_kind = linters()
    sink.write(LENGTH.pack(0))
    sink.flush()
    while header := source.read(HEADER.size):
        kind, size = HEADER.unpack(header)
        document = source.read(min(size, MAX_DOCUMENT))
        try:
            findings = by_kind[kind](document)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a verdict, and the next document is served
            findings = [("FATAL", "pkilint.failed", "", f"{type(error).__name__}: {error}")]
        answer = json.dumps(findings).encode()
        sink.write(LENGTH.pack(len(answer)) + answer)
        sink.flush()


def main() -> None:
    """Serve on the standard streams; what libraries print goes to standard error."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as sink:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        serve(sys.stdin.buffer, sink)


if __name__ == "__main__":
    main()
