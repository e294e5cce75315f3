"""Each error has its problem document."""

import json

import pytest

from ca_server.domain.errors import CaError, ErrorKind, SubError
from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.certid import CertIdError
from protocols.acme.jws import JwsError, JwsErrorKind
from protocols.acme.nonces import BadNonceError
from protocols.acme.objects import ContactError, ContactErrorKind, PayloadError
from protocols.acme.problems import ErrorType, KnownError, Problem, ProblemError, internal_problem, problem_of
from protocols.acme.rendering import response

URN = "urn:ietf:params:acme:error:"
CASES: list[tuple[KnownError, str, int]] = [
    (CaError(ErrorKind.MALFORMED, "x"), "malformed", 400),
    (CaError(ErrorKind.BAD_CSR, "x"), "badCSR", 400),
    (CaError(ErrorKind.BAD_PUBLIC_KEY, "x"), "badPublicKey", 400),
    (CaError(ErrorKind.REJECTED_IDENTIFIER, "x"), "rejectedIdentifier", 400),
    (CaError(ErrorKind.UNSUPPORTED_IDENTIFIER, "x"), "unsupportedIdentifier", 400),
    (CaError(ErrorKind.POLICY_DENIED, "x"), "unauthorized", 403),
    (CaError(ErrorKind.PENDING_APPROVAL, "x"), "unauthorized", 403),
    (CaError(ErrorKind.UNAUTHENTICATED, "x"), "unauthorized", 401),
    (CaError(ErrorKind.UNAUTHORIZED, "x"), "unauthorized", 403),
    (CaError(ErrorKind.BAD_BINDING, "x"), "unauthorized", 403),
    (CaError(ErrorKind.NOT_FOUND, "x"), "malformed", 404),
    (CaError(ErrorKind.CONFLICT, "x"), "malformed", 409),
    (CaError(ErrorKind.TOO_LARGE, "x"), "malformed", 413),
    (CaError(ErrorKind.ALREADY_REVOKED, "x"), "alreadyRevoked", 400),
    (CaError(ErrorKind.BAD_REVOCATION_REASON, "x"), "badRevocationReason", 400),
    (CaError(ErrorKind.RATE_LIMITED, "x"), "rateLimited", 429),
    (CaError(ErrorKind.UNAVAILABLE, "x"), "serverInternal", 503),
    (CaError(ErrorKind.INTERNAL, "x"), "serverInternal", 500),
    (JwsError(JwsErrorKind.MALFORMED, "x"), "malformed", 400),
    (JwsError(JwsErrorKind.BAD_PUBLIC_KEY, "x"), "badPublicKey", 400),
    (JwsError(JwsErrorKind.BAD_SIGNATURE_ALGORITHM, "x"), "badSignatureAlgorithm", 400),
    (JwsError(JwsErrorKind.UNAUTHORIZED, "x"), "unauthorized", 401),
    (PayloadError("x"), "malformed", 400),
    (CertIdError("x"), "malformed", 400),
    (ContactError(ContactErrorKind.INVALID, "x"), "invalidContact", 400),
    (ContactError(ContactErrorKind.UNSUPPORTED, "x"), "unsupportedContact", 400),
    (BadNonceError("x"), "badNonce", 400),
    (ProblemError(Problem(ErrorType.ORDER_NOT_READY, "x")), "orderNotReady", 403),
]


@pytest.mark.parametrize(("error", "name", "status"), CASES, ids=[f"{c[1]}-{c[2]}-{i}" for i, c in enumerate(CASES)])
def test_mapping(error: KnownError, name: str, status: int) -> None:
    problem = problem_of(error)
    document = problem.json()
    assert (document["type"], document["status"], document["detail"]) == (URN + name, status, "x")
    assert ("Retry-After" in problem.headers) == (status == 429 or status >= 500)


def test_every_kind_is_mapped() -> None:
    for kind in ErrorKind:
        assert problem_of(CaError(kind, "x")).status >= 400
    for jws_kind in JwsErrorKind:
        assert problem_of(JwsError(jws_kind, "x")).status >= 400


def test_algorithms_are_listed() -> None:
    error = JwsError(JwsErrorKind.BAD_SIGNATURE_ALGORITHM, "x", algorithms=("ES256", "RS256"))
    assert problem_of(error).json()["algorithms"] == ["ES256", "RS256"]


def test_subproblems_name_their_identifier() -> None:
    error = CaError(
        ErrorKind.REJECTED_IDENTIFIER,
        "two names",
        suberrors=(
            SubError(ErrorKind.REJECTED_IDENTIFIER, "no", Identifier(IdentifierType.DNS, "a.test"), "names.dns"),
            SubError(ErrorKind.UNSUPPORTED_IDENTIFIER, "what", Identifier(IdentifierType.IP, "::1")),
        ),
    )
    assert problem_of(error).json()["subproblems"] == [
        {
            "type": URN + "rejectedIdentifier",
            "detail": "no",
            "identifier": {"type": "dns", "value": "a.test"},
            "rule": "names.dns",
        },
        {"type": URN + "unsupportedIdentifier", "detail": "what", "identifier": {"type": "ip", "value": "::1"}},
    ]


@pytest.mark.parametrize(("asked", "told"), [(None, "5"), (0, "1"), (30, "30"), (86_400, "599")])
def test_retry_after_is_in_what_clients_bear(asked: int | None, told: str) -> None:
    assert Problem(ErrorType.RATE_LIMITED, "x", retry_after=asked).headers == {"Retry-After": told}


def test_rule_and_instance() -> None:
    document = problem_of(CaError(ErrorKind.POLICY_DENIED, "x", rule="names.dns")).json()
    assert document["rule"] == "names.dns"
    visit = Problem(ErrorType.USER_ACTION_REQUIRED, "x", instance="https://ca.test/terms").json()
    assert (visit["instance"], visit["status"]) == ("https://ca.test/terms", 403)


def test_rendering() -> None:
    rendered = response(internal_problem())
    assert (rendered.status, rendered.content_type) == (500, "application/problem+json")
    assert rendered.headers["Retry-After"] == "5"
    assert isinstance(rendered.body, bytes)
    assert json.loads(rendered.body)["type"] == URN + "serverInternal"
