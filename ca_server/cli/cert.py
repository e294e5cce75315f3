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
from ca_server.cli.certificates import description, found_by_serial, history, summary
from ca_server.cli.common import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    SetOption,
    duration,
    one_of,
    open_settings,
    run,
)
from ca_server.cli.output import print_fields, print_json, print_table
from ca_server.cli.validations import validations
from ca_server.domain.certificates import (
    CertificateRecord,
    Crl,
    RevocationReason,
    RevocationRequest,
    RevokedCertificate,
)
from ca_server.domain.enrollment import Protocol
from ca_server.store.inventory import InventoryStatus

app = typer.Typer(help="List, show, export and revoke certificates.", no_args_is_help=True)
SerialArgument = Annotated[
    str, typer.Argument(help="Serial number in hexadecimal, as `cert list` shows it; its first digits will do.")
]
IssuerOption = Annotated[
    str | None, typer.Option("--issuer", help="The issuer, where the serial exists under more than one.")
]
_REASONS = {reason.label: reason for reason in RevocationReason if reason is not RevocationReason.REMOVE_FROM_CRL}
_STATUSES = tuple(status.value for status in InventoryStatus)


@app.command("list")
def list_certificates(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    name: Annotated[str | None, typer.Option(help="With this name; `.corp.example` for all names under it.")] = None,
    serial: Annotated[str | None, typer.Option(help="With a serial that begins with these digits.")] = None,
    issuer: Annotated[str | None, typer.Option(help="Of this issuer.")] = None,
    profile: Annotated[str | None, typer.Option(help="Of this profile.")] = None,
    status: Annotated[str | None, typer.Option(help=f"One of {', '.join(_STATUSES)}.")] = None,
    requester: Annotated[str | None, typer.Option(help="Asked for by this requester, such as `acme:ID`.")] = None,
    owner: Annotated[
        str | None, typer.Option(help="Of this owner of an external account key, when it was issued.")
    ] = None,
    expiring_within: Annotated[
        str | None, typer.Option(metavar="TIME", help="Valid now, and ends within this time, such as 14d or 12h.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")] = 100,
    after: Annotated[
        str | None, typer.Option(metavar="SERIAL", help="The next page: what comes after this certificate.")
    ] = None,
    *,
    json: JsonOption = False,
) -> None:
    """List certificates, newest first.

    - `ca-server cert list --name .internal --status valid` shows what is in use under a domain.
    - `ca-server cert list --expiring-within 14d --json` feeds a reminder.
    """
    wanted = None if status is None else InventoryStatus(one_of(status, _STATUSES, "--status"))
    now = datetime.now(UTC)
    ends_before = None if expiring_within is None else now + duration(expiring_within, "--expiring-within")
    if ends_before is not None and wanted not in {None, InventoryStatus.VALID}:
        raise typer.BadParameter("only valid certificates expire; leave --status out", param_hint="--expiring-within")

    async def work() -> tuple[CertificateRecord, ...]:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            last = None if after is None else await found_by_serial(stores.inventory, after, issuer)
            return await stores.inventory.search(
                issuer=issuer,
                serial_prefix=None if serial is None else serial.replace(":", ""),
                name=name,
                profile=profile,
                status=InventoryStatus.VALID if ends_before is not None else wanted,
                requester=requester,
                owner=owner,
                ends_before=ends_before,
                now=now,
                limit=limit + 1,
                after=None if last is None else (last.issuer, last.serial),
            )

    found = run(work())
    rows = [summary(record) for record in found[:limit]]
    if json:
        print_json(rows)
    else:
        columns = ("serial", "issuer", "status", "names", "profile", "not_after", "requester", "owner")
        print_table([column.replace("_", " ") for column in columns], [[row[key] for key in columns] for row in rows])
    if len(found) > limit:
        sys.stderr.write(f"there are more: --after {rows[-1]['serial']}\n")


def _validation_row(told: dict[str, Any]) -> tuple[object, ...]:
    """A validation in a table: its evidence in one cell, behind the domain where that was validated instead."""
    domain = {"domain": told["domain"]} if "domain" in told else {}
    evidence = "; ".join(f"{name}: {value}" for name, value in (domain | told["evidence"]).items())
    return told["name"], told["method"], told["validated_at"], evidence


@app.command("show")
def show(
    serial: SerialArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    issuer: IssuerOption = None,
    *,
    json: JsonOption = False,
) -> None:
    """Show all that is on record about one certificate.

    What it is, who asked for it, how control of each name was shown, who revoked it, and when.

    - `ca-server cert show SERIAL`
    - `ca-server cert show SERIAL --json`
    """

    async def work() -> tuple[dict[str, object], list[dict[str, Any]], list[dict[str, object]]]:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            record = await found_by_serial(stores.inventory, serial, issuer)
            keys = await stores.issuers.issuer_keys(record.issuer)
            key = next(key for key in keys if key.id == record.issuer_key_id)
            crl: Crl | None = None
            if record.is_revoked:
                crl = await stores.revocation.latest_crl(record.issuer, record.issuer_key_id, record.crl_partition)
            events = await history(stores.audit, record)
            order = None
            if record.requester_protocol == Protocol.ACME.value:
                order = await stores.acme.order(record.transaction_key)
            return description(record, key, crl, events), validations(record, order), events

    fields, shown, events = run(work())
    if json:
        print_json({**fields, "validations": shown, "events": events})
        return
    print_fields(fields)
    if shown:
        sys.stdout.write("\n")
        print_table(("name", "method", "validated at", "evidence"), [_validation_row(each) for each in shown])
    sys.stdout.write("\n")
    columns = ("leaf", "time", "type", "outcome", "actor", "source", "reason")
    print_table(columns, [[event.get(column) for column in columns] for event in events])


@app.command("export")
def export(
    serial: SerialArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    issuer: IssuerOption = None,
) -> None:
    """Print a certificate as PEM.

    - `ca-server cert export SERIAL > certificate.pem`
    """
    record = run(_found(home, settings, serial, issuer))
    certificate = x509.load_der_x509_certificate(record.certificate_der)
    sys.stdout.write(certificate.public_bytes(Encoding.PEM).decode())


@app.command("revoke")
def revoke(
    serial: SerialArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    issuer: IssuerOption = None,
    reason: Annotated[str, typer.Option(help=f"One of {', '.join(_REASONS)}.")] = "unspecified",
    *,
    json: JsonOption = False,
) -> None:
    """Revoke a certificate: OCSP shows it at once, the CRL is signed again.

    What was revoked stays revoked; its reason can only be changed to key-compromise, or out of a hold.

    - `ca-server cert revoke SERIAL --reason superseded`
    """
    why = _REASONS[one_of(reason, tuple(_REASONS), "--reason")]
    revoked = run(_revoke(home, settings, serial, issuer, why))
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


@app.command("release")
def release(
    serial: SerialArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    issuer: IssuerOption = None,
    *,
    json: JsonOption = False,
) -> None:
    """Release a certificate from certificate-hold: it is good again, and leaves the CRL.

    - `ca-server cert release HELD`
    """
    released = run(_revoke(home, settings, serial, issuer, RevocationReason.REMOVE_FROM_CRL))
    if json:
        print_json({"issuer": released.issuer, "serial": released.serial, "status": "valid"})
    else:
        sys.stdout.write(f"released {released.serial} of {released.issuer}\n")


async def _revoke(
    home: Path, overrides: list[str], serial: str, issuer: str | None, reason: RevocationReason
) -> RevokedCertificate:
    record = await _found(home, overrides, serial, issuer)
    place, settings = open_settings(home, overrides)
    async with open_admin(place, settings) as admin:
        return await admin.revoke(
            RevocationRequest(
                issuer=record.issuer,
                serial=record.serial,
                reason=reason,
                requester_protocol="",
                requester_id="",
                authenticated_by="operator",
            )
        )


async def _found(home: Path, overrides: list[str], serial: str, issuer: str | None) -> CertificateRecord:
    place, settings = open_settings(home, overrides)
    async with open_stores(place, settings) as stores:
        return await found_by_serial(stores.inventory, serial, issuer)
