"""`ca-server crl`: sign one now, or look at the one that is published."""

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_server.bootstrap.operator import open_admin
from ca_server.bootstrap.stores import open_stores
from ca_server.cli.common import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    SetOption,
    open_settings,
    run,
)
from ca_server.cli.output import print_fields, print_json, print_table
from ca_server.core.ports import PublishCrl
from ca_server.domain.certificates import Crl, serial_text
from ca_server.domain.errors import CaError, ErrorKind

app = typer.Typer(help="Publish and show certificate revocation lists.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="The issuer's name.")]


@app.command("publish")
def publish(
    issuer: NameArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """Sign and publish a new CRL now, though none is due.

    - `ca-server crl publish issuing`
    """

    async def work() -> Crl:
        place, effective = open_settings(home, settings)
        async with open_admin(place, effective) as admin:
            return await admin.publish_crl(PublishCrl(issuer))

    _print(run(work()), json=json)


@app.command("show")
def show(
    issuer: NameArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    pem: Annotated[bool, typer.Option("--pem", help="Print the CRL itself as PEM.")] = False,
    json: JsonOption = False,
) -> None:
    """Show the CRL that is published, with what is on it.

    - `ca-server crl show issuing`
    - `ca-server crl show root --pem > root-crl.pem`
    """

    async def work() -> Crl:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            if issuer not in {each.name for each in await stores.issuers.issuers()}:
                raise CaError(ErrorKind.NOT_FOUND, f"there is no issuer {issuer!r}; `ca-server issuer list` names them")
            latest = await stores.revocation.latest_crl(issuer)
        if latest is None:
            raise CaError(
                ErrorKind.NOT_FOUND, f"issuer {issuer!r} has published no CRL; ca-server crl publish {issuer}"
            )
        return latest

    crl = run(work())
    if pem:
        sys.stdout.write(x509.load_der_x509_crl(crl.der).public_bytes(Encoding.PEM).decode())
        return
    _print(crl, json=json)


def _print(crl: Crl, *, json: bool) -> None:
    parsed = x509.load_der_x509_crl(crl.der)
    summary = {
        "issuer": crl.issuer,
        "number": crl.number,
        "this_update": crl.this_update,
        "next_update": crl.next_update,
        "expired": crl.next_update <= datetime.now(UTC),
        "size": len(crl.der),
        "entries": len(parsed),
    }
    revoked = [_entry(entry) for entry in parsed]
    if json:
        print_json({**summary, "revoked": revoked})
        return
    print_fields(summary)
    if revoked:
        sys.stdout.write("\n")
        print_table(("serial", "revoked at", "reason"), [list(entry.values()) for entry in revoked])


def _entry(entry: x509.RevokedCertificate) -> dict[str, object]:
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.name
    except x509.ExtensionNotFound:
        reason = "unspecified"
    return {
        "serial": serial_text(entry.serial_number),
        "revoked_at": entry.revocation_date_utc,
        "reason": reason.replace("_", "-"),
    }
