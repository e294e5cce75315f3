"""`ca-server acme simulate`: what policy would decide, and why."""

from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_server.cli.common import DEFAULT_HOME, HomeOption, JsonOption, SetOption, open_settings, run
from ca_server.cli.output import print_json, print_table
from ca_server.domain.errors import CaError, ErrorKind


def simulate_order(
    name: Annotated[
        list[str],
        typer.Option(
            help="A name to ask for: a DNS name, an address, or TYPE:VALUE; may be repeated.", show_default=False
        ),
    ],
    account: Annotated[str, typer.Option(help="The account that asks, by its id.", show_default=False)],
    profile: Annotated[str | None, typer.Option(help="The profile; the default one where left out.")] = None,
    csr: Annotated[
        Path | None, typer.Option(help="File with the CSR, PEM or DER; without it one is made up.", show_default=False)
    ] = None,
    challenge: Annotated[
        str, typer.Option(metavar="TYPE", help="By which control of the names is shown; else by the first offered.")
    ] = "",
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """Say what would be decided on an order, and why: nothing is signed, recorded or taken from any limit.

    The code that decides on real orders goes through account, profile, names, external account key, limits,
    authorizations, CSR, key and CAA records, and builds and lints the certificate. Validations count as successful.
    Exit code 0: it would be issued; 1: it would be denied, or held for approval.

    - `ca-server acme simulate --account ACCOUNT --name www.home.arpa`
    - `ca-server acme simulate --account ACCOUNT --name 10.0.0.7 --profile short --json`
    """
    from ca_server.bootstrap.simulation import Question, Verdict, simulate  # noqa: PLC0415 - half of every command's start

    place, effective = open_settings(home, settings)
    chosen = profile or effective.policy.default_profile
    question = Question(account, chosen, tuple(name), None if csr is None else _csr_der(csr), challenge)
    steps = run(simulate(place, effective, question))
    if json:
        print_json(steps)
    else:
        print_table(
            ("step", "verdict", "rule", "detail"),
            [(each.name, each.verdict.value, each.rule, each.detail) for each in steps],
        )
    if any(each.verdict is not Verdict.ALLOW for each in steps):
        raise typer.Exit(1)


def _csr_der(file: Path) -> bytes:
    data = file.read_bytes()
    if not data.lstrip().startswith(b"-----"):
        return data
    try:
        return x509.load_pem_x509_csr(data).public_bytes(Encoding.DER)
    except ValueError:
        raise CaError(ErrorKind.MALFORMED, f"{file} is no CSR in PEM") from None
