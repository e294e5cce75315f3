"""Auto-renewal objects: whatever a client sends is refused in a typed way, or gives terms that hold (RFC 8739)."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ca_server.domain.enrollment import Deny
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.profiles import load_profile
from protocols.acme.objects import NewOrder, PayloadError, decode_payload
from protocols.acme.star.offering import StarOptions, agree
from protocols.acme.star.terms import AutoRenewal

PROFILES = Path(__file__).resolve().parents[2] / "config" / "profiles"
PROFILE = load_profile("default", (PROFILES / "default.toml").read_text("utf-8"), where="default.toml")
OPTIONS = StarOptions(frozenset({"default"}), timedelta(minutes=1), timedelta(days=400))
NOW = datetime(2026, 11, 25, 12, 30, 15, 250_000, tzinfo=UTC)

NEAR = st.integers(-10, 405 * 86_400).map(lambda seconds: (NOW + timedelta(seconds=seconds)).isoformat())
DATES = NEAR | st.datetimes(timezones=st.timezones() | st.just(UTC)).map(datetime.isoformat) | st.text(max_size=30)
NUMBERS = st.integers(1, 90 * 86_400) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JUNK = st.none() | st.booleans() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "start-date": DATES | JUNK,
        "end-date": DATES | JUNK,
        "lifetime": NUMBERS | JUNK,
        "lifetime-adjust": NUMBERS | JUNK,
        "allow-certificate-get": st.booleans() | JUNK,
        "unknown": JUNK,
    },
)
GOOD = st.fixed_dictionaries(
    {"end-date": NEAR, "lifetime": st.integers(60, 50 * 86_400)},
    optional={
        "start-date": st.integers(-86_400, 90_000).map(lambda seconds: (NOW + timedelta(seconds=seconds)).isoformat()),
        "lifetime-adjust": st.integers(0, 60 * 86_400),
        "allow-certificate-get": st.booleans(),
    },
)


def agreed(asked):
    """The terms; None where they are refused as a client can be told."""
    payload = json.dumps({"identifiers": [{"type": "dns", "value": "a.test"}], "auto-renewal": asked}).encode()
    try:
        wanted = decode_payload(NewOrder, payload).autoRenewal
    except PayloadError as error:
        return None if error.detail else pytest.fail("no detail")
    if wanted is None:
        return None
    try:
        found = agree(OPTIONS, PROFILE, "order", wanted, NOW)
    except CaError as error:
        return None if error.kind is ErrorKind.MALFORMED else pytest.fail(error.detail)
    if isinstance(found, AutoRenewal):
        return found
    assert all(isinstance(denial, Deny) and denial.rule == "acme.auto_renewal" for denial in found)
    return None


@given(OBJECTS | JUNK)
def test_any_object_is_refused_or_gives_terms(asked):
    agreed(asked)


@given(GOOD, st.integers(0, 400 * 86_400))
def test_terms_hold(asked, seconds):
    terms = agreed(asked)
    assume(terms is not None)
    assert AutoRenewal.decode(terms.encode()) == terms
    begun = terms.begun(NOW, PROFILE.validity.backdate)
    assume(begun.first < terms.end)
    moment = begun.first + timedelta(seconds=seconds)
    number = terms.latest(begun.first, moment)
    assert number >= 0
    begin, end = terms.period(begun.first, number)
    assert end <= terms.end, "nothing is valid beyond the end of the order"
    assert begin < end
    assert end - begin <= PROFILE.validity.maximum
    if number:
        due = terms.due(begun.first, number)
        assert due is not None
        assert begin == due <= moment, "valid when it is published"
        previous = terms.nominal(begun.first, number - 1)
        assert due <= previous + terms.lifetime / 2, "half of a lifetime before the one before ends, or earlier"
    if moment < terms.end:
        following = terms.due(begun.first, number + 1)
        assert following is None or following > moment
