"""What a front may ask of the core, whoever has broken into it."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ca_server.core.audit import EventFactory
from ca_server.core.ports import Welcome
from ca_server.core.service import LISTENER, CoreService, WriteGate
from ca_server.domain.audit import AuditEvent
from ca_server.domain.certificates import RevocationReason, RevocationRequest
from ca_server.domain.enrollment import EnrollmentRequest, Protocol, Requester
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.names import dns_identifier

OWN = dns_identifier("ca.example.test")


@dataclass
class Spy:
    """Takes what the service lets pass."""

    asked: list[object] = field(default_factory=list)
    events: list[AuditEvent] = field(default_factory=list)

    async def issue(self, request: object) -> str:
        self.asked.append(request)
        return "issued"

    async def revoke(self, request: object) -> str:
        self.asked.append(request)
        return "revoked"

    async def append(self, events: list[AuditEvent]) -> None:
        self.events += events


@pytest.fixture
def spy() -> Spy:
    return Spy()


@pytest.fixture
def gate() -> WriteGate:
    return WriteGate()


@pytest.fixture
def service(spy: Spy, gate: WriteGate) -> CoreService:
    parts: dict[str, Any] = {"issuance": spy, "revocation": spy, "audit": spy}
    return CoreService(
        welcome=Welcome("node", b"k" * 32, "configuration"),
        responder=None,  # type: ignore[arg-type]
        accounts=None,  # type: ignore[arg-type]
        health=None,  # type: ignore[arg-type]
        gate=gate,
        listener_names=frozenset({OWN}),
        events=EventFactory(node="node", process="core", software="test", configuration="test"),
        **parts,
    )


ACME = EnrollmentRequest(Requester(Protocol.ACME, "account", "jws"), "default", b"csr", (OWN,), "order")
TLS = EnrollmentRequest(Requester(Protocol.INTERNAL, LISTENER, "core-port"), LISTENER, b"csr", (OWN,), "t")
REVOKE = RevocationRequest("issuing", "0a", RevocationReason.SUPERSEDED, "acme", "account", "account")


@pytest.mark.parametrize("request_", [ACME, TLS], ids=["acme", "own certificate"])
async def test_what_a_front_may_have_issued(service: CoreService, spy: Spy, request_: EnrollmentRequest) -> None:
    assert await service.issue(request_) == "issued"  # type: ignore[comparison-overlap]
    assert spy.asked == [request_]
    assert spy.events == []


@pytest.mark.parametrize(
    "request_",
    [
        replace(ACME, requester=Requester(Protocol.ADMIN, "uid:0", "operator")),
        replace(ACME, requester=Requester(Protocol.INTERNAL, "ocsp-responder:issuing", "core")),
        replace(ACME, requester=Requester(Protocol.ACME, "account", "jws", "other-tenant")),
        replace(ACME, issuer="root"),
        replace(TLS, issuer="root"),
        replace(TLS, profile="ocsp-responder"),
        replace(TLS, identifiers=(OWN, dns_identifier("bank.example.test"))),
    ],
    ids=["operator", "responder", "tenant", "issuer", "own by root", "own profile", "own names"],
)
async def test_what_a_front_may_not_have_issued(service: CoreService, spy: Spy, request_: EnrollmentRequest) -> None:
    with pytest.raises(CaError) as refused:
        await service.issue(request_)
    assert refused.value.kind is ErrorKind.UNAUTHORIZED
    assert spy.asked == []
    assert [(event.type.value, event.rule, event.actor) for event in spy.events] == [
        ("access.refused", "port.front", "internal:front")
    ]


async def test_what_a_front_may_have_revoked(service: CoreService, spy: Spy) -> None:
    assert await service.revoke(REVOKE) == "revoked"  # type: ignore[comparison-overlap]
    assert spy.asked == [REVOKE]


@pytest.mark.parametrize(
    "changes",
    [{"authenticated_by": "operator"}, {"requester_protocol": "uid"}, {"requester_protocol": "internal"}],
)
async def test_a_front_does_not_revoke_as_somebody_else(
    service: CoreService, spy: Spy, changes: dict[str, str]
) -> None:
    with pytest.raises(CaError) as refused:
        await service.revoke(replace(REVOKE, **changes))  # type: ignore[arg-type]
    assert refused.value.kind is ErrorKind.UNAUTHORIZED
    assert spy.asked == []
    assert spy.events[0].rule == "port.front"


async def test_a_closed_gate_lets_nothing_through(service: CoreService, spy: Spy, gate: WriteGate) -> None:
    gate.reason = "the anchor is ahead"
    for call in (service.issue(ACME), service.revoke(REVOKE)):
        with pytest.raises(CaError) as refused:
            await call
        assert refused.value.kind is ErrorKind.UNAVAILABLE
    assert spy.asked == []
