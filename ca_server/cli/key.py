"""`ca-server key`: the blocklist of requesters' public keys."""

import re
import sys
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from ca_server.bootstrap.operator import open_admin
from ca_server.bootstrap.stores import open_stores
from ca_server.cli.common import DEFAULT_HOME, HomeOption, JsonOption, SetOption, open_settings, run
from ca_server.cli.output import print_json, print_table
from ca_server.core.ports import BlockKey, UnblockKey
from ca_server.domain.certificates import BlockedKey
from ca_server.domain.errors import CaError, ErrorKind

app = typer.Typer(
    help="Block public keys that must not be certified (any more), and look at the list.", no_args_is_help=True
)

KeyArgument = Annotated[
    str,
    typer.Argument(
        metavar="KEY",
        help="SHA-256 of the SubjectPublicKeyInfo in hexadecimal, or a PEM file: public key, certificate or CSR.",
        show_default=False,
    ),
]


@app.command("block")
def block(
    key: KeyArgument,
    reason: Annotated[str, typer.Option(help="Why; it is on record.", show_default=False)],
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Certify a public key no more. Certificates that it has are not revoked by this.

    Revoking a certificate for key-compromise blocks its key by itself.

    - `ca-server key block leaked.pem --reason "found in a public repository"`
    """
    digest = spki_sha256(key)

    async def work() -> bool:
        place, effective = open_settings(home, settings)
        async with open_admin(place, effective) as admin:
            return (await admin.block_key(BlockKey(digest, reason))).changed

    sys.stdout.write(f"{'blocked' if run(work()) else 'was blocked already'}: {digest.hex()}\n")


@app.command("unblock")
def unblock(
    key: KeyArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
) -> None:
    """Certify a public key again.

    - `ca-server key unblock leaked.pem`
    """
    digest = spki_sha256(key)

    async def work() -> bool:
        place, effective = open_settings(home, settings)
        async with open_admin(place, effective) as admin:
            return (await admin.unblock_key(UnblockKey(digest))).changed

    if not run(work()):
        raise CaError(ErrorKind.NOT_FOUND, f"this key is not blocked: {digest.hex()}")
    sys.stdout.write(f"unblocked: {digest.hex()}\n")


@app.command("list")
def list_keys(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """List blocked keys, newest first.

    - `ca-server key list`
    """

    async def work() -> tuple[BlockedKey, ...]:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            return await stores.issuance.blocked_keys()

    keys = run(work())
    if json:
        print_json(
            [{"spki_sha256": key.spki_sha256.hex(), "added_at": key.added_at, "reason": key.reason} for key in keys]
        )
        return
    print_table(
        ("spki sha-256", "since", "reason"), [(key.spki_sha256.hex(), key.added_at, key.reason) for key in keys]
    )


def spki_sha256(text: str) -> bytes:
    """The hash that is given, or of the key in the file that is. MALFORMED."""
    if re.fullmatch(r"[0-9a-fA-F:]{64,95}", text) and len(digits := text.replace(":", "")) == 64:  # noqa: PLR2004
        return bytes.fromhex(digits)
    try:
        pem = Path(text).read_bytes()
    except OSError as error:
        why = f"{text!r} is no SHA-256, and as a file can't be read: {error.strerror}"
        raise CaError(ErrorKind.MALFORMED, why) from None
    return sha256(_public_key(text, pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _public_key(name: str, pem: bytes) -> PublicKeyTypes:
    try:
        if b"-----BEGIN CERTIFICATE-----" in pem:
            return x509.load_pem_x509_certificate(pem).public_key()
        if b"CERTIFICATE REQUEST-----" in pem:
            return x509.load_pem_x509_csr(pem).public_key()
        return load_pem_public_key(pem)
    except ValueError:
        raise CaError(ErrorKind.MALFORMED, f"{name} has no public key, certificate or CSR in PEM") from None
