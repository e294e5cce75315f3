"""Records of dns-persist-01 are whatever a domain publishes: read, ignored, or refused by a typed error."""

from datetime import UTC, datetime

from hypothesis import example, given
from hypothesis import strategies as st

from protocols.acme.validation.persist_record import PersistRecord, RecordError, check_record, hashed_uri, parse_record

ISSUERS = ("authority.example",)
PREFIX = "https://ca.example/account-hash/"
URI = hashed_uri(PREFIX, "a.test", "x" * 43, "https://ca.example/acct/1")
NOW = datetime(2026, 11, 25, tzinfo=UTC)

OCTETS = st.binary(max_size=300).map(lambda data: data.decode("latin-1"))
VALUE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=";"), max_size=30)
TAG = st.from_regex(r"[a-zA-Z0-9](-?[a-zA-Z0-9])*", fullmatch=True).filter(
    lambda tag: tag.lower() not in {"accounturi", "policy", "persistuntil"}
)
SPACE = st.text(" \t", max_size=2)


def read(text: str) -> PersistRecord | None:
    """Any text has one of three outcomes."""
    refused = RecordError("malformed", "")
    try:
        record = parse_record(text, ISSUERS)
        if record is not None:
            check_record(record, PREFIX, {URI}, NOW)
    except RecordError as error:
        record, refused = None, error
    assert refused.type in {"malformed", "unauthorized"}
    assert str(refused).isascii()
    assert str(refused).isprintable()
    return record


@given(OCTETS)
def test_any_octets(text: str) -> None:
    assert read(text) is None


@given(OCTETS)
@example("; persistUntil=" + "9" * 5000)
def test_any_octets_behind_the_issuer(text: str) -> None:
    read(f"authority.example{text}")
    read(f"authority.example; accounturi={URI}; {text}")


@given(
    st.lists(st.tuples(TAG, VALUE), max_size=5),
    SPACE,
    st.integers(0, 2**70),
    st.sampled_from(["wildcard", "WILDCARD", "x"]),
    st.randoms(),
)
def test_what_is_written_by_the_grammar_is_read(unknown, space, until, policy, random) -> None:  # type: ignore[no-untyped-def]
    parameters = [*unknown, ("accounturi", URI), ("policy", policy), ("persistUntil", str(until))]
    random.shuffle(parameters)
    text = ";".join(["authority.example", *(f"{space}{tag}{space}={space}{value}" for tag, value in parameters)])
    record = parse_record(text, ISSUERS)
    assert record is not None
    assert (record.account_uri, record.covers_more) == (URI, policy.lower() == "wildcard")
    assert record.until is None or record.until.timestamp() == until
    assert record.until is not None or until > 253_402_300_799
    assert (read(text) is None) == (until < NOW.timestamp())
    if until:
        assert read(f"{text};persistUntil=1") is None, "twice"


@given(st.text(max_size=100), st.text(max_size=20))
def test_hashes_differ(domain: str, other: str) -> None:
    """No part can be moved to another: the domain has its length before it, the thumbprint has one length."""
    domain, other = (text.encode("ascii", "replace").decode() for text in (domain, other))
    uri = hashed_uri(PREFIX, domain, "x" * 43, "https://ca.example/acct/1")
    if other:
        assert uri != hashed_uri(PREFIX, domain + other, "x" * 43, "https://ca.example/acct/1")
        assert uri != hashed_uri(PREFIX, domain, "x" * 43, "https://ca.example/acct/1" + other)
