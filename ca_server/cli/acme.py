"""`ca-server acme`: the clients of the ACME front-end, what they asked for, and what they are held to."""

from typing import TYPE_CHECKING, Annotated

import typer

from ca_server.bootstrap.profiles import load_profiles
from ca_server.cli import acme_account, acme_limits, acme_order, acme_simulate
from ca_server.cli.common import DEFAULT_HOME, HomeOption, JsonOption, SetOption, one_of, open_settings, run
from ca_server.cli.output import print_fields, print_json, print_table
from ca_server.domain.names import InvalidNameError, dns_identifier
from protocols.acme.urls import is_id

if TYPE_CHECKING:
    from ca_server.bootstrap.caa import CaaReport

app = typer.Typer(help="Look at ACME accounts and orders, and at what they are held to.", no_args_is_help=True)
app.add_typer(acme_order.app, name="order")
app.add_typer(acme_account.app, name="account")
app.add_typer(acme_limits.app, name="limits")
app.command("simulate")(acme_simulate.simulate_order)


@app.command("caa")
def caa(
    name: Annotated[str, typer.Argument(help="A DNS name; a wildcard as '*.example.com'.")],
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    account: Annotated[str, typer.Option(help="Id or URL of the account that asks, for accounturi.")] = "",
    profile: Annotated[str, typer.Option(help="The profile; the default one where left out.")] = "",
    *,
    json: JsonOption = False,
) -> None:
    """Look up what CAA records (RFC 8659) say of a name, and why; signs and records nothing.

    Exit code 0: a certificate for it would pass, by some challenge at least; 1: CAA forbids it, or there is no answer.
    What a profile with caa = "off" makes of it is nothing.

    - `ca-server acme caa www.corp.example`
    - `ca-server acme caa '*.corp.example' --account 0198c1f2a7 --profile short --json`
    """
    from ca_server.bootstrap.caa import account_url, caa_report, system_resolver  # noqa: PLC0415 - a third of a start

    place, effective = open_settings(home, settings)
    profiles = load_profiles(place, effective)
    chosen = profiles[one_of(profile or effective.policy.default_profile, sorted(profiles), "--profile")]
    try:
        identifier = dns_identifier(name.removesuffix("."))
    except InvalidNameError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from None
    if account and "://" not in account:
        if not is_id(account):
            raise typer.BadParameter("write an account's id or URL", param_hint="--account")
        account = account_url(effective, account)
    report = run(caa_report(effective, chosen, identifier, account, system_resolver(effective)))
    if json:
        print_json(report)
    else:
        _print_caa(report)
    if not any(each.allowed for each in report.methods):
        raise typer.Exit(1)


def _print_caa(report: "CaaReport") -> None:
    """The report as tables: what was found, then a verdict for each challenge, or one where all are the same."""
    print_fields(
        {
            "name": report.name,
            "profile": f"{report.profile} (caa = {report.mode.value})",
            "this CA": report.identities or "has no acme.caa_identities",
            "account": report.account or "any",
            "records at": report.found_at or "none found",
            "records": report.records,
            "authenticated": report.authenticated,
            "would let pass": report.lets_pass,
        }
    )
    verdicts = {(each.allowed, each.reason) for each in report.methods}
    each_method = [(each.method, each.allowed, each.reason) for each in report.methods]
    rows = each_method if len(verdicts) > 1 else [("any", *verdict) for verdict in verdicts]
    print_table(["challenge", "CAA", "why"], [[method, "allows" if ok else "FORBIDS", why] for method, ok, why in rows])
