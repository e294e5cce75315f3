"""Windows of renewal: spread over a fleet, and placed by nothing but the certificate."""

from collections import Counter
from datetime import UTC, datetime, timedelta

from protocols.acme.certid import CertId
from protocols.acme.renewal_window import pause, suggested_window

ISSUED = datetime(2026, 1, 1, tzinfo=UTC)
LIFETIME = timedelta(days=90)


def windows(count: int) -> list[datetime]:
    serials = (int.from_bytes(number.to_bytes(4, "big") * 4, "big") + 1 for number in range(count))
    return [suggested_window(CertId(b"k" * 20, serial), ISSUED, ISSUED + LIFETIME).start for serial in serials]


def test_certificates_of_one_moment_are_spread_evenly() -> None:
    """Ten thousand of one moment: over 13.5 days, none of 27 half days with more than a fifth above the mean."""
    parts = Counter(int((start - ISSUED - LIFETIME * 0.6) / timedelta(hours=12)) for start in windows(10_000))
    assert sorted(parts) == list(range(27))
    assert max(parts.values()) < 10_000 / 27 * 1.2
    assert min(parts.values()) > 10_000 / 27 * 0.8


def test_pauses_of_certificates_differ() -> None:
    """Clients that began to look at one moment don't for ever."""
    longest = timedelta(hours=6)
    pauses = [pause(CertId(b"k" * 20, serial), LIFETIME, longest) for serial in range(1, 1_001)]
    assert longest * 0.8 < min(pauses) < longest * 0.81
    assert longest * 0.99 < max(pauses) <= longest
    assert len({each // timedelta(minutes=1) for each in pauses}) > 70


def test_pauses_of_short_lifetimes() -> None:
    certid, day = CertId(b"k" * 20, 7), timedelta(days=1)
    assert day / 20 * 0.8 <= pause(certid, day, timedelta(hours=6)) <= day / 20
    assert pause(certid, timedelta(minutes=5), timedelta(hours=6)) == timedelta(minutes=1)


def test_the_issuers_key_places_a_window_too() -> None:
    one, other = (suggested_window(CertId(key * 20, 7), ISSUED, ISSUED + LIFETIME) for key in (b"k", b"l"))
    assert one != other


def test_the_place_of_a_window_is_for_ever() -> None:
    """Another release that placed windows otherwise would bring a whole fleet back at once."""
    window = suggested_window(CertId(b"k" * 20, 7), ISSUED, ISSUED + LIFETIME)
    assert (window.start, window.end - window.start) == (
        datetime(2026, 3, 3, 7, 7, 40, 466_794, UTC),
        timedelta(days=1.8),
    )
