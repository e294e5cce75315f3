"""What `cert show` tells of each name's validation."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from ca_server.cli.validations import validations
from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.model import Authorization, AuthorizationStatus, Challenge, ChallengeStatus, challenge_id

NOW = datetime(2026, 11, 25, tzinfo=UTC)


def authorization(
    value: str, method: str = "dns-01", *, wildcard: bool = False, subdomains: bool = False
) -> Authorization:
    evidence = json.dumps({"seen": f"of {value}"}).encode()
    kind = IdentifierType.IP if value[0].isdigit() else IdentifierType.DNS
    challenges = (
        Challenge(challenge_id(value, "http-01"), value, "http-01", "token"),
        Challenge(challenge_id(value, method), value, method, "token", ChallengeStatus.VALID, NOW, evidence=evidence),
    )
    return Authorization(
        id=value,
        account_id="account",
        identifier=Identifier(kind, value),
        wildcard=wildcard,
        status=AuthorizationStatus.VALID,
        created_at=NOW,
        expires_at=NOW,
        challenges=challenges,
        subdomains=subdomains,
    )


def told(*names: str, by: tuple[Authorization, ...]) -> list[dict[str, Any]]:
    record: Any = SimpleNamespace(names=names)
    order: Any = SimpleNamespace(authorizations=by)
    return validations(record, order)


def test_each_name_with_what_was_seen_of_it() -> None:
    found = told("dns:a.test", "ip:::1", by=(authorization("a.test"), authorization("b.test")))
    assert found == [
        {"name": "dns:a.test", "method": "dns-01", "validated_at": NOW, "evidence": {"seen": "of a.test"}}
    ], "of a name that no authorization is for, nothing is told"


@pytest.mark.parametrize(
    ("name", "subdomains", "expected"),
    [
        ("dns:a.test", True, [None]),
        ("dns:w.a.test", True, ["a.test"]),
        ("dns:x.w.a.test", True, ["a.test"]),
        ("dns:w.a.test", False, []),
        ("dns:*.a.test", True, []),
        ("dns:xa.test", True, []),
    ],
)
def test_names_below_a_domain(name: str, subdomains: bool, expected: list[str | None]) -> None:
    found = told(name, by=(authorization("a.test", subdomains=subdomains),))
    assert [each.get("domain") for each in found] == expected


def test_a_wildcard_and_its_base() -> None:
    by = (authorization("a.test", wildcard=True), authorization("a.test", "http-02"))
    found = told("dns:*.a.test", "dns:a.test", by=by)
    assert [(each["name"], each["method"]) for each in found] == [("dns:*.a.test", "dns-01"), ("dns:a.test", "http-02")]


def test_an_order_that_is_forgotten() -> None:
    record: Any = SimpleNamespace(names=("dns:a.test",))
    assert validations(record, None) == []
