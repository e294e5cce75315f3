"""`ca-server acme account`: who asks for certificates."""

import sys
from typing import Annotated, Any

import typer

from ca_server.bootstrap.operator import open_admin
from ca_server.bootstrap.stores import open_stores
from ca_server.cli.acme_described import account_summary, events_of
from ca_server.cli.common import DEFAULT_HOME, HomeOption, JsonOption, SetOption, one_of, open_settings, run
from ca_server.cli.output import print_fields, print_json, print_table
from ca_server.core.ports import Done, RevokeAccount
from ca_server.domain.accounts import Account, AccountStatus
from ca_server.domain.errors import CaError, ErrorKind

app = typer.Typer(help="Look at ACME accounts, and revoke them.", no_args_is_help=True)
AccountArgument = Annotated[str, typer.Argument(metavar="ACCOUNT", help="The id that `acme account list` tells.")]
_STATUSES = tuple(status.value for status in AccountStatus)


@app.command("list")
def list_accounts(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    contact: Annotated[str | None, typer.Option(help="With this text in a contact.")] = None,
    status: Annotated[str | None, typer.Option(help=f"One of {', '.join(_STATUSES)}.")] = None,
    eab: Annotated[str | None, typer.Option(metavar="KID", help="Let in by this external account key.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")] = 100,
    after: Annotated[
        str | None, typer.Option(metavar="ID", help="The next page: what comes after this account.")
    ] = None,
    *,
    json: JsonOption = False,
) -> None:
    """List accounts, newest first.

    - `ca-server acme account list --contact @corp.example`
    """
    wanted = None if status is None else AccountStatus(one_of(status, _STATUSES, "--status"))

    async def work() -> tuple[Account, ...]:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            return await stores.acme.accounts(contact=contact, status=wanted, eab_kid=eab, limit=limit + 1, after=after)

    found = run(work())
    rows = [account_summary(account) for account in found[:limit]]
    if json:
        print_json(rows)
    else:
        columns = ("id", "status", "contacts", "eab_kid", "created_at", "key_thumbprint")
        print_table([column.replace("_", " ") for column in columns], [[row[key] for key in columns] for row in rows])
    if len(found) > limit:
        sys.stderr.write(f"there are more: --after {rows[-1]['id']}\n")


@app.command("show")
def show(
    account: AccountArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """Show an account with what the audit log has of it; its orders are with `acme order list --account`.

    - `ca-server acme account show ACCOUNT`
    """

    async def work() -> tuple[dict[str, Any], list[dict[str, object]]]:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            record = await stores.acme.account(account)
            if record is None:
                raise CaError(
                    ErrorKind.NOT_FOUND, f"there is no account {account!r}; `ca-server acme account list` has ids"
                )
            events = await events_of(stores.audit, [f"acme:{account}"])
            return {**account_summary(record.account), "orders": record.orders}, events

    fields, events = run(work())
    if json:
        print_json({**fields, "events": events})
        return
    print_fields(fields)
    sys.stdout.write("\naudit log\n")
    columns = ("leaf", "time", "type", "outcome", "rule", "reason", "actor", "source", "request_id")
    print_table(columns, [[event.get(column) for column in columns] for event in events])


@app.command("revoke")
def revoke(
    account: AccountArgument,
    reason: Annotated[str, typer.Option(help="Why; it is on record.", show_default=False)],
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """Let an account do nothing any more (RFC 8555 section 7.1.6); its certificates stay valid until they are revoked.

    - `ca-server acme account revoke ACCOUNT --reason "its owner left"`
    """

    async def work() -> Done:
        place, effective = open_settings(home, settings)
        async with open_admin(place, effective) as admin:
            return await admin.revoke_account(RevokeAccount(account, reason))

    if not run(work()).changed:
        raise CaError(
            ErrorKind.NOT_FOUND, f"there is no valid account {account!r}; `ca-server acme account list` has ids"
        )
    if json:
        print_json({"id": account, "status": AccountStatus.REVOKED.value})
    else:
        sys.stdout.write(f"revoked {account}\n")
