"""`ca-server crl`: sign one now, or look at the one that is published."""

import sys
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
    print_json,
    print_table,
    run,
)
from ca_server.core.ports import PublishCrl
from ca_server.domain.certificates import Crl
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
    """Sign and publish a new CRL now."""

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
    """Show the CRL that is published."""

    async def work() -> Crl | None:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            return await stores.revocation.latest_crl(issuer)

    crl = run(work())
    if crl is None:
        raise CaError(ErrorKind.NOT_FOUND, f"issuer {issuer!r} has published no CRL")
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
        "entries": len(parsed),
        "serials": [f"{entry.serial_number:x}" for entry in parsed],
        "size": len(crl.der),
    }
    if json:
        print_json(summary)
    else:
        print_table(("field", "value"), list(summary.items()))
