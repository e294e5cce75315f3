"""`ca-server cert`: the inventory, and revocation by hand."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_server.bootstrap.operator import open_admin
from ca_server.bootstrap.stores import open_stores
from ca_server.cli.common import (
    DEFAULT_HOME,
    HomeOption,
    IssuerOption,
    JsonOption,
    SerialArgument,
    SetOption,
    open_settings,
    print_json,
    print_table,
    run,
    serial_digits,
)
from ca_server.domain.certificates import (
    CertificateRecord,
    RevocationReason,
    RevocationRequest,
    RevokedCertificate,
)
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.inventory import InventoryStatus

app = typer.Typer(help="List, show, export and revoke certificates.", no_args_is_help=True)
_REASONS = {reason.label: reason for reason in RevocationReason if reason is not RevocationReason.REMOVE_FROM_CRL}


@app.command("list")
def list_certificates(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    issuer: Annotated[str | None, typer.Option(help="Of this issuer.")] = None,
    name: Annotated[str | None, typer.Option(help="With this name; `.example.test` for all names under it.")] = None,
    profile: Annotated[str | None, typer.Option(help="Of this profile.")] = None,
    status: Annotated[str | None, typer.Option(help="`valid`, `revoked` or `expired`.")] = None,
    requester: Annotated[str | None, typer.Option(help="Asked for by this requester.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, newest first.")] = 100,
    *,
    json: JsonOption = False,
) -> None:
    """List certificates, newest first."""
    if status not in {None, "valid", "revoked", "expired"}:
        raise typer.BadParameter("valid, revoked or expired", param_hint="--status")

    async def work() -> tuple[CertificateRecord, ...]:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            return await stores.inventory.search(
                issuer=issuer,
                name=name,
                profile=profile,
                status=InventoryStatus(status) if status else None,
                requester=requester,
                limit=limit,
            )

    rows = [_summary(record) for record in run(work())]
    if json:
        print_json(rows)
        return
    columns = ("serial", "issuer", "status", "names", "profile", "not_after", "requester")
    print_table(columns, [[row[key] for key in columns] for row in rows])


@app.command("show")
def show(
    serial: SerialArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    issuer: IssuerOption = None,
    *,
    json: JsonOption = False,
) -> None:
    """Show one certificate with what is on record about it."""
    summary = _summary(run(_find(home, settings, serial, issuer)))
    if json:
        print_json(summary)
    else:
        print_table(("field", "value"), list(summary.items()))


@app.command("export")
def export(
    serial: SerialArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    issuer: IssuerOption = None,
) -> None:
    """Print a certificate as PEM."""
    record = run(_find(home, settings, serial, issuer))
    certificate = x509.load_der_x509_certificate(record.certificate_der)
    sys.stdout.write(certificate.public_bytes(Encoding.PEM).decode())


@app.command("revoke")
def revoke(
    serial: SerialArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    issuer: IssuerOption = None,
    reason: Annotated[str, typer.Option(help=", ".join(_REASONS))] = "unspecified",
    *,
    json: JsonOption = False,
) -> None:
    """Revoke a certificate: OCSP shows it at once, the CRL is signed again."""
    if reason not in _REASONS:
        raise typer.BadParameter(f"one of {', '.join(_REASONS)}", param_hint="--reason")

    async def work() -> RevokedCertificate:
        record = await _find(home, settings, serial, issuer)
        place, effective = open_settings(home, settings)
        async with open_admin(place, effective) as admin:
            return await admin.revoke(
                RevocationRequest(
                    issuer=record.issuer,
                    serial=record.serial,
                    reason=_REASONS[reason],
                    requester_protocol="",
                    requester_id="",
                    authenticated_by="operator",
                )
            )

    revoked = run(work())
    if json:
        print_json(
            {
                "issuer": revoked.issuer,
                "serial": revoked.serial,
                "revoked_at": revoked.revoked_at,
                "reason": revoked.reason.label,
            }
        )
    else:
        sys.stdout.write(f"revoked {revoked.serial} of {revoked.issuer}: {revoked.reason.label}\n")


async def _find(home: Path, overrides: list[str], serial: str, issuer: str | None) -> CertificateRecord:
    text = serial_digits(serial)
    place, settings = open_settings(home, overrides)
    async with open_stores(place, settings) as stores:
        found = await stores.inventory.search(issuer=issuer, serial_prefix=text, limit=10)
    exact = tuple(record for record in found if record.serial == text) or found
    if not exact:
        raise CaError(ErrorKind.NOT_FOUND, f"there is no certificate with serial {serial}")
    if len(exact) > 1:
        raise CaError(ErrorKind.CONFLICT, "more than one certificate matches: give more digits, or --issuer")
    return exact[0]


def _status(record: CertificateRecord) -> str:
    if record.is_revoked:
        return "revoked"
    return "expired" if record.not_after <= datetime.now(UTC) else "valid"


def _summary(record: CertificateRecord) -> dict[str, Any]:
    return {
        "serial": record.serial,
        "issuer": record.issuer,
        "status": _status(record),
        "subject": record.subject,
        "names": record.names,
        "profile": record.profile,
        "profile_hash": record.profile_hash,
        "not_before": record.not_before,
        "not_after": record.not_after,
        "issued_at": record.issued_at,
        "requester": f"{record.requester_protocol}:{record.requester_id}",
        "transaction": record.transaction_key,
        "spki_sha256": record.spki_sha256.hex(),
        "revoked_at": record.revoked_at,
        "revocation_reason": record.revocation_reason.label if record.revocation_reason else None,
    }
