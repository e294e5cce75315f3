"""Identifiers of devices as otherNames of X.509: PermanentIdentifier (RFC 4043) and HardwareModuleName (RFC 4108)."""

from itertools import islice
from typing import Final

from ca_server.core import der
from ca_server.core.der import DerError
from ca_server.domain.names import Identifier, IdentifierType, InvalidNameError, hardware_module, permanent_identifier

PERMANENT_IDENTIFIER: Final = "1.3.6.1.5.5.7.8.3"
HARDWARE_MODULE_NAME: Final = "1.3.6.1.5.5.7.8.4"
MAX_OTHER_NAME: Final = 1024
"""Octets of a value that is looked at."""


def encode_device_name(name: Identifier) -> tuple[str, bytes]:
    """The type-id and the DER value of a device's otherName. ValueError for a name of another kind."""
    value, _, oid = name.value.partition("/")
    if name.type is IdentifierType.PERMANENT_IDENTIFIER:
        assigner = der.encode_oid(oid) if oid else b""
        return PERMANENT_IDENTIFIER, der.encode(der.SEQUENCE, der.encode(der.UTF8_STRING, value.encode()), assigner)
    if name.type is IdentifierType.HARDWARE_MODULE:
        serial = der.encode(der.OCTET_STRING, value.encode())
        return HARDWARE_MODULE_NAME, der.encode(der.SEQUENCE, der.encode_oid(oid), serial)
    raise ValueError(f"{name} names no device")


def decode_device_name(type_id: str, value: bytes) -> Identifier:
    """The identifier that an otherName holds. InvalidNameError for other types, and for what no identifier can say.

    A slash inside the value is refused: `X/1.2` and `X` of the assigner 1.2 would be one text.
    """
    if type_id not in {PERMANENT_IDENTIFIER, HARDWARE_MODULE_NAME}:
        raise InvalidNameError("of the otherNames only PermanentIdentifier and HardwareModuleName")
    if len(value) > MAX_OTHER_NAME:
        raise InvalidNameError(f"the name of a device has at most {MAX_OTHER_NAME} octets")
    try:
        parts = [
            (tag, value[start:end])
            for tag, _, start, end in islice(der.children(value, *der.whole(value, der.SEQUENCE)), 3)
        ]
        tags = [tag for tag, _ in parts]
        if type_id == HARDWARE_MODULE_NAME:
            if tags != [der.OID, der.OCTET_STRING]:
                raise DerError("not a HardwareModuleName")
            oid, text = der.decode_oid(parts[0][1]), parts[1][1].decode()
        else:
            if tags not in ([der.UTF8_STRING], [der.UTF8_STRING, der.OID]):
                raise DerError("not a PermanentIdentifier with a value")
            oid, text = der.decode_oid(parts[1][1]) if len(parts) > 1 else "", parts[0][1].decode()
    except ValueError as error:  # DerError and UnicodeDecodeError
        raise InvalidNameError("the name of a device is not as RFC 4043 or RFC 4108 write it") from error
    if "/" in text:
        raise InvalidNameError("the identifier of a device has no slash")
    whole = f"{text}/{oid}" if oid else text
    return hardware_module(whole) if type_id == HARDWARE_MODULE_NAME else permanent_identifier(whole)
