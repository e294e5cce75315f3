"""CertIDs: every value has one text, every text one value or an error, and windows stay where they belong."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from protocols.acme.certid import MAX_KEY_IDENTIFIER, CertId, CertIdError, parse_certid
from protocols.acme.renewal_window import suggested_window

KEY_IDENTIFIERS = st.binary(min_size=1, max_size=MAX_KEY_IDENTIFIER)
SERIALS = st.integers(1, (1 << 159) - 1) | st.integers(0, 18).map(lambda octets: 0x80 << 8 * octets)
CERTIDS = st.builds(CertId, KEY_IDENTIFIERS, SERIALS)


@given(CERTIDS)
def test_a_value_comes_back(certid: CertId) -> None:
    """With high bits set as well as not."""
    assert parse_certid(str(certid)) == certid


@given(st.text() | st.text("AQgw_-.=", max_size=40) | st.builds("{}.{}".format, st.text("AQgw"), st.text("AQgw")))
def test_a_text_has_one_value_or_none(text: str) -> None:
    with suppress(CertIdError):
        assert str(parse_certid(text)) == text


@given(CERTIDS, st.data())
def test_a_changed_text_is_another_value(certid: CertId, data: st.DataObject) -> None:
    text = str(certid)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters(codec="ascii")) + text[at + 1 :]
    with suppress(CertIdError):
        assert (parse_certid(changed) == certid) == (changed == text)


@given(
    CERTIDS,
    st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - hypothesis adds it
    st.timedeltas(timedelta(minutes=10), timedelta(days=3650)),
)
def test_a_window_lies_in_the_lifetime(certid: CertId, usable_from: datetime, lifetime: timedelta) -> None:
    window = suggested_window(certid, usable_from, usable_from + lifetime)
    assert usable_from + lifetime * 0.59 < window.start < window.end < usable_from + lifetime
    assert window.end.replace(microsecond=0) > window.start.replace(microsecond=0), "also in whole seconds"
    assert suggested_window(certid, usable_from, usable_from + lifetime) == window
