"""The inner JWS of a keyChange (RFC 8555 section 7.3.5): bytes in, the checked new key out."""

from protocols.acme.jwk import Jwk, JwsError, JwsErrorKind, parse_jwk
from protocols.acme.jws import parse_jws, verify_jws
from protocols.acme.objects import KeyChange, decode_payload


def parse_key_change(data: bytes, outer_url: str, account_url: str, old_key: Jwk) -> Jwk:
    """Read the payload of a keyChange that `old_key` signed; the key that is to take its place has signed it too.

    Raises JwsError: MALFORMED where form, `jwk`, the absent nonce, `url`, `account` or `oldKey` are not as required or
    the new key did not sign, BAD_SIGNATURE_ALGORITHM and BAD_PUBLIC_KEY from that key; PayloadError.
    """
    inner = parse_jws(data)
    if inner.jwk is None:
        raise _malformed("the inner JWS has no jwk, the new key")
    if inner.nonce is not None:
        raise _malformed("the inner JWS has a nonce")
    if inner.url != outer_url:
        raise _malformed("url of the inner JWS is not that of the request")
    try:
        verify_jws(inner, inner.jwk)
    except JwsError as error:
        if error.kind is not JwsErrorKind.UNAUTHORIZED:
            raise
        # The request itself is genuine: who sent it is known.
        raise _malformed("the inner JWS is not signed by the new key") from error
    wanted = decode_payload(KeyChange, inner.payload)
    if wanted.account != account_url:
        raise _malformed("account of the keyChange is not the account that signed the request")
    if not _is(old_key, bytes(wanted.oldKey)):
        raise _malformed("oldKey of the keyChange is not the account's key")
    return inner.jwk


def _is(key: Jwk, data: bytes) -> bool:
    try:
        return parse_jwk(data) == key
    except JwsError:
        return False


def _malformed(detail: str) -> JwsError:
    return JwsError(JwsErrorKind.MALFORMED, detail)
