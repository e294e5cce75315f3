"""The gate before the token: only the Linter makes a LintedTbs, and only a LintedTbs is signed.

Our own lints run on every certificate; pkilint on every new shape, in a process of its own, and its verdict is kept.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import structlog

from ca_server.core import lint_rules
from ca_server.core.der import assemble
from ca_server.core.lint_rules import LintError
from ca_server.core.pkilint_process import CERTIFICATE, CRL, OCSP_RESPONSE, Finding, PkilintProcess
from ca_server.core.tbs import TbsPlan, UnlintedTbs
from ca_server.domain.errors import CaError
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.profile_rules import PkilintMode
from ca_server.domain.profiles import Profile

_MAX_SHAPES: Final = 10_000
_GATE: Final = object()

_log = structlog.get_logger()

__all__ = ["Finding", "LintError", "LintedTbs", "Linter", "Shape", "assemble"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What certificates have in common for which one verdict of pkilint holds."""

    profile_hash: str
    """Empty for CA certificates."""
    issuer_key: bytes
    issuer_algorithm: KeyAlgorithm
    key_algorithm: KeyAlgorithm
    names: frozenset[str]
    """Kinds of names, and attributes of the subject."""
    extensions: frozenset[bytes]
    """Encoded OIDs."""


class LintedTbs:
    """A TBSCertificate that passed; it can be taken once, to be signed once."""

    __slots__ = ("_tbs_der", "sha256")

    def __init__(self, gate: object, tbs_der: bytes) -> None:
        if gate is not _GATE:
            raise TypeError("only the Linter makes a LintedTbs")
        self._tbs_der: bytes | None = tbs_der
        self.sha256 = sha256(tbs_der).digest()

    def take(self) -> bytes:
        """The TBSCertificate; RuntimeError the second time."""
        tbs_der, self._tbs_der = self._tbs_der, None
        if tbs_der is None:
            raise RuntimeError("this TBSCertificate was taken already")
        return tbs_der


class Linter:
    """Owns the verdicts (`_verdicts`), the questions under way (`_asking`) and the pkilint worker."""

    def __init__(self, *, pkilint: bool = True, time_limit: float = 10.0) -> None:
        self._pkilint = PkilintProcess(time_limit=time_limit) if pkilint else None
        self._verdicts: dict[Shape, tuple[Finding, ...]] = {}
        self._asking: dict[Shape, asyncio.Task[tuple[Finding, ...]]] = {}
        self._warming: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to start the worker; returns at once."""
        if self._pkilint is not None and self._warming is None:
            self._warming = asyncio.create_task(self._warm(self._pkilint), name="pkilint start")

    async def close(self) -> None:
        """End the worker and what waits for it."""
        tasks = [task for task in (self._warming, *self._asking.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._pkilint is not None:
            await self._pkilint.close()

    async def lint(self, unlinted: UnlintedTbs, plan: TbsPlan, profile: Profile) -> LintedTbs:
        """Let an end-entity certificate pass that is what plan and profile call for.

        LintError (INTERNAL) where it is not; UNAVAILABLE where pkilint must see it and can't.
        """
        shape = self._own_lints(unlinted, plan, profile)
        await self._judge(unlinted, shape, every=profile.pkilint is PkilintMode.EVERY)
        return LintedTbs(_GATE, unlinted.tbs_der)

    async def lint_ca(self, unlinted: UnlintedTbs, plan: TbsPlan) -> LintedTbs:
        """Let a CA certificate pass; pkilint sees each. LintError and UNAVAILABLE as for `lint`."""
        shape = self._own_lints(unlinted, plan, None)
        await self._judge(unlinted, shape, every=True)
        return LintedTbs(_GATE, unlinted.tbs_der)

    async def lint_sample(self, certificate_der: bytes) -> tuple[Finding, ...]:
        """What pkilint finds above NOTICE in a certificate that was issued; nothing where pkilint is off."""
        return await self._sample(CERTIFICATE, certificate_der)

    async def lint_crl(self, crl_der: bytes) -> tuple[Finding, ...]:
        """What pkilint finds above NOTICE in a CRL."""
        return await self._sample(CRL, crl_der)

    async def lint_ocsp_response(self, response_der: bytes) -> tuple[Finding, ...]:
        """What pkilint finds above NOTICE in an OCSP response."""
        return await self._sample(OCSP_RESPONSE, response_der)

    async def _sample(self, kind: bytes, document: bytes) -> tuple[Finding, ...]:
        if self._pkilint is None:
            return ()
        return _failures(await self._pkilint.lint(kind, document))

    async def _warm(self, pkilint: PkilintProcess) -> None:
        with contextlib.suppress(CaError):
            await pkilint.warm()

    def _own_lints(self, unlinted: UnlintedTbs, plan: TbsPlan, profile: Profile | None) -> Shape:
        try:
            extensions, attributes = lint_rules.check(unlinted, plan, profile)
        except LintError as error:
            _log.error("a certificate failed the lints", findings=error.findings)
            raise
        kinds = frozenset(f"{name.type.value}{'*' if name.is_wildcard else ''}" for name in plan.names)
        return Shape(
            profile_hash=profile.hash if profile is not None else "",
            issuer_key=plan.authority.key_identifier,
            issuer_algorithm=plan.authority.algorithm,
            key_algorithm=plan.key_algorithm,
            names=kinds | attributes,
            extensions=extensions,
        )

    async def _judge(self, unlinted: UnlintedTbs, shape: Shape, *, every: bool) -> None:
        if self._pkilint is None:
            return
        if every:
            _refuse(_failures(await self._pkilint.lint(CERTIFICATE, unlinted.certificate_der)))
            return
        while (verdict := self._verdicts.get(shape)) is None:
            task = self._asking.get(shape)
            if task is None:
                task = asyncio.create_task(self._ask(self._pkilint, unlinted, shape), name="pkilint shape")
                self._asking[shape] = task
                task.add_done_callback(lambda _done: self._asking.pop(shape, None))
                _refuse(await asyncio.shield(task))
            else:
                # Another certificate of this shape is being looked at: its names may fail it where ours would pass.
                await asyncio.wait([task])
        _refuse(verdict)

    async def _ask(self, pkilint: PkilintProcess, unlinted: UnlintedTbs, shape: Shape) -> tuple[Finding, ...]:
        """Ask pkilint. A failure that lies in the names alone is no verdict on the shape: others may have good ones."""
        failures = _failures(await pkilint.lint(CERTIFICATE, unlinted.certificate_der))
        if not failures or any(not finding.is_about_names for finding in failures):
            while len(self._verdicts) >= _MAX_SHAPES:
                self._verdicts.pop(next(iter(self._verdicts)))
            self._verdicts[shape] = failures
        return failures


def _failures(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    return tuple(finding for finding in findings if finding.is_failure)


def _refuse(failures: tuple[Finding, ...]) -> None:
    if failures:
        error = LintError(map(str, failures))
        _log.error("pkilint refuses a certificate", findings=error.findings)
        raise error
