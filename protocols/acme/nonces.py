"""Anti-replay nonces that cost no write to issue (RFC 8555 section 6.5).

A nonce is its time of expiry and random octets under a MAC, so every process that has the key knows any other's
nonces as genuine and fresh, also after a restart and whatever lifetime is configured by then. That one is used once
only is for the caller to record; a record may be forgotten when the nonce has expired by every node's clock.
"""

import hmac
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from hashlib import sha256

from protocols.acme.encoding import EncodingError, b64url_decode, b64url_encode

_CONTEXT = b"acme nonce 3\0"
_TIME_OCTETS = 8
_RANDOM_OCTETS = 11
_FLAVOUR_OCTETS = 1
_MAC_OCTETS = 16
_OCTETS = _TIME_OCTETS + _RANDOM_OCTETS + _FLAVOUR_OCTETS + _MAC_OCTETS
_TEXT_LENGTH = _OCTETS * 4 // 3
_MIN_KEY = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Flavour(IntEnum):
    """What a nonce says of who was given it (`protocols.acme.chaos`)."""

    PLAIN = 0
    TRIED = 1
    """By a staging profile that tries its clients."""
    DOOMED = 2
    """Likewise, and it is to be refused."""


class BadNonceError(Exception):
    """The nonce was not issued here, or too long ago; `detail` is fit for the client."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


def _now() -> datetime:
    return datetime.now(UTC)


class NonceBook:
    """Issues nonces and tells its own; immutable, so any task or thread may use it."""

    def __init__(self, key: bytes, lifetime: timedelta, clock: Callable[[], datetime] = _now) -> None:
        if len(key) < _MIN_KEY:
            raise ValueError(f"a nonce key has at least {_MIN_KEY} octets")
        self._key = key
        self._lifetime = lifetime
        self._clock = clock

    def issue(self, flavour: Flavour = Flavour.PLAIN) -> str:
        """Make a fresh nonce: 48 characters of base64url."""
        time = (self._clock() + self._lifetime - _EPOCH) // _MICROSECOND
        body = time.to_bytes(_TIME_OCTETS, "big") + secrets.token_bytes(_RANDOM_OCTETS) + bytes((flavour,))
        return b64url_encode(body + self._mac(body))

    def check(self, text: str) -> datetime:
        """Tell when the nonce expires. Raises BadNonceError where it has, or is malformed or forged."""
        if len(text) != _TEXT_LENGTH:
            raise BadNonceError("the nonce was not issued by this server")
        try:
            octets = b64url_decode(text)
        except EncodingError as error:
            raise BadNonceError("the nonce was not issued by this server") from error
        body, mac = octets[:-_MAC_OCTETS], octets[-_MAC_OCTETS:]
        if not hmac.compare_digest(mac, self._mac(body)):
            raise BadNonceError("the nonce was not issued by this server")
        expires_at = _EPOCH + int.from_bytes(body[:_TIME_OCTETS], "big") * _MICROSECOND
        if self._clock() > expires_at:
            raise BadNonceError("the nonce has expired")
        return expires_at

    @staticmethod
    def flavour_of(checked: str) -> Flavour:
        """The flavour of a nonce that `check` let pass."""
        return Flavour(b64url_decode(checked)[-_MAC_OCTETS - _FLAVOUR_OCTETS])

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, _CONTEXT + body, sha256)[:_MAC_OCTETS]
