"""`ca-server eab`: external account keys, which let ACME accounts in, and what is bound to them."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from ca_server.bootstrap.operator import open_admin
from ca_server.bootstrap.stores import open_stores
from ca_server.cli.common import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    SetOption,
    duration,
    open_settings,
    run,
)
from ca_server.cli.output import print_fields, print_json, print_table
from ca_server.core.ports import CreatedEab, CreateEab, DisableEab, Done, UpdateEab
from ca_server.domain.bindings import EabKey, EabPolicy
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.eab_quota import EabUsage

app = typer.Typer(
    help="Create, list, change and disable external account keys (RFC 8555 section 7.3.4).", no_args_is_help=True
)
NONE = "none"
"""What takes something off a key again."""
_LIVE = " live"

KidArgument = Annotated[str, typer.Argument(help="The key's id.")]
ProfileOption = Annotated[
    list[str], typer.Option("--profile", help="Good for this profile's directory only; repeatable.", show_default=False)
]
NamesOption = Annotated[
    list[str],
    typer.Option(
        "--names",
        metavar="PATTERN",
        help="For such names alone: host.corp.example, *.corp.example, 10.0.0.0/8; repeatable.",
        show_default=False,
    ),
]
QuotaOption = Annotated[
    list[str],
    typer.Option(
        "--quota",
        metavar="QUOTA",
        help="So many certificates of all its accounts: '20 live' or '100 per 7d'; both by giving it twice.",
        show_default=False,
    ),
]
OwnerOption = Annotated[str | None, typer.Option(help="Who gets it: a person, a team, a ticket.")]
ExpiresOption = Annotated[
    str | None, typer.Option(metavar="TIME", help="Lets accounts in for so long, such as 7d; they stay.")
]
MaxUsesOption = Annotated[
    str | None, typer.Option(metavar="NUMBER", help="A reusable key: lets in so many accounts in all.")
]


@app.command("create")
def create(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    profile: ProfileOption = [],  # noqa: B006
    names: NamesOption = [],  # noqa: B006
    quota: QuotaOption = [],  # noqa: B006
    owner: OwnerOption = None,
    expires: ExpiresOption = None,
    max_uses: MaxUsesOption = None,
    *,
    reusable: Annotated[bool, typer.Option("--reusable", help="Lets in any number of accounts, not just one.")] = False,
    json: JsonOption = False,
) -> None:
    """Make a key and print it with its HMAC secret: this once, and never again.

    - `ca-server eab create --owner "web team" --expires 7d --names '*.web.corp.example' --quota '20 live'`
    - `ca-server eab create --profile short --reusable --max-uses 5 --quota '100 per 7d' --json`
    """
    lifetime = None if expires is None else duration(expires, "--expires").total_seconds()
    policy = _policy(EabPolicy(), profile, names, quota)
    wanted = CreateEab(policy, owner, reusable, lifetime, _uses(max_uses))

    async def work() -> CreatedEab:
        place, effective = open_settings(home, settings)
        async with open_admin(place, effective) as admin:
            return await admin.create_eab(wanted)

    made = run(work())
    if json:
        print_json({"hmac_key": made.hmac_key, **_summary(made.key)})
        return
    sys.stdout.write(f"kid:      {made.key.kid}\nhmac key: {made.hmac_key}\n")
    sys.stdout.write(f"certbot:  --eab-kid={made.key.kid} --eab-hmac-key={made.hmac_key}\n")


@app.command("list")
def list_keys(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """List the keys, newest first; never their secrets.

    - `ca-server eab list`
    """

    async def work() -> tuple[EabKey, ...]:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            return await stores.eab.eab_keys()

    rows = [_summary(key) for key in run(work())]
    if json:
        print_json(rows)
        return
    columns = ("kid", "status", "owner", "profiles", "names", "quota", "uses", "max_uses", "expires_at", "last_used_at")
    print_table([column.replace("_", " ") for column in columns], [[row[column] for column in columns] for row in rows])


@app.command("show")
def show(
    kid: KidArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    json: JsonOption = False,
) -> None:
    """Show what is bound to a key, and what its accounts have used of it.

    - `ca-server eab show KID`
    """

    async def work() -> tuple[EabKey, EabUsage]:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            key = await stores.eab.bound_key(kid)
            if key is None:
                raise _unknown(kid)
            return key, await stores.eab.usage(kid, datetime.now(UTC))

    key, used = run(work())
    told = _summary(key) | {
        "accounts": used.accounts,
        "certificates": used.issued,
        "certificates_live": used.live,
        "last_certificate_at": used.last_issued_at,
    }
    if json:
        print_json(told)
    else:
        print_fields(
            told | {"accounts": [f"{count} {status}" for status, count in used.accounts.items()] or "none yet"}
        )


@app.command("update")
def update(
    kid: KidArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    profile: ProfileOption = [],  # noqa: B006
    names: NamesOption = [],  # noqa: B006
    quota: QuotaOption = [],  # noqa: B006
    owner: OwnerOption = None,
    expires: ExpiresOption = None,
    max_uses: MaxUsesOption = None,
    *,
    json: JsonOption = False,
) -> None:
    """Change what is bound to a key, for the next order of each of its accounts; `none` takes it off.

    What is given replaces what there was: all profiles, all names, all quotas.

    - `ca-server eab update KID --names '*.web.corp.example' --names 10.1.0.0/16`
    - `ca-server eab update KID --quota none --expires none`
    """
    if not (profile or names or quota) and (owner, expires, max_uses) == (None, None, None):
        raise typer.BadParameter("say what is to be changed, such as --quota '20 live'")

    async def work() -> EabKey:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            key = await stores.eab.bound_key(kid)
        if key is None:
            raise _unknown(kid)
        async with open_admin(place, effective) as admin:
            return await admin.update_eab(
                UpdateEab(
                    kid,
                    _policy(key.policy, profile, names, quota),
                    key.owner if owner is None else None if owner == NONE else owner,
                    key.expires_at if expires is None else _end(expires),
                    key.max_uses if max_uses is None else _uses(max_uses),
                )
            )

    changed = run(work())
    if json:
        print_json(_summary(changed))
    else:
        sys.stdout.write(f"changed {kid}\n")


@app.command("disable")
def disable(
    kid: KidArgument,
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    *,
    and_accounts: Annotated[
        bool, typer.Option("--and-accounts", help="Revoke the accounts that it let in, for good.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Disable a key: it lets nobody in any more. Accounts that it let in stay, and what is bound to it holds for them.

    - `ca-server eab disable KID`
    - `ca-server eab disable KID --and-accounts`
    """

    async def work() -> Done:
        place, effective = open_settings(home, settings)
        async with open_stores(place, effective) as stores:
            known = await stores.eab.bound_key(kid)
        if known is None:
            raise _unknown(kid)
        async with open_admin(place, effective) as admin:
            return await admin.disable_eab(DisableEab(kid, and_accounts))

    if not run(work()).changed:
        raise CaError(ErrorKind.CONFLICT, f"the key {kid!r} was disabled before")
    if json:
        print_json({"kid": kid, "status": "disabled", "accounts_revoked": and_accounts})
    else:
        sys.stdout.write(f"disabled {kid}{' and revoked its accounts' if and_accounts else ''}\n")


def _unknown(kid: str) -> CaError:
    return CaError(ErrorKind.NOT_FOUND, f"there is no key {kid!r}; `ca-server eab list` names them")


def _policy(standing: EabPolicy, profiles: Sequence[str], names: Sequence[str], quotas: Sequence[str]) -> EabPolicy:
    """What stands, with all of a kind replaced that is given."""
    if profiles:
        standing = replace(standing, profiles=_all_of(profiles))
    if names:
        standing = replace(standing, names=_all_of(names))
    if quotas:
        standing = replace(standing, live=None, rate="")
    for quota in _all_of(quotas):
        if quota.endswith(_LIVE):
            standing = replace(standing, live=_number(quota.removesuffix(_LIVE), "--quota"))
        else:
            standing = replace(standing, rate=quota)
    return standing


def _all_of(texts: Sequence[str]) -> tuple[str, ...]:
    return () if list(texts) == [NONE] else tuple(dict.fromkeys(texts))


def _end(text: str) -> datetime | None:
    return None if text == NONE else datetime.now(UTC) + duration(text, "--expires")


def _uses(text: str | None) -> int | None:
    return None if text in {None, NONE} else _number(str(text), "--max-uses")


def _number(text: str, option: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1_000_000:  # noqa: PLR2004
        raise typer.BadParameter("write a number from 1 to 999999", param_hint=option)
    return int(text)


def _status(key: EabKey) -> str:
    if key.disabled_at is not None:
        return "disabled"
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        return "expired"
    return "used" if key.is_used_up else "usable"


def _summary(key: EabKey) -> dict[str, Any]:
    policy = key.policy
    live = () if policy.live is None else (f"{policy.live}{_LIVE}",)
    return {
        "kid": key.kid,
        "status": _status(key),
        "owner": key.owner,
        "profiles": policy.profiles,
        "names": policy.names,
        "quota": (*live, *filter(None, (policy.rate,))),
        "reusable": key.reusable,
        "uses": key.uses,
        "max_uses": key.max_uses if key.reusable else 1,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "disabled_at": key.disabled_at,
        "accounts_revoked_at": key.accounts_revoked_at,
        "last_used_at": key.last_used_at,
    }
