"""Names: canonical form is stable, and nothing but a name gets through."""

import ipaddress
import re

import idna
from hypothesis import given
from hypothesis import strategies as st

from ca_server.core.policy import glob_matches
from ca_server.domain.names import (
    IdentifierType,
    InvalidNameError,
    dns_identifier,
    email_identifier,
    ip_identifier,
    uri_identifier,
)

LABEL = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,20}[a-zA-Z0-9])?", fullmatch=True).filter(
    lambda label: label[2:4] != "--"
)
HOST = st.lists(LABEL, min_size=1, max_size=5).map(".".join).filter(lambda name: not name.rpartition(".")[2].isdigit())
ANYTHING = st.one_of(st.text(max_size=300), st.text(alphabet="aA1.-*_@:/%x\x00 ", max_size=80))
CANONICAL = re.compile(r"(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*")


@given(HOST)
def test_good_names_are_canonical_and_stable(name):
    identifier = dns_identifier(name)
    assert identifier.value == name.lower()
    assert dns_identifier(identifier.value) == identifier
    assert dns_identifier(name.swapcase()) == identifier


@given(ANYTHING)
def test_whatever_passes_is_a_dns_name(text):
    try:
        identifier = dns_identifier(text)
    except InvalidNameError:
        return
    assert CANONICAL.fullmatch(identifier.value)
    assert len(identifier.value) <= 253
    assert all(len(label) <= 63 for label in identifier.value.split("."))
    assert identifier.base.value in identifier.value


@given(st.text(min_size=1, max_size=20), HOST)
def test_only_a_labels_pass_and_u_labels_are_told_theirs(label, rest):
    name = f"{label}.{rest}"
    try:
        identifier = dns_identifier(name)
    except InvalidNameError as error:
        sent = str(error).partition("; send ")[2]
        assert not sent or dns_identifier(sent).value == sent
        return
    for each in identifier.value.split("."):
        if each.startswith("xn--"):
            assert idna.alabel(idna.ulabel(each)).decode() == each


@given(HOST.filter(lambda name: "." in name))
def test_wildcards_stand_on_the_left_alone(name):
    assert dns_identifier(f"*.{name}").is_wildcard
    for bad in (f"{name}.*", f"a*.{name}", f"*a.{name}", f"*.*.{name}"):
        try:
            dns_identifier(bad)
        except InvalidNameError:
            continue
        raise AssertionError(bad)


@given(st.ip_addresses())
def test_addresses_round_trip(address):
    identifier = ip_identifier(address.exploded)
    assert identifier.type is IdentifierType.IP
    assert ipaddress.ip_address(identifier.value) == address
    assert ip_identifier(identifier.value) == identifier


@given(ANYTHING)
def test_other_kinds_raise_nothing_else(text):
    for make in (ip_identifier, email_identifier, uri_identifier):
        try:
            identifier = make(text)
        except InvalidNameError:
            continue
        assert identifier.value.isascii()
        assert not any(character <= " " for character in identifier.value)


@given(st.text(alphabet="ab*?", max_size=12), st.text(alphabet="abc", max_size=12))
def test_globs_agree_with_regular_expressions(pattern, text):
    expression = "".join({"*": ".*", "?": "."}.get(character, character) for character in pattern)
    assert glob_matches(pattern, text) == bool(re.fullmatch(expression, text))
