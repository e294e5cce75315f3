"""Identifiers that certificates carry and orders ask for (RFC 8555 section 9.7.7, RFC 8738, RFC 5280 4.2.1.6)."""

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum

import idna

MAX_DNS_NAME = 253
MAX_LABEL = 63
MAX_DEVICE_VALUE = 255
"""Octets of a device's identifier in UTF-8, without the object identifier behind it."""
MAX_ASSIGNER = 128
_LABEL_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_DOTTED = re.compile(r"(?:[01]\.[1-3]?[0-9]|2\.(?:0|[1-9][0-9]*))(?:\.(?:0|[1-9][0-9]*))*")


class IdentifierType(StrEnum):
    """Kinds of names."""

    DNS = "dns"
    IP = "ip"
    EMAIL = "email"
    URI = "uri"
    PERMANENT_IDENTIFIER = "permanent-identifier"
    """A device, by a number of whoever assigned it (draft-ietf-acme-device-attest section 3, RFC 4043)."""
    HARDWARE_MODULE = "hardware-module"
    """The module that holds a key (draft-ietf-acme-device-attest section 4, RFC 4108)."""


@dataclass(frozen=True, slots=True, order=True)
class Identifier:
    """A name in canonical form: DNS in lower-case A-labels, IP as `ipaddress` prints it, e-mail host in lower case.

    Those of devices are as they were written: `NUMBER`, or `NUMBER/1.2.3` with the object identifier of its assigner or
    of the hardware's type.
    """

    type: IdentifierType
    value: str

    @property
    def is_wildcard(self) -> bool:
        """Whether this is a DNS name whose left-most label is `*`."""
        return self.type is IdentifierType.DNS and self.value.startswith("*.")

    @property
    def base(self) -> "Identifier":
        """The name without its wildcard label; the identifier itself where it has none."""
        return Identifier(self.type, self.value[2:]) if self.is_wildcard else self

    @property
    def domains_above(self) -> "tuple[Identifier, ...]":
        """The DNS names above this one, the next one first, without the top-level domain; none of other names."""
        if self.type is not IdentifierType.DNS:
            return ()
        labels = self.value.split(".")
        return tuple(Identifier(self.type, ".".join(labels[at:])) for at in range(1, len(labels) - 1))

    @property
    def is_device(self) -> bool:
        """Whether an attestation shows this: a device or a hardware module."""
        return self.type is IdentifierType.PERMANENT_IDENTIFIER or self.type is IdentifierType.HARDWARE_MODULE

    @property
    def device_value(self) -> str:
        """What a device's identifier says without the object identifier behind it."""
        return self.value.partition("/")[0]

    def __str__(self) -> str:
        return f"{self.type.value}:{self.value}"


@dataclass(frozen=True, slots=True)
class SentIdentifier:
    """An identifier as somebody wrote it, who may have meant no name at all."""

    type: str
    value: str


class InvalidNameError(ValueError):
    """The text is no name of the kind asked for; the message says why."""


def dns_identifier(text: str, *, wildcard: bool = True) -> Identifier:
    """Make the canonical identifier of a DNS name in A-label form.

    Raises InvalidNameError for anything but LDH labels (RFC 5890 2.3.1), for U-labels, for `xn--` labels that are no
    valid IDNA 2008 A-label in lower case, for a trailing dot, an IP address, more than 253 octets, or a wildcard
    elsewhere than as the whole left-most label (RFC 6125 6.4.3), or anywhere when `wildcard` is false.
    """
    if not text or len(text) > MAX_DNS_NAME:
        raise InvalidNameError("a DNS name has 1 to 253 characters")
    name = text.lower()
    if not name.isascii():
        raise InvalidNameError(f"a DNS name is written in A-labels{_in_a_labels(name)}")
    if name.startswith("*."):
        if not wildcard:
            raise InvalidNameError("a wildcard is not allowed here")
        labels = name[2:].split(".")
        if len(labels) < 2:  # noqa: PLR2004
            raise InvalidNameError("a wildcard needs at least two labels after it")
    else:
        labels = name.split(".")
    for label in labels:
        _check_label(label)
    if "xn--" in name and any(label.lower().startswith("xn--") and not label.islower() for label in text.split(".")):
        raise InvalidNameError("an A-label is written in lower case")
    if labels[-1].isdigit():
        raise InvalidNameError("the last label of a DNS name is not a number")
    return Identifier(IdentifierType.DNS, name)


def _in_a_labels(name: str) -> str:
    """How to write a name that has U-labels, for its writer; empty where there is no such name."""
    star = "*." if name.startswith("*.") else ""
    try:
        return f"; send {star}{idna.encode(name.removeprefix(star)).decode()}"
    except (idna.IDNAError, UnicodeError):
        return " (xn--...), and this one can't be: it is no valid IDNA name"


def _check_label(label: str) -> None:
    if not label or len(label) > MAX_LABEL:
        raise InvalidNameError("each label has 1 to 63 characters")
    if not _LABEL_CHARACTERS.issuperset(label):
        raise InvalidNameError("labels have letters, digits and hyphens only")
    if label[0] == "-" or label[-1] == "-":
        raise InvalidNameError("a label neither begins nor ends with a hyphen")
    if label[2:4] == "--":
        if not label.startswith("xn--"):
            raise InvalidNameError("a label with hyphens in positions 3 and 4 is reserved")
        try:
            if idna.alabel(idna.ulabel(label)).decode() != label:
                raise InvalidNameError("the A-label is not in its canonical form")
        except (idna.IDNAError, UnicodeError) as error:
            raise InvalidNameError("the label is no valid IDNA A-label") from error


def ip_identifier(text: str) -> Identifier:
    """Make the canonical identifier of an IPv4 or IPv6 address (RFC 8738 section 3); no scope, no prefix."""
    if "%" in text:
        raise InvalidNameError("an IP identifier has no zone")
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidNameError("not an IPv4 or IPv6 address") from error
    return Identifier(IdentifierType.IP, str(address))


def email_identifier(text: str) -> Identifier:
    """Make the identifier of an rfc822Name: an ASCII mailbox, local part kept, host in lower case."""
    local, at, host = text.rpartition("@")
    if not at or not local or not text.isascii() or any(c <= " " or c in '<>",;:\\[]()@' for c in local):
        raise InvalidNameError("not an ASCII mailbox local@host")
    return Identifier(IdentifierType.EMAIL, f"{local}@{dns_identifier(host, wildcard=False).value}")


def uri_identifier(text: str) -> Identifier:
    """Make the identifier of a uniformResourceIdentifier: absolute, ASCII, without white space."""
    scheme, colon, rest = text.partition(":")
    if not colon or not rest or not scheme.isalnum() or not text.isascii() or any(c <= " " for c in text):
        raise InvalidNameError("not an absolute URI in ASCII")
    return Identifier(IdentifierType.URI, text)


def permanent_identifier(text: str) -> Identifier:
    """Make the identifier of a device: `NUMBER` or `NUMBER/1.2.3` (draft-ietf-acme-device-attest section 3.1).

    Nothing is normalised: a manufacturer's numbers may differ in case alone. Raises InvalidNameError.
    """
    _check_device(text, with_oid=False)
    return Identifier(IdentifierType.PERMANENT_IDENTIFIER, text)


def hardware_module(text: str) -> Identifier:
    """Make the identifier of a hardware module: `SERIAL/1.2.3` (draft-ietf-acme-device-attest section 4.1).

    Raises InvalidNameError.
    """
    _check_device(text, with_oid=True)
    return Identifier(IdentifierType.HARDWARE_MODULE, text)


def _check_device(text: str, *, with_oid: bool) -> None:
    value, slash, assigner = text.partition("/")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidNameError("the identifier of a device is text in UTF-8") from None
    if not 0 < size <= MAX_DEVICE_VALUE or not value.isprintable():
        raise InvalidNameError(f"the identifier of a device has 1 to {MAX_DEVICE_VALUE} printable octets in UTF-8")
    if with_oid and not slash:
        raise InvalidNameError("a hardware module is SERIAL/TYPE, its type an object identifier")
    if slash and (len(assigner) > MAX_ASSIGNER or not _DOTTED.fullmatch(assigner)):
        raise InvalidNameError("behind a slash stands an object identifier such as 1.2.3")
