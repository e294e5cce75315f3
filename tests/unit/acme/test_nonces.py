"""Nonces: genuine, fresh, and nobody else's."""

from datetime import UTC, datetime, timedelta

import pytest

from protocols.acme.encoding import b64url_decode, b64url_encode
from protocols.acme.nonces import BadNonceError, NonceBook

KEY = b"k" * 32
NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)


def book(after: timedelta = timedelta(), key: bytes = KEY) -> NonceBook:
    return NonceBook(key, HOUR, lambda: NOW + after)


def test_another_process_knows_when_it_expires() -> None:
    assert book(timedelta(minutes=5)).check(book().issue()) == NOW + HOUR


def test_a_longer_lifetime_makes_no_old_nonce_good_again() -> None:
    """Its use may have been forgotten."""
    nonce = book().issue()
    later = NonceBook(KEY, 24 * HOUR, lambda: NOW + 2 * HOUR)
    with pytest.raises(BadNonceError, match="expired"):
        later.check(nonce)


def test_a_shorter_lifetime_makes_no_nonce_bad() -> None:
    shorter = NonceBook(KEY, HOUR / 4, lambda: NOW + HOUR / 2)
    assert shorter.check(book().issue()) == NOW + HOUR


def test_nonces_differ_and_are_base64url() -> None:
    nonces = {book().issue() for _ in range(100)}
    assert len(nonces) == 100
    for nonce in nonces:
        assert len(nonce) == 48
        b64url_decode(nonce)


@pytest.mark.parametrize(
    ("after", "good"),
    [
        (HOUR, True),
        (HOUR + timedelta(microseconds=1), False),
        (-HOUR, True),
    ],
)
def test_age(after: timedelta, good: bool) -> None:
    nonce = book().issue()
    if good:
        book(after).check(nonce)
        return
    with pytest.raises(BadNonceError):
        book(after).check(nonce)


def test_every_bit_counts() -> None:
    octets = b64url_decode(book().issue())
    for bit in range(len(octets) * 8):
        forged = bytearray(octets)
        forged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadNonceError):
            book().check(b64url_encode(bytes(forged)))


@pytest.mark.parametrize("text", ["", "A" * 47, "A" * 48, "A" * 49, "=" * 48, "ä" * 48, "\ud800" * 48, "A" * 100_000])
def test_what_was_never_issued(text: str) -> None:
    with pytest.raises(BadNonceError):
        book().check(text)


def test_a_nonce_under_another_key() -> None:
    with pytest.raises(BadNonceError):
        book(key=b"x" * 32).check(book().issue())


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="16 octets"):
        NonceBook(b"short", HOUR)
