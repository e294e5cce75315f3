"""What a core takes hold of before it is composed: the home's lock, the node's name, and its keys."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Final

from ca_server.bootstrap.stores import Stores
from ca_server.bootstrap.token import LOG_LABEL, SECRETS_LABEL
from ca_server.bootstrap.users import write_private
from ca_server.core.audit import EventFactory
from ca_server.core.issuers import generate_on_record
from ca_server.core.ports import KeyStore, SigningKey
from ca_server.domain.audit import EventType
from ca_server.domain.enrollment import Fence
from ca_server.domain.errors import CaError, ConfigurationError, ErrorKind
from ca_server.domain.keys import KeyAlgorithm
from ca_server.settings import Home, Settings

NODE_LEASE: Final = timedelta(seconds=30)
_MACHINE_ID: Final = Path("/etc/machine-id")


@contextmanager
def home_lock(home: Home) -> Iterator[None]:
    """Hold the home's lock: one core at a time. ConfigurationError where another holds it."""
    with home.lock.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                str(home.path), "home", None, "another ca-server process uses this home; stop it first"
            ) from None
        yield


async def begin_boot(home: Home, settings: Settings, stores: Stores) -> Fence:
    """Register this start. ConfigurationError where the node's name is another home's that is at work."""
    try:
        return await stores.coordination.begin_boot(settings.server.node, _home_id(home), datetime.now(UTC), NODE_LEASE)
    except CaError as error:
        if error.kind is not ErrorKind.CONFLICT:
            raise
        raise ConfigurationError(
            str(home.configuration), "server.node", settings.server.node, f"{error.detail}; give each node its own"
        ) from None


def _home_id(home: Home) -> str:
    """What tells this home from others that use the same database, copies of it among them.

    A number drawn once and kept in the core's folder, with machine and place: two homes of one node's name must not
    both be at work. One that was moved begins when the lease of the old place has run out, or was ended by its stop.
    """
    if not home.node_id.exists():
        write_private(home.node_id, token_hex(16).encode())
    machine = _MACHINE_ID.read_bytes() if _MACHINE_ID.exists() else b""
    parts = (home.node_id.read_bytes().strip(), machine.strip(), bytes(home.path.resolve()))
    return sha256(b"\0".join(parts)).hexdigest()[:32]


async def end_boot(stores: Stores, fence: Fence) -> None:
    """Let the node's name go, where the database can still be told."""
    with suppress(CaError):
        await stores.coordination.end_boot(fence, datetime.now(UTC))


async def log_key(keys: KeyStore, stores: Stores, events: EventFactory) -> SigningKey:
    """The key of the audit log, generated for a log that has none yet. NOT_FOUND where the token has lost it."""
    try:
        return await keys.find(LOG_LABEL)
    except CaError as error:
        if error.kind is not ErrorKind.NOT_FOUND or await stores.audit.latest_checkpoint() is not None:
            raise
    return await generate_on_record(keys, stores.audit, events, LOG_LABEL, KeyAlgorithm.P256)


async def nonce_key(keys: KeyStore, stores: Stores, events: EventFactory) -> bytes:
    """The key of all nodes' nonces: drawn once, kept encrypted under the token's key.

    NOT_FOUND where the token has lost that key: another in its place would read no secret that is stored.
    """
    context = b"secret:nonce-key"
    stored = await stores.coordination.secret("nonce-key")
    if stored is None:
        if await keys.ensure_secret_key(SECRETS_LABEL):
            event = events.make(
                EventType.KEY_GENERATED,
                key=SECRETS_LABEL,
                object=f"key:{SECRETS_LABEL}",
                extra={"algorithm": "aes-256"},
            )
            await stores.audit.append([event])
        fresh = await keys.encrypt(SECRETS_LABEL, await keys.random(32), context)
        stored = await stores.coordination.save_secret("nonce-key", fresh)
    return await keys.decrypt(SECRETS_LABEL, stored, context)
