"""What policy would decide on an order, by the code that decides on real ones; nothing is signed or recorded.

The real front-end creates and finalizes an order, and the real pipeline builds and lints the certificate: over a store
that writes nothing, a core that stops before the signature, and keys that can't sign.
"""

import ipaddress
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, cast

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ca_server.bootstrap.attestation import load_attestation_roots
from ca_server.bootstrap.front import acme_options
from ca_server.bootstrap.pipeline import compose_pipeline
from ca_server.bootstrap.stores import Stores, open_stores
from ca_server.bootstrap.version import SOFTWARE
from ca_server.core.audit import EventFactory
from ca_server.core.csr import parse_csr
from ca_server.core.issuance import Issuance, Rehearsal
from ca_server.core.issuers import IssuerRegistry, UrlPlan
from ca_server.core.lint import Linter
from ca_server.core.ports import CorePort, KeyStore, SigningKey, Welcome
from ca_server.core.profiles import ProfileBook
from ca_server.domain.audit import EventType, Outcome
from ca_server.domain.certificates import IssuedCertificate, Issuer
from ca_server.domain.enrollment import EnrollmentRequest, Fence
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.names import Identifier, IdentifierType
from ca_server.domain.profile_rules import CaaMode
from ca_server.domain.profiles import Profile
from ca_server.settings import Home, Settings
from ca_server.store.acme_rehearsal import RehearsalStore
from protocols.acme.encoding import b64url_encode
from protocols.acme.model import Authorization, Order
from protocols.acme.options import AcmeOptions
from protocols.acme.problems import ProblemError, problem_of
from protocols.acme.views import AcmeFrontEnd

_PATIENCE: Final = 60.0
"""Seconds for the certificate to be built and linted."""
_MAX_COMMON_NAME: Final = 64


class Verdict(StrEnum):
    """What one step says."""

    ALLOW = "allow"
    DENY = "deny"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the decision."""

    name: str
    verdict: Verdict
    detail: str
    rule: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks for which names; `csr_der` None: one is made up, with a key that the profile allows.

    A name is a DNS name, an address, or `TYPE:VALUE`.
    """

    account_id: str
    profile: str
    names: tuple[str, ...]
    csr_der: bytes | None = None
    challenge: str = ""
    """By which control of the names is shown, where it is offered; else, and where it is not, by the first."""


async def simulate(home: Home, settings: Settings, question: Question) -> tuple[Step, ...]:
    """The steps up to the first that does not allow it."""
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(open_stores(home, settings))
        book = ProfileBook(stores.profiles, {})
        await book.follow()
        linter = Linter(pkilint=settings.lint.pkilint, time_limit=settings.lint.pkilint_timeout)
        stack.push_async_callback(linter.close)
        await linter.start()
        events = EventFactory(
            node=settings.server.node,
            process="simulation",
            software=SOFTWARE,
            configuration=settings.hash,
            tenant=settings.server.tenant,
        )
        welcome = Welcome(settings.server.node, b"", settings.hash, staging=settings.server.staging)
        return await decide_order(
            question,
            options=acme_options(settings, welcome, load_attestation_roots(home, settings)),
            store=RehearsalStore(stores.database, settings.server.tenant, question.challenge),
            pipeline=await _pipeline(settings, stores, book, linter, events),
            profiles=book,
            events=events,
        )


async def decide_order(
    question: Question,
    *,
    options: AcmeOptions,
    store: RehearsalStore,
    pipeline: Issuance,
    profiles: ProfileBook,
    events: EventFactory,
) -> tuple[Step, ...]:
    """The steps by a front-end of these options, and a pipeline of which no more is asked than a rehearsal."""
    core = _Core(pipeline)
    front = AcmeFrontEnd(
        options=replace(options, finalize_wait=_PATIENCE, chaos=None),
        store=store,
        core=cast(CorePort, core),
        profiles=profiles,
        events=events,
        nonce_key=bytes(32),
    )
    return await _Rehearsal(front, store, core, profiles, question).run()


async def _pipeline(
    settings: Settings, stores: Stores, book: ProfileBook, linter: Linter, events: EventFactory
) -> Issuance:
    issuers = await stores.issuers.issuers()
    registry = IssuerRegistry(stores.issuers, cast(KeyStore, _AbsentKeys(issuers)), UrlPlan(settings.http_url))
    await registry.load()
    fence = Fence(settings.server.node, 0)
    return compose_pipeline(settings, stores, registry, book, linter, events, lambda: fence)


class _Rehearsal:
    """Asks for a certificate step by step, and tells what each step says."""

    def __init__(
        self, front: AcmeFrontEnd, store: RehearsalStore, core: "_Core", book: ProfileBook, question: Question
    ) -> None:
        self._front = front
        self._store = store
        self._core = core
        self._book = book
        self._question = question
        self._steps: list[Step] = []

    async def run(self) -> tuple[Step, ...]:
        order = await self._order()
        if order is not None:
            await self._certificate(order)
        return tuple(self._steps)

    def _allow(self, name: str, detail: str) -> None:
        self._steps.append(Step(name, Verdict.ALLOW, detail))

    def _deny(self, name: str, error: CaError | ProblemError) -> None:
        """Tell an error as the client would be told it, each part by itself."""
        problem = problem_of(error)
        self._steps.append(Step(name, Verdict.DENY, problem.detail, problem.rule or problem.type.value))
        for part in problem.subproblems:
            about = "" if part.identifier is None else f"{part.identifier.type}:{part.identifier.value}: "
            self._steps.append(Step(name, Verdict.DENY, about + part.detail, part.rule or part.type.value))

    async def _order(self) -> Order | None:
        """Account, policy on the names, limits, authorizations."""
        question = self._question
        payload = msgspec.json.encode({"identifiers": [_identifier(name) for name in question.names]})
        try:
            exchange = await self._front.door.pretend(question.account_id, question.profile, payload)
        except (CaError, ProblemError) as error:
            self._deny("account", error)
            return None
        account = exchange.own_account
        bound = "" if account.eab_kid is None else f", let in by the external account key {account.eab_kid}"
        self._allow("account", f"{account.id} is {account.status.value}{bound}")
        try:
            order = await self._front.orders.create(exchange)
        except (CaError, ProblemError) as error:
            if self._store.asked:
                self._allow("names", "policy allows them")
            self._deny("limits" if self._store.asked else "names", error)
            return None
        self._allow("names", f"profile {order.profile} allows {', '.join(_names(order))}")
        self._allow("limits", "there is room in all of them")
        stands = self._store.stands
        if stands is not None:
            for authorization in stands.reused:
                detail = f"{_shown(authorization)}: a valid one is reused, until {authorization.expires_at:%Y-%m-%d}"
                self._allow("authorization", detail)
            for authorization in stands.made:
                offered = ", ".join(challenge.type for challenge in authorization.challenges)
                self._allow("authorization", f"{_shown(authorization)}: to be shown by one of {offered}")
        return order

    async def _certificate(self, order: Order) -> None:
        """Key and CSR, and what the core makes of the request."""
        question = self._question
        csr_der = question.csr_der
        if csr_der is None:
            profile = self._book.get(order.profile)
            csr_der = None if profile is None else made_up_csr(profile, [each.identifier for each in order.identifiers])
        if csr_der is None:
            self._allow("csr", "none was given, and none can be made up for such names: nothing more is looked at")
            return
        payload = msgspec.json.encode({"csr": b64url_encode(csr_der)})
        try:
            self._store.attested_key = parse_csr(csr_der).spki_sha256
            exchange = await self._front.door.pretend(question.account_id, question.profile, payload)
            await self._front.orders.finalize(exchange, order.id)
        except (CaError, ProblemError) as error:
            self._deny("csr", error)
            return
        self._allow("csr", "key, names and subject are allowed" if question.csr_der else "made up for the names")
        self._caa()
        refused = self._core.error
        if self._core.rehearsal is not None:
            self._issued(self._core.rehearsal)
        elif refused is None:
            self._objection()
        elif refused.kind is ErrorKind.PENDING_APPROVAL:
            self._steps.append(Step("certificate", Verdict.HOLD, refused.detail, refused.rule))
        else:
            self._deny("certificate", refused)

    def _caa(self) -> None:
        """What CAA records say, where they were looked up for this."""
        for event in self._store.events:
            if event.type is EventType.CAA_CHECKED:
                verdict = Verdict.ALLOW if event.outcome is Outcome.SUCCESS else Verdict.DENY
                if event.extra.get("mode") == CaaMode.LOG.value:
                    verdict = Verdict.ALLOW
                self._steps.append(Step("caa", verdict, f"{event.extra['mode']}: {event.extra['found']}", event.rule))

    def _objection(self) -> None:
        """Why the front-end did not come to ask the core."""
        refused = [event for event in self._store.events if event.type is EventType.ISSUANCE_REFUSED]
        if not refused:
            self._steps.append(Step("issuance", Verdict.DENY, "nothing can be decided now; the log tells why"))
        elif self._steps[-1].verdict is Verdict.ALLOW:
            self._steps.append(Step("issuance", Verdict.DENY, refused[-1].reason or "", refused[-1].rule))

    def _issued(self, rehearsal: Rehearsal) -> None:
        span = f"from {rehearsal.not_before:%Y-%m-%d %H:%M}Z to {rehearsal.not_after:%Y-%m-%d %H:%M}Z"
        subject = rehearsal.subject or "no subject"
        self._allow("certificate", f"{subject}, {span}, by issuer {rehearsal.issuer}")
        self._allow("lint", f"passed, {len(rehearsal.tbs_der)} octets to be signed")


def _names(order: Order) -> list[str]:
    return [str(each.identifier) for each in order.identifiers]


def _shown(authorization: Authorization) -> str:
    return f"{'*.' if authorization.wildcard else ''}{authorization.identifier.value}"


def _identifier(name: str) -> Mapping[str, str]:
    """An identifier as a client would send it."""
    try:
        return {"type": "ip", "value": str(ipaddress.ip_address(name))}
    except ValueError:
        kind, colon, value = name.partition(":")
        return {"type": kind, "value": value} if colon else {"type": "dns", "value": name}


def made_up_csr(profile: Profile, names: list[Identifier]) -> bytes | None:
    """A CSR with a fresh key that the profile allows; None for names of kinds that no CSR is made up for here.

    Devices are left out of it, as draft-ietf-acme-device-attest section 3.2 allows.
    """
    alternative: list[x509.GeneralName] = []
    for name in names:
        if name.type is IdentifierType.DNS:
            alternative.append(x509.DNSName(name.value))
        elif name.type is IdentifierType.IP:
            alternative.append(x509.IPAddress(ipaddress.ip_address(name.value)))
        elif not name.is_device:
            return None
    first = next((name.value for name in names if not name.is_device and len(name.value) <= _MAX_COMMON_NAME), None)
    subject = [] if first is None else [x509.NameAttribute(NameOID.COMMON_NAME, first)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    if alternative:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternative), critical=False)
    key = _made_up_key(profile)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(Encoding.DER)


def _made_up_key(profile: Profile) -> ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey:
    allowed = profile.keys
    curves: Mapping[KeyAlgorithm, ec.EllipticCurve] = {
        KeyAlgorithm.P256: ec.SECP256R1(),
        KeyAlgorithm.P384: ec.SECP384R1(),
        KeyAlgorithm.P521: ec.SECP521R1(),
    }
    for algorithm, curve in curves.items():
        if algorithm in allowed:
            return ec.generate_private_key(curve)
    if KeyAlgorithm.ED25519 in allowed:
        return ed25519.Ed25519PrivateKey.generate()
    sizes = (int(algorithm.value.rpartition("-")[2]) for algorithm in allowed if algorithm.is_rsa)
    return rsa.generate_private_key(65537, min(sizes))


class _Core:
    """What of the core's port an order asks for. `rehearsal` is what it would sign, `error` why it would not."""

    def __init__(self, pipeline: Issuance) -> None:
        self._pipeline = pipeline
        self.rehearsal: Rehearsal | None = None
        self.error: CaError | None = None

    async def issue(self, request: EnrollmentRequest) -> IssuedCertificate:
        try:
            made = self.rehearsal = await self._pipeline.rehearse(request)
        except CaError as error:
            self.error = error
            raise
        return IssuedCertificate(
            serial="",
            issuer=made.issuer,
            issuer_key_id=0,
            certificate_der=b"",
            chain=(),
            profile=request.profile,
            profile_hash=made.profile_hash,
            not_before=made.not_before,
            not_after=made.not_after,
        )


@dataclass(slots=True)
class _AbsentKey:
    """An issuer's key as its certificate tells it: it can't sign."""

    label: str
    algorithm: KeyAlgorithm
    spki_der: bytes

    async def sign(self, data: bytes) -> bytes:  # noqa: ARG002
        raise CaError(ErrorKind.INTERNAL, "a rehearsal signs nothing")


class _AbsentKeys:
    """What of the token's keys a registry of issuers asks for, without a token."""

    def __init__(self, issuers: tuple[Issuer, ...]) -> None:
        self._keys = {each.key.label: each.key for each in issuers}

    async def find(self, label: str) -> SigningKey:
        key = self._keys[label]
        return _AbsentKey(key.label, key.algorithm, key.spki_der)
