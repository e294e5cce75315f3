"""`ca-server issuer`: the certificate authorities of this home."""

import sys
from typing import Annotated, Any

import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

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
from ca_server.domain.certificates import Issuer
from ca_server.domain.errors import CaError, ErrorKind

app = typer.Typer(help="List, show and export the issuers.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="The issuer's name, such as `root` or `issuing`.")]


@app.command("list")
def list_issuers(home: HomeOption = DEFAULT_HOME, settings: SetOption = [], *, json: JsonOption = False) -> None:  # noqa: B006
    """List the issuers."""
    issuers = run(_issuers(home, settings))
    rows = [_summary(issuer) for issuer in issuers]
    if json:
        print_json(rows)
        return
    print_table(
        ("name", "kind", "parent", "key", "generation", "not after", "subject"),
        [[row[key] for key in ("name", "kind", "parent", "key", "generation", "not_after", "subject")] for row in rows],
    )


@app.command("show")
def show(
    name: NameArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """Show one issuer."""
    summary = _summary(run(_issuer(home, settings, name)))
    if json:
        print_json(summary)
    else:
        print_table(("field", "value"), list(summary.items()))


@app.command("export")
def export(
    name: NameArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    chain: Annotated[bool, typer.Option("--chain", help="Add the certificates above it, up to the root.")] = False,
) -> None:
    """Print an issuer's certificate as PEM: `ca-server issuer export root > root.pem` is what clients trust."""
    key = run(_issuer(home, settings, name)).key
    for der in (key.certificate_der, *(key.chain if chain else ())):
        sys.stdout.write(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode())


async def _issuers(home: Any, overrides: list[str]) -> tuple[Issuer, ...]:
    place, settings = open_settings(home, overrides)
    async with open_stores(place, settings) as stores:
        return await stores.issuers.issuers()


async def _issuer(home: Any, overrides: list[str], name: str) -> Issuer:
    for issuer in await _issuers(home, overrides):
        if issuer.name == name:
            return issuer
    raise CaError(ErrorKind.NOT_FOUND, f"there is no issuer {name!r}; `ca-server issuer list` names them")


def _summary(issuer: Issuer) -> dict[str, object]:
    certificate = x509.load_der_x509_certificate(issuer.key.certificate_der)
    return {
        "name": issuer.name,
        "kind": issuer.kind.value,
        "parent": issuer.parent,
        "key": issuer.key.algorithm.value,
        "key_label": issuer.key.label,
        "generation": issuer.key.generation,
        "subject": certificate.subject.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "not_before": certificate.not_valid_before_utc,
        "not_after": certificate.not_valid_after_utc,
    }
