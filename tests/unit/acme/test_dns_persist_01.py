"""dns-persist-01 (draft-ietf-acme-dns-persist-02): records and their judgement, and the names that are looked at."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.validation import Evidence, ValidationPolicy, ValidationProblem, ValidationTarget, validators
from protocols.acme.validation.persist_record import (
    ANY_DOMAIN,
    PersistRecord,
    RecordError,
    check_record,
    hashed_uri,
    parse_record,
)

# The draft's own example (section 10.2).
PREFIX = "https://ca.example/account-hash/"
THUMBPRINT = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
ACCOUNT = "https://ca.example/acct/123"
URI = f"{PREFIX}sha-256/5SQm7n6tPh2-PlLbCKGnViTXX5z19SCN4cPGQHSk-kw"
ANY_URI = f"{PREFIX}sha-256/NpDnSwUthQK8zCgFdefYxAdAVPnygMLbs9US6oO-5ug"
ISSUERS = ("authority.example", "ca.example.net")
NOW = datetime(2026, 11, 25, tzinfo=UTC)
FOR_EVER = "5000000000"


def test_hashed_uris_are_those_of_the_draft() -> None:
    assert hashed_uri(PREFIX, "example.com", THUMBPRINT, ACCOUNT) == URI
    assert hashed_uri(PREFIX, ANY_DOMAIN, THUMBPRINT, ACCOUNT) == ANY_URI


@pytest.mark.parametrize(
    ("text", "covers_more", "until"),
    [
        (f"authority.example; accounturi={URI}", False, None),
        (f"authority.example;accounturi={URI}", False, None),
        (f" \tAUTHORITY.example ; accounturi = {URI} ", False, None),
        (f"ca.example.net; accounturi={URI}", False, None),
        (f"authority.example; accounturi={URI}; policy=wildcard", True, None),
        (f"authority.example; Policy=WildCard; accounturi={URI}", True, None),
        (f"authority.example; accounturi={URI}; policy=wildcards", False, None),
        (f"authority.example; accounturi={URI}; policy=", False, None),
        (f"authority.example; accounturi={URI}; new=1; new=2", False, None),
        (f"authority.example; accounturi={URI}; persistUntil=1767225600", False, datetime(2026, 1, 1, tzinfo=UTC)),
        (f"authority.example; accounturi={URI}; persistUntil=0001", False, datetime.fromtimestamp(1, UTC)),
        (f"authority.example; accounturi={URI}; persistUntil=-1", False, datetime.fromtimestamp(0, UTC)),
        (f"authority.example; accounturi={URI}; persistUntil={'9' * 5000}", False, None),
    ],
)
def test_records_of_this_ca(text: str, covers_more: bool, until: datetime | None) -> None:
    assert parse_record(text, ISSUERS) == PersistRecord(URI, covers_more, until)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ";",
        "v=spf1 -all",
        f"other.example; accounturi={URI}; policy=wildcard",
        f"authority.example.org; accounturi={URI}",
        f"sub.authority.example; accounturi={URI}",
        f"authority.example.; accounturi={URI}",
        f"xauthority.example; accounturi={URI}",
        f"accounturi={URI}",
    ],
)
def test_records_of_others_are_none_of_ours(text: str) -> None:
    assert parse_record(text, ISSUERS) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("authority.example", "no accounturi"),
        ("authority.example; policy=wildcard", "no accounturi"),
        (f"authority.example; accounturi={URI}; AccountURI={URI}", "2 times"),
        (f"authority.example; accounturi={URI}; policy=x; policy=wildcard", "policy stands"),
        (f"authority.example; accounturi={URI}; persistUntil=1; persistuntil=2", "2 times"),
        (f"authority.example; accounturi={URI}; persistUntil=soon", "no number"),
        (f"authority.example; accounturi={URI}; persistUntil=", "no number"),
        (f"authority.example; accounturi={URI}; persistUntil=1.5", "no number"),
        (f"authority.example; accounturi={URI}; persistUntil=0x10", "no number"),
        (f"authority.example; accounturi={URI} wildcard", "tag=value"),
        (f"authority.example; accounturi={URI};; policy=wildcard", "tag=value"),
        (f"authority.example; accounturi={URI}; note=f\xfcr", "ASCII"),
    ],
)
def test_malformed_records_of_this_ca(text: str, said: str) -> None:
    with pytest.raises(RecordError, match=said) as refused:
        parse_record(text, ISSUERS)
    assert refused.value.type == "malformed"


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        (ACCOUNT, "malformed"),
        (URI.replace("https", "HTTPS"), "malformed"),
        (URI.replace("sha-256", "SHA-256"), "malformed"),
        (URI.replace("sha-256", "sha-512"), "malformed"),
        (URI + "=", "malformed"),
        (URI[:-1], "malformed"),
        (URI.replace("ca.example", "other.example"), "malformed"),
        (URI.lower(), "unauthorized"),
        (ANY_URI, "unauthorized"),
    ],
)
def test_accounts_are_compared_as_they_stand(uri: str, kind: str) -> None:
    check_record(PersistRecord(URI, False, None), PREFIX, {URI}, NOW)
    with pytest.raises(RecordError) as refused:
        check_record(PersistRecord(uri, True, None), PREFIX, {URI}, NOW)
    assert refused.value.type == kind


def test_a_record_ends() -> None:
    check_record(PersistRecord(URI, False, NOW), PREFIX, {URI}, NOW)
    with pytest.raises(RecordError, match="persistUntil was 2026-11-25T00:00:00Z") as refused:
        check_record(PersistRecord(URI, False, NOW), PREFIX, {URI}, NOW.replace(second=1))
    assert refused.value.type == "unauthorized"


# --- Against a nameserver -----------------------------------------------------------------------------------------


@pytest.fixture
def policy(nameserver: Any) -> ValidationPolicy:
    return ValidationPolicy(nameservers=(nameserver.address,), dns_timeout=1.0, issuer_domain_names=ISSUERS)


def target(name: str, *, covers_more: bool = False, former: tuple[str, ...] = ()) -> ValidationTarget:
    return ValidationTarget(
        Identifier(IdentifierType.DNS, name),
        "",
        "",
        ACCOUNT,
        account_hash_prefix=PREFIX,
        thumbprints=(THUMBPRINT, *former),
        covers_more=covers_more,
    )


def record(domain: str, rest: str = "", *, thumbprint: str = THUMBPRINT, issuer: str = ISSUERS[0]) -> str:
    return f"{issuer}; accounturi={hashed_uri(PREFIX, domain, thumbprint, ACCOUNT)}{rest}"


async def validate(policy: ValidationPolicy, of: ValidationTarget) -> ValidationProblem | Evidence | None:
    return await validators(policy, ("dns-persist-01",))["dns-persist-01"].validate(of)


WILD = "; policy=wildcard"
OWN = "_validation-persist.w.a.test"
ABOVE = "_validation-persist.a.test"


@pytest.mark.parametrize(
    ("records", "covers_more"),
    [
        ({OWN: [record("w.a.test")]}, False),
        ({OWN: [record("*")]}, False),
        ({OWN: ["v=spf1", "other.example", record("a.test"), record("w.a.test")]}, False),
        ({OWN: ["authority.example", record("w.a.test")]}, False),
        ({OWN: [record("w.a.test", issuer="ca.example.net")]}, False),
        ({OWN: [record("w.a.test", WILD)]}, True),
        ({ABOVE: [record("a.test", WILD)]}, False),
        ({ABOVE: [record("a.test", WILD)]}, True),
        ({OWN: ["other.example"], ABOVE: [record("*", WILD)]}, False),
        ({OWN: [record("w.a.test", "; persistUntil=1")], ABOVE: [record("a.test", WILD)]}, False),
    ],
)
async def test_control_is_shown(
    policy: ValidationPolicy, nameserver: Any, records: dict[str, list[str]], covers_more: bool
) -> None:
    nameserver.records = {(name, "TXT"): texts for name, texts in records.items()}
    seen = await validate(policy, target("w.a.test", covers_more=covers_more))
    assert isinstance(seen, Evidence), seen
    assert seen.details["record"] == (ABOVE if ABOVE in records else OWN)
    assert "accounturi=" in seen.details["seen"]
    assert seen.until is None


@pytest.mark.parametrize(
    ("records", "covers_more", "kind", "said"),
    [
        ({}, False, "dns", "NXDOMAIN"),
        ({OWN: ["other.example"]}, False, "unauthorized", "no TXT record of authority.example or ca.example.net"),
        ({OWN: [record("a.test")]}, False, "unauthorized", "another account"),
        ({OWN: [record("w.a.test", thumbprint="x" * 43)]}, False, "unauthorized", "another account"),
        ({OWN: [record("w.a.test")]}, True, "unauthorized", "policy=wildcard"),
        ({OWN: [record("w.a.test", "; policy=all")]}, True, "unauthorized", "policy=wildcard"),
        ({ABOVE: [record("a.test")]}, False, "dns", "NXDOMAIN"),
        ({ABOVE: [record("w.a.test", WILD)]}, False, "dns", "NXDOMAIN"),
        ({"_validation-persist.test": [record("test", WILD)]}, False, "dns", "NXDOMAIN"),
        ({OWN: [record("w.a.test", "; persistUntil=1")]}, False, "unauthorized", "persistUntil was 1970"),
        ({OWN: [record("w.a.test", "; persistUntil=x")]}, False, "malformed", "no number"),
        ({OWN: [f"authority.example; accounturi={ACCOUNT}"]}, False, "malformed", "sha-256"),
        ({"_validation-persist.x.w.a.test": [record("x.w.a.test", WILD)]}, False, "dns", "NXDOMAIN"),
    ],
)
async def test_control_is_not_shown(
    policy: ValidationPolicy,
    nameserver: Any,
    records: dict[str, list[str]],
    covers_more: bool,
    kind: str,
    said: str,
) -> None:
    nameserver.records = {(name, "TXT"): texts for name, texts in records.items()}
    seen = await validate(policy, target("w.a.test", covers_more=covers_more))
    assert isinstance(seen, ValidationProblem), seen
    assert (seen.type, seen.retryable) == (kind, True)
    assert said in seen.detail


async def test_keys_that_the_account_had(policy: ValidationPolicy, nameserver: Any) -> None:
    nameserver.records = {(OWN, "TXT"): [record("w.a.test", thumbprint="y" * 43)]}
    assert isinstance(await validate(policy, target("w.a.test", former=("x" * 43, "y" * 43))), Evidence)
    assert isinstance(await validate(policy, target("w.a.test", former=("x" * 43,))), ValidationProblem)


async def test_what_can_not_be_told_is_not_looked_past(policy: ValidationPolicy, nameserver: Any) -> None:
    """A name whose lookup fails may have a record that says no such thing: only one that is not there has none."""
    nameserver.records = {(ABOVE, "TXT"): [record("a.test", WILD)]}
    nameserver.rcodes = {OWN: 2}
    seen = await validate(policy, target("w.a.test"))
    assert isinstance(seen, ValidationProblem)
    assert "SERVFAIL" in seen.detail
    assert [name for name, _ in nameserver.queries if name == ABOVE] == []


async def test_so_many_names_above_are_looked_at(policy: ValidationPolicy, nameserver: Any) -> None:
    await validate(policy, target(".".join([*"abcdefghijkl", "test"])))
    asked = [name.count(".") for name, _ in nameserver.queries]
    assert asked == list(range(13, 5, -1))
    nameserver.queries.clear()
    await validate(policy, target("test"))
    assert nameserver.queries == [("_validation-persist.test", "TXT")]


async def test_the_whole_has_one_time(policy: ValidationPolicy, nameserver: Any) -> None:
    nameserver.silent = {OWN}
    seen = await validate(replace(policy, timeout=0.2), target("w.a.test"))
    assert isinstance(seen, ValidationProblem)
    assert (seen.type, seen.retryable) == ("dns", True)
    assert "0.2 s" in seen.detail


async def test_until_when_evidence_is_good(policy: ValidationPolicy, nameserver: Any) -> None:
    nameserver.records = {(OWN, "TXT"): [record("w.a.test", f"; persistUntil={FOR_EVER}")]}
    seen = await validate(policy, target("w.a.test"))
    assert isinstance(seen, Evidence)
    assert seen.until == datetime.fromtimestamp(int(FOR_EVER), UTC)


def test_without_issuer_domain_names_there_is_no_such_challenge(policy: ValidationPolicy) -> None:
    with pytest.raises(ValueError, match="issuer domain names"):
        validators(replace(policy, issuer_domain_names=()), ("dns-persist-01",))
