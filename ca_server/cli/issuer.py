"""`ca-server issuer`: the certificate authorities of this home."""

import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_server.bootstrap.operator import open_admin
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
from ca_server.cli.output import print_fields, print_json, print_table, text
from ca_server.core.chains import chains_of
from ca_server.core.issuers import UrlPlan
from ca_server.core.ports import CrossCertificate, ImportCrossCertificate, IssuerCsr, SignIssuerCsr
from ca_server.domain.certificates import CaCertificate, Issuer, IssuerKind, serial_text
from ca_server.domain.errors import CaError, ErrorKind

app = typer.Typer(
    help="List, show, export and create the issuers; import CA certificates.",
    no_args_is_help=True,
)
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
    from ca_server.bootstrap.issuers import check_stopped, create_missing_issuers  # noqa: PLC0415 - a tenth of a start

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
    """Show one issuer with its fingerprint, the URLs that its certificates carry, and the roots of its chains.

    - `ca-server issuer show root`
    """
    effective = open_settings(home, settings)[1]
    issuer = run(_issuer(home, settings, name))
    chains = chains_of(
        issuer.key.id, run(_ca_certificates(home, settings)), datetime.now(UTC), effective.acme.preferred_chains
    )
    summary = {
        **_summary(issuer),
        **_details(issuer, UrlPlan(effective.http_url)),
        "chains": [chain.root for chain in chains],
    }
    if json:
        print_json(summary)
    else:
        print_fields(summary)


@app.command("csr")
def csr(name: NameArgument, home: HomeOption = DEFAULT_HOME, settings: SetOption = []) -> None:  # noqa: B006
    """Print a CSR for an issuer's key as PEM, for another CA to certify it too: docs/chains.md.

    - `ca-server issuer csr root > root.csr`
    """

    async def work() -> IssuerCsr:
        place, effective = open_settings(home, settings)
        async with open_admin(place, effective) as admin:
            return await admin.sign_issuer_csr(SignIssuerCsr(name))

    request = x509.load_der_x509_csr(run(work()).der)
    sys.stdout.write(request.public_bytes(Encoding.PEM).decode())


@app.command("import")
def import_certificate(
    name: NameArgument,
    file: Annotated[
        Path, typer.Argument(help="PEM: the certificate first, then those above it up to the root.", show_default=False)
    ],
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """Add a CA certificate to a key of an issuer, signed by another CA or renewed: another chain for ACME's clients.

    Nothing is signed under it, and what certificates point at stays. What is above it may be left out of the file where
    an issuer of this server signed it.

    - `ca-server issuer import issuing cross-signed.pem`

    - `ca-server issuer import root root-by-the-old-root.pem`
    """
    first, *above = _read_certificates(file)

    async def work() -> CrossCertificate:
        place, effective = open_settings(home, settings)
        async with open_admin(place, effective) as admin:
            return await admin.import_cross_certificate(ImportCrossCertificate(name, first, tuple(above)))

    added = run(work())
    if json:
        print_json(added)
    else:
        sys.stdout.write(
            f"imported for key generation {added.generation} of {added.issuer}: {added.sha256}, signed by"
            f" {added.signed_by!r}, until {text(added.not_after)}\n"
        )


def _read_certificates(file: Path) -> list[bytes]:
    try:
        found = x509.load_pem_x509_certificates(file.read_bytes())
    except ValueError as error:
        raise CaError(ErrorKind.MALFORMED, f"{file} has no certificates in PEM ({error})") from None
    return [each.public_bytes(Encoding.DER) for each in found]


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


async def _ca_certificates(home: Path, overrides: list[str]) -> tuple[CaCertificate, ...]:
    place, settings = open_settings(home, overrides)
    async with open_stores(place, settings) as stores:
        return await stores.issuers.ca_certificates()


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
