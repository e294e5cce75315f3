"""dns-01 and dns-account-01 against a nameserver that behaves, and that does not (RFC 8555 section 8.4)."""

from dataclasses import replace
from hashlib import sha256
from ipaddress import ip_network
from typing import Any

import pytest

from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.jws import b64url_encode
from protocols.acme.validation import ValidationPolicy, ValidationTarget, key_authorization, validators

TOKEN = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA"
AUTHORIZATION = key_authorization(TOKEN, "nP1qzpXGymHBrUEepNY9HCsQk7K8KhOypzEt62jcerQ")
ACCOUNT = "https://example.com/acme/acct/ExampleAccount"
"""Of the draft's own example, which has its label."""
DIGEST = b64url_encode(sha256(AUTHORIZATION.encode()).digest())


@pytest.fixture
def policy(nameserver: Any) -> ValidationPolicy:
    return ValidationPolicy(nameservers=(nameserver.address,), dns_timeout=1.0)


async def dns(policy: ValidationPolicy, kind: str = "dns-01") -> tuple[str, str, bool] | None:
    """What a challenge says, as (type, detail, retryable)."""
    target = ValidationTarget(Identifier(IdentifierType.DNS, "a.test"), TOKEN, AUTHORIZATION, ACCOUNT)
    seen = await validators(policy)[kind].validate(target)
    return None if seen is None else (seen.type, seen.detail, seen.retryable)


@pytest.mark.parametrize(
    "records",
    [
        {("_acme-challenge.a.test", "TXT"): [DIGEST]},
        {("_acme-challenge.a.test", "TXT"): [*(f"another {i}" for i in range(60)), DIGEST]},
        {("_acme-challenge.a.test", "CNAME"): ["x.acme.test"], ("x.acme.test", "TXT"): [DIGEST]},
    ],
    ids=["one", "many", "by alias"],
)
async def test_dns(policy: ValidationPolicy, nameserver: Any, records: dict[tuple[str, str], list[str]]) -> None:
    nameserver.records = records
    assert await dns(policy) is None


@pytest.mark.parametrize(
    ("records", "kind", "said"),
    [
        ({}, "dns", "NXDOMAIN"),
        ({("_acme-challenge.a.test", "A"): ["127.0.0.1"]}, "dns", "no TXT record"),
        ({("_acme-challenge.a.test", "TXT"): [AUTHORIZATION]}, "incorrectResponse", "expected"),
        ({("_acme-challenge.a.test", "TXT"): [DIGEST.lower()]}, "incorrectResponse", DIGEST),
        ({("_acme-challenge.a.test", "TXT"): [DIGEST + "="]}, "incorrectResponse", DIGEST),
        (
            {("_acme-challenge.a.test", "TXT"): ["\x1b[31m" + f"{i}" * 900 for i in range(9)]},
            "incorrectResponse",
            "6 more",
        ),
        ({("a.test", "TXT"): [DIGEST]}, "dns", "NXDOMAIN"),
    ],
)
async def test_dns_with_a_wrong_answer(
    policy: ValidationPolicy, nameserver: Any, records: dict[tuple[str, str], list[str]], kind: str, said: str
) -> None:
    nameserver.records = records
    seen = await dns(policy)
    assert seen is not None
    assert (seen[0], seen[2]) == (kind, True)
    assert said in seen[1]
    assert seen[1].isprintable()
    assert len(seen[1]) <= 500


async def test_dns_records_are_counted(policy: ValidationPolicy, nameserver: Any) -> None:
    nameserver.records = {("_acme-challenge.a.test", "TXT"): [*(f"another {i}" for i in range(199)), DIGEST]}
    assert await dns(policy) is None
    nameserver.records = {("_acme-challenge.a.test", "TXT"): [*(f"another {i}" for i in range(200)), DIGEST]}
    seen = await dns(policy)
    assert seen is not None
    assert (seen[0], seen[2]) == ("incorrectResponse", True)


async def test_dns_aliases_are_counted(policy: ValidationPolicy, nameserver: Any) -> None:
    nameserver.records = {(f"n{i}.test", "CNAME"): [f"n{i + 1}.test"] for i in range(30)}
    nameserver.records["_acme-challenge.a.test", "CNAME"] = ["n0.test"]
    seen = await dns(policy)
    assert seen is not None
    assert (seen[0], seen[2]) == ("dns", False)
    assert "more than 8 aliases" in seen[1]


async def test_dns_without_an_answer(policy: ValidationPolicy, nameserver: Any) -> None:
    nameserver.silent = {"_acme-challenge.a.test"}
    seen = await dns(replace(policy, dns_timeout=0.3))
    assert seen is not None
    assert (seen[0], seen[2]) == ("dns", True)
    assert "in 0.3 s" in seen[1]


async def test_networks_bind_applicants_not_the_nameservers(policy: ValidationPolicy, nameserver: Any) -> None:
    """An operator names the nameservers, and no address of the applicant's is connected to."""
    nameserver.records = {("_acme-challenge.a.test", "TXT"): [DIGEST]}
    everywhere = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert await dns(replace(policy, denied_networks=everywhere)) is None


async def test_the_label_of_an_account(policy: ValidationPolicy, nameserver: Any) -> None:
    nameserver.records = {("_ujmmovf2vn55tgye._acme-challenge.a.test", "TXT"): ["another", DIGEST]}
    assert await dns(policy, "dns-account-01") is None
    seen = await dns(policy)
    assert seen is not None, "dns-01 is not shown by it"


@pytest.mark.parametrize("name", ["_acme-challenge.a.test", "_ujmmovf2vn55tgyf._acme-challenge.a.test", "a.test"])
async def test_without_the_label_of_the_account(policy: ValidationPolicy, nameserver: Any, name: str) -> None:
    nameserver.records = {(name, "TXT"): [DIGEST]}
    seen = await dns(policy, "dns-account-01")
    assert seen is not None
    assert (seen[0], seen[2]) == ("dns", True)
    assert "_ujmmovf2vn55tgye._acme-challenge.a.test" in seen[1]
