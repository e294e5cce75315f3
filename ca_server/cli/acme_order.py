"""`ca-server acme order`: what became of a request for a certificate, and why."""

import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from ca_server.bootstrap.stores import Stores, open_stores
from ca_server.cli.acme_described import events_of, objects_of, order_description, order_summary
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
from ca_server.domain.certificates import CertificateRecord
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.acme_records import MOST_LOOKED_AT, OrderPage, OrderRecord, OrderSearch
from protocols.acme.model import OrderStatus

app = typer.Typer(help="Look at orders, and at what they went through.", no_args_is_help=True)
_STATUSES = tuple(status.value for status in OrderStatus)
_EVENT_COLUMNS = ("leaf", "time", "type", "outcome", "rule", "reason", "actor", "source", "request_id")


@app.command("list")
def list_orders(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    account: Annotated[str | None, typer.Option(help="Of this account.")] = None,
    name: Annotated[str | None, typer.Option(help="With this name; `.corp.example` for all names under it.")] = None,
    status: Annotated[str | None, typer.Option(help=f"One of {', '.join(_STATUSES)}.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Created within this time, such as 2h or 14d.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")] = 100,
    after: Annotated[str | None, typer.Option(metavar="ID", help="The next page: what comes after this order.")] = None,
    *,
    json: JsonOption = False,
) -> None:
    """List orders, newest first.

    - `ca-server acme order list --name www.corp.example` finds the id of an order from a name.
    - `ca-server acme order list --status invalid --since 24h` shows what went wrong lately.
    """
    now = datetime.now(UTC)
    search = OrderSearch(
        account,
        None if name is None else name.lower(),
        None if status is None else OrderStatus(one_of(status, _STATUSES, "--status")),
        None if since is None else now - duration(since, "--since"),
    )

    async def work() -> OrderPage:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            return await stores.acme.orders(search, now, limit, after)

    page = run(work())
    rows = [order_summary(line.order, line.status.value) for line in page.lines]
    if json:
        print_json(rows)
    else:
        columns = ("id", "status", "names", "account", "profile", "created_at", "source")
        print_table([column.replace("_", " ") for column in columns], [[row[key] for key in columns] for row in rows])
    if page.more:
        looked = "" if len(rows) == limit else f" (looked at {MOST_LOOKED_AT} orders)"
        sys.stderr.write(f"there may be more{looked}: --after {page.last}\n")


@app.command("show")
def show(
    order: Annotated[str, typer.Argument(metavar="ORDER", help="The id that `acme order list` tells.")],
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """Show the life of an order: who asked for what, what each validation attempt saw, each denial, the outcome.

    The id is the end of the order's URL, which clients log.

    - `ca-server acme order show ORDER`
    - `ca-server acme order show ORDER --json`
    """
    now = datetime.now(UTC)

    async def work() -> dict[str, Any]:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            record = await stores.acme.order(order)
            if record is None:
                raise CaError(ErrorKind.NOT_FOUND, f"there is no order {order!r}; `ca-server acme order list` has ids")
            certificate = await _certificate_of(stores, record)
            serials = () if certificate is None else (certificate.serial,)
            events = await events_of(stores.audit, objects_of(record.order), serials)
            return order_description(record, certificate, events, now)

    told = run(work())
    if json:
        print_json(told)
    else:
        _print_order(told)


async def _certificate_of(stores: Stores, record: OrderRecord) -> CertificateRecord | None:
    issued = record.order.certificate
    if issued is None:
        return None
    found = await stores.inventory.search(issuer=issued.issuer, serial_prefix=issued.serial, limit=10)
    return next((each for each in found if each.serial == issued.serial), None)


def _print_order(told: dict[str, Any]) -> None:
    parts = ("account", "authorizations", "csr", "certificate", "events")
    print_fields({name: _plain(value) for name, value in told.items() if name not in parts})
    for part in ("account", "csr", "certificate"):
        if told[part] is not None:
            _heading(part)
            print_fields({name: _plain(value) for name, value in told[part].items()})
    _heading("authorizations")
    columns = ("name", "wildcard", "status", "expires_at", "reused", "id")
    print_table(
        [column.replace("_", " ") for column in columns],
        [[each[column] for column in columns] for each in told["authorizations"]],
    )
    _heading("challenges")
    print_table(
        ("name", "type", "status", "validated at", "problem or evidence"),
        [
            (
                each["name"],
                challenge["type"],
                challenge["status"],
                challenge["validated_at"],
                _plain(challenge["error"]) or _evidence(challenge["evidence"]),
            )
            for each in told["authorizations"]
            for challenge in each["challenges"]
        ],
    )
    _heading("validation attempts")
    print_table(
        ("name", "type", "no.", "started at", "seconds", "outcome", "front", "seen"),
        [row for each in told["authorizations"] for row in _attempt_rows(each)],
    )
    _heading("audit log")
    print_table(_EVENT_COLUMNS, [[event.get(column) for column in _EVENT_COLUMNS] for event in told["events"]])


def _attempt_rows(authorization: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            *(authorization["name"], challenge["type"], attempt["number"], attempt["started_at"], attempt["seconds"]),
            *(attempt["outcome"], attempt["front"], "; ".join(attempt["seen"]) or attempt["problem"]),
        )
        for challenge in authorization["challenges"]
        for attempt in challenge["attempts"]
    ]


def _evidence(evidence: dict[str, str] | None) -> str | None:
    return None if evidence is None else "; ".join(f"{name}: {value}" for name, value in evidence.items())


def _heading(text: str) -> None:
    sys.stdout.write(f"\n{text}\n")


def _plain(value: object) -> object:
    """A problem document in a few words."""
    if isinstance(value, dict):
        return f"{str(value.get('type', '')).rpartition(':')[2]}: {value.get('detail', '')}"
    return value
