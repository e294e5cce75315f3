"""Identifiers of devices as otherNames (RFC 4043, RFC 4108, draft-ietf-acme-device-attest sections 3 and 4)."""

import pytest

from ca_server.core.der import encode, encode_oid
from ca_server.core.device_names import (
    HARDWARE_MODULE_NAME,
    PERMANENT_IDENTIFIER,
    decode_device_name,
    encode_device_name,
)
from ca_server.domain.names import (
    InvalidNameError,
    dns_identifier,
    hardware_module,
    permanent_identifier,
)


@pytest.mark.parametrize(
    ("text", "type_id", "value"),
    [
        ("ABCDEF123456", PERMANENT_IDENTIFIER, encode(0x30, encode(0x0C, b"ABCDEF123456"))),
        (
            "ABCDEF123456/1.2.3.4",
            PERMANENT_IDENTIFIER,
            encode(0x30, encode(0x0C, b"ABCDEF123456"), b"\x06\x03\x2a\x03\x04"),
        ),
        ("gerät 7", PERMANENT_IDENTIFIER, encode(0x30, encode(0x0C, "gerät 7".encode()))),
        ("ABCD/1.2.3.4", HARDWARE_MODULE_NAME, encode(0x30, b"\x06\x03\x2a\x03\x04", encode(0x04, b"ABCD"))),
    ],
)
def test_both_ways(text: str, type_id: str, value: bytes) -> None:
    make = permanent_identifier if type_id == PERMANENT_IDENTIFIER else hardware_module
    assert encode_device_name(make(text)) == (type_id, value)
    assert decode_device_name(type_id, value) == make(text)


@pytest.mark.parametrize(
    ("type_id", "value"),
    [
        ("1.3.6.1.4.1.311.20.2.3", encode(0x30, encode(0x0C, b"a"))),
        (PERMANENT_IDENTIFIER, encode(0x30)),
        (PERMANENT_IDENTIFIER, encode(0x30, encode_oid("1.2.3"))),
        (PERMANENT_IDENTIFIER, encode(0x30, encode(0x0C, b""))),
        (PERMANENT_IDENTIFIER, encode(0x30, encode(0x0C, b"A/1.2"))),
        (PERMANENT_IDENTIFIER, encode(0x30, encode(0x0C, b"\xff"))),
        (PERMANENT_IDENTIFIER, encode(0x30, encode(0x13, b"A"))),
        (PERMANENT_IDENTIFIER, encode(0x30, encode(0x0C, b"A"), encode_oid("1.2.3"), encode(0x05))),
        (PERMANENT_IDENTIFIER, encode(0x30, encode(0x0C, b"A")) + b"\x00"),
        (PERMANENT_IDENTIFIER, encode(0x30, encode(0x0C, b"A" * 1024))),
        (PERMANENT_IDENTIFIER, b""),
        (HARDWARE_MODULE_NAME, encode(0x30, encode_oid("1.2.3"))),
        (HARDWARE_MODULE_NAME, encode(0x30, encode(0x04, b"A"), encode_oid("1.2.3"))),
        (HARDWARE_MODULE_NAME, encode(0x30, encode_oid("1.2.3"), encode(0x04, b"\x80"))),
    ],
)
def test_what_no_identifier_can_say(type_id: str, value: bytes) -> None:
    with pytest.raises(InvalidNameError):
        decode_device_name(type_id, value)


def test_other_names_are_not_encoded() -> None:
    with pytest.raises(ValueError, match="names no device"):
        encode_device_name(dns_identifier("a.test"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/1.2",
        "A/",
        "A/1",
        "A/3.1",
        "A/1.40",
        "A/1.2.",
        "A/1.02",
        "A/1.2/3",
        "A/x",
        "A\n",
        "A" * 256,
        "\ud800",
        "A/1." + "2" * 130,
    ],
)
def test_grammar(text: str) -> None:
    for make in (permanent_identifier, hardware_module):
        with pytest.raises(InvalidNameError):
            make(text)


def test_hardware_modules_have_a_type() -> None:
    with pytest.raises(InvalidNameError):
        hardware_module("A")
    assert permanent_identifier("A").value == "A"
    assert hardware_module("A/2.999.1").device_value == "A"
