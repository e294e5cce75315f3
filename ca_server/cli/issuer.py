"""`ca-server issuer`: the certificate authorities of this home."""

import sys
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_server.bootstrap.issuers import check_stopped, create_missing_issuers
from ca_server.bootstrap.staging import add_staging_directory
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
from ca_server.core.issuers import UrlPlan
from ca_server.domain.certificates import Issuer, IssuerKind, serial_text
from ca_server.domain.errors import CaError, ErrorKind

app = typer.Typer(help="List, show, export and create the issuers.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="The issuer's name, such as `root` or `issuing`.")]


@app.command("list")
def list_issuers(home: HomeOption = DEFAULT_HOME, settings: SetOption = [], *, json: JsonOption = False) -> None:  # noqa: B006
    """List the issuers.

    - `ca-server issuer list`
    """
    issuers = run(_issuers(home, settings))
    rows = [_summary(issuer) for issuer in issuers]
    if json:
        print_json(rows)
        return
    print_table(
        ("name", "kind", "parent", "key", "generation", "not after", "subject"),
        [[row[key] for key in ("name", "kind", "parent", "key", "generation", "not_after", "subject")] for row in rows],
    )


@app.command("create")
def create(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    staging: Annotated[
        bool,
        typer.Option(
            "--staging", help="First write twins of the default profile and its issuers, for clients to test with."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Create the issuers that the configuration names and that are not there yet; the server must be stopped.

    With --staging there is a staging CA beside the real one afterwards, at /acme/staging/directory: docs/staging.md.

    - `ca-server issuer create --staging`
    """

    async def work() -> tuple[str, ...]:
        place, effective = open_settings(home, settings)
        check_stopped(place)
        if staging and effective.server.staging:
            raise CaError(ErrorKind.CONFLICT, "all of this home is for tests")
        if staging:
            add_staging_directory(place)
            place, effective = open_settings(home, settings)
        return await create_missing_issuers(place, effective)

    made = run(work())
    if json:
        print_json(made)
    else:
        sys.stdout.write(f"created: {', '.join(made)}\n" if made else "no issuer is missing\n")


@app.command("show")
def show(
    name: NameArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """Show one issuer with its fingerprint and the URLs that its certificates carry.

    - `ca-server issuer show root`
    """
    issuer = run(_issuer(home, settings, name))
    summary = {**_summary(issuer), **_details(issuer, UrlPlan(open_settings(home, settings)[1].http_url))}
    if json:
        print_json(summary)
    else:
        print_fields(summary)


@app.command("export")
def export(
    name: NameArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    chain: Annotated[bool, typer.Option("--chain", help="Add the certificates above it, up to the root.")] = False,
) -> None:
    """Print an issuer's certificate as PEM: the root's is what clients trust.

    - `ca-server issuer export root > root.pem`
    - `ca-server issuer export issuing --chain > chain.pem`
    """
    key = run(_issuer(home, settings, name)).key
    for der in (key.certificate_der, *(key.chain if chain else ())):
        sys.stdout.write(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode())


async def _issuers(home: Path, overrides: list[str]) -> tuple[Issuer, ...]:
    place, settings = open_settings(home, overrides)
    async with open_stores(place, settings) as stores:
        return await stores.issuers.issuers()


async def _issuer(home: Path, overrides: list[str], name: str) -> Issuer:
    for issuer in await _issuers(home, overrides):
        if issuer.name == name:
            return issuer
    raise CaError(ErrorKind.NOT_FOUND, f"there is no issuer {name!r}; `ca-server issuer list` names them")


def _details(issuer: Issuer, urls: UrlPlan) -> dict[str, object]:
    der = issuer.key.certificate_der
    return {
        "sha256": sha256(der).hexdigest(),
        "spki_sha256": sha256(issuer.key.spki_der).hexdigest(),
        "key_id": x509.load_der_x509_certificate(der)
        .extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        .value.digest.hex(),
        "crl_url": urls.crl(issuer.key),
        "certificate_url": urls.ca_issuers(issuer.key),
        "ocsp_url": urls.ocsp() if issuer.kind is IssuerKind.ISSUING else None,
    }


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
        "serial": serial_text(certificate.serial_number),
        "not_before": certificate.not_valid_before_utc,
        "not_after": certificate.not_valid_after_utc,
    }
