"""The chains that a certificate can be had with (RFC 8555 section 7.4.2), and how they are written."""

import asyncio
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256

import structlog

from ca_server.core.chains import chains_of
from ca_server.domain.certificates import CaCertificate, IssuedCertificate
from ca_server.domain.errors import CaError
from protocols.acme.ports import AcmeStore

_log = structlog.get_logger(__name__)

FRESH_SECONDS = 2.0
"""How long what was read of CA certificates is good for: an import shows within that time."""
CHAIN = "[0-9a-f]{16}"
"""What the name of a chain looks like in a URL."""


class Chains:
    """Tells the chains of an issued certificate; reads the few CA certificates that there are now and then.

    What is known is kept for a moment, so that a download costs no look. `_known`, `_of_key` and `_read_at` are changed
    by the one reader at a time that `_lock` lets in; anyone fills `_of_key` up.
    """

    def __init__(
        self, store: AcmeStore, preferred: Sequence[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._preferred = preferred
        self._clock = clock
        self._lock = asyncio.Lock()
        self._known: tuple[CaCertificate, ...] = ()
        self._of_key: dict[int, dict[str, tuple[bytes, ...]]] = {}
        self._read_at = float("-inf")

    async def of(self, issued: IssuedCertificate) -> dict[str, tuple[bytes, ...]]:
        """The chains of a certificate by name, the default one first. Names stay when others come or go."""
        if self._clock() - self._read_at >= FRESH_SECONDS:
            async with self._lock:
                await self._read_again()
        found = self._of_key.get(issued.issuer_key_id)
        if found is None:
            chains = chains_of(issued.issuer_key_id, self._known, datetime.now(UTC), self._preferred)
            found = {_name(chain.certificates): chain.certificates for chain in chains}
            self._of_key[issued.issuer_key_id] = found
        # Where none is valid any more, or they could not be read, the one under which it was issued.
        return found or {_name(issued.chain): issued.chain}

    async def _read_again(self) -> None:
        if self._clock() - self._read_at < FRESH_SECONDS:
            return
        try:
            self._known = await self._store.ca_certificates()
        except CaError as error:
            _log.warning("CA certificates not read again", error=error.detail)
            return
        self._of_key = {}
        self._read_at = self._clock()


def _name(chain: Sequence[bytes]) -> str:
    return sha256(b"".join(chain)).hexdigest()[:16]


def pem_chain(certificates: Sequence[bytes]) -> bytes:
    """`application/pem-certificate-chain`: leaf first, root left out (RFC 8555 section 9.1)."""
    blocks = []
    for der in certificates:
        text = b64encode(der).decode()
        lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
        blocks.append(f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
    return "".join(blocks).encode()
