"""Payloads: what is read, what is ignored, what is refused."""

from datetime import UTC, datetime

import pytest

from protocols.acme.objects import (
    AccountUpdate,
    AuthorizationUpdate,
    ChallengeResponse,
    ContactError,
    ContactErrorKind,
    Finalize,
    KeyChange,
    NewAccount,
    NewOrder,
    OrderIdentifier,
    PayloadError,
    RevokeCert,
    decode_payload,
    parse_contact,
)

ONE = b'"identifiers":[{"type":"dns","value":"a.test"}]'


def test_new_account() -> None:
    account = decode_payload(
        NewAccount,
        b'{"contact":["mailto:a@b.test"],"termsOfServiceAgreed":true,"externalAccountBinding":{"payload":"x"},"new":[1]}',
    )
    assert account.contact == ("mailto:a@b.test",)
    assert account.termsOfServiceAgreed
    assert not account.onlyReturnExisting
    assert account.externalAccountBinding == b'{"payload":"x"}'


def test_absent_and_null_bindings() -> None:
    assert decode_payload(NewAccount, b"{}").externalAccountBinding is None
    assert decode_payload(NewAccount, b'{"externalAccountBinding":null}').externalAccountBinding is None


def test_empty_contacts_differ_from_none() -> None:
    assert decode_payload(AccountUpdate, b'{"contact":[]}').contact == ()
    assert decode_payload(AccountUpdate, b'{"status":"deactivated"}').contact is None


def test_new_order_times_are_in_utc() -> None:
    order = decode_payload(
        NewOrder, b"{" + ONE + b',"notBefore":"2026-01-01T00:00:00Z","notAfter":"2026-01-02T01:30:00+02:00"}'
    )
    assert order.identifiers == (OrderIdentifier("dns", "a.test"),)
    assert order.notBefore == datetime(2026, 1, 1, tzinfo=UTC)
    assert order.notAfter is not None
    assert order.notAfter.isoformat() == "2026-01-01T23:30:00+00:00"


@pytest.mark.parametrize("text", ["MAA", "MAA="])
def test_csr_with_and_without_padding(text: str) -> None:
    assert decode_payload(Finalize, f'{{"csr":"{text}"}}'.encode()).csr == b"0\x00"


def test_revocation_reason_absent_differs_from_0() -> None:
    assert decode_payload(RevokeCert, b'{"certificate":"MAA"}').reason is None
    assert decode_payload(RevokeCert, b'{"certificate":"MAA","reason":0}').reason == 0
    assert decode_payload(RevokeCert, b'{"certificate":"MAA","reason":99}').reason == 99


@pytest.mark.parametrize("body", [b"{}", b'{"resource":"challenge","keyAuthorization":"a.b","type":1}'])
def test_challenge_responses_of_any_age(body: bytes) -> None:
    assert decode_payload(ChallengeResponse, body) == ChallengeResponse()


def test_key_change_keeps_the_old_key_as_sent() -> None:
    change = decode_payload(KeyChange, b'{"account":"https://ca.test/a/1","oldKey":{"kty":"EC", "kty":"EC"}}')
    assert bytes(change.oldKey) == b'{"kty":"EC", "kty":"EC"}'


REFUSED = {
    "empty": (NewOrder, b""),
    "an array": (ChallengeResponse, b"[]"),
    "two objects": (NewAccount, b"{}{}"),
    "not UTF-8": (AuthorizationUpdate, b'{"status":"\xff"}'),
    "deep": (ChallengeResponse, b'{"a":' + b"[" * 100_000),
    "status a number": (AuthorizationUpdate, b'{"status":1}'),
    "terms a string": (NewAccount, b'{"termsOfServiceAgreed":"true"}'),
    "contact a string": (NewAccount, b'{"contact":"mailto:a@b.test"}'),
    "many contacts": (NewAccount, b'{"contact":[' + b",".join([b'"mailto:a@b.test"'] * 21) + b"]}"),
    "no identifiers": (NewOrder, b"{}"),
    "empty identifiers": (NewOrder, b'{"identifiers":[]}'),
    "identifier without value": (NewOrder, b'{"identifiers":[{"type":"dns"}]}'),
    "identifier a string": (NewOrder, b'{"identifiers":["a.test"]}'),
    "1001 identifiers": (
        NewOrder,
        b'{"identifiers":[' + b",".join([b'{"type":"dns","value":"a"}'] * 1001) + b"]}",
    ),
    "time without offset": (NewOrder, b"{" + ONE + b',"notAfter":"2026-01-01T00:00:00"}'),
    "time a number": (NewOrder, b"{" + ONE + b',"notAfter":1}'),
    "no such day": (NewOrder, b"{" + ONE + b',"notAfter":"2026-02-30T00:00:00Z"}'),
    "before all time": (NewOrder, b"{" + ONE + b',"notAfter":"0001-01-01T00:00:00+14:00"}'),
    "csr in base64": (Finalize, b'{"csr":"+/8="}'),
    "csr with bad padding": (Finalize, b'{"csr":"MAA=="}'),
    "csr empty": (Finalize, b'{"csr":""}'),
    "csr a number": (Finalize, b'{"csr":1}'),
    "csr as PEM": (Finalize, b'{"csr":"-----BEGIN CERTIFICATE REQUEST-----"}'),
    "reason true": (RevokeCert, b'{"certificate":"MAA","reason":true}'),
    "reason a string": (RevokeCert, b'{"certificate":"MAA","reason":"1"}'),
}


@pytest.mark.parametrize(("kind", "body"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(kind: type, body: bytes) -> None:
    with pytest.raises(PayloadError) as refusal:
        decode_payload(kind, body)
    assert 0 < len(refusal.value.detail) <= 300
    assert refusal.value.detail.isprintable()


@pytest.mark.parametrize(
    "contact", ["mailto:admin@example.test", "MAILTO:a@b", "mailto:a%2Bb@example.test", "mailto:a+b@xn--bcher-kva.test"]
)
def test_contacts_that_are_taken(contact: str) -> None:
    parse_contact(contact)


@pytest.mark.parametrize(
    ("contact", "kind"),
    [
        ("tel:+12025551212", ContactErrorKind.UNSUPPORTED),
        ("https://example.test", ContactErrorKind.UNSUPPORTED),
        ("", ContactErrorKind.INVALID),
        ("admin@example.test", ContactErrorKind.INVALID),
        ("mailto:", ContactErrorKind.INVALID),
        ("mailto:admin", ContactErrorKind.INVALID),
        ("mailto:@example.test", ContactErrorKind.INVALID),
        ("mailto:a@b.test,c@d.test", ContactErrorKind.INVALID),
        ("mailto:a@b.test%2Cc@d.test", ContactErrorKind.INVALID),
        ("mailto:a@b.test?subject=x", ContactErrorKind.INVALID),
        ("mailto:a%0D%0A@b.test", ContactErrorKind.INVALID),
        ("mailto:a\x7f@b.test", ContactErrorKind.INVALID),
        ("mailto:ä@b.test", ContactErrorKind.INVALID),
        (f"mailto:{'a' * 320}@b.test", ContactErrorKind.INVALID),
    ],
)
def test_contacts_that_are_refused(contact: str, kind: ContactErrorKind) -> None:
    with pytest.raises(ContactError) as refusal:
        parse_contact(contact)
    assert refusal.value.kind is kind
