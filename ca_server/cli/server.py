"""`ca-server init` and `ca-server serve`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ca_server.bootstrap.initialise import InitialChoices, initialise, is_initialised
from ca_server.bootstrap.joining import join_home
from ca_server.bootstrap.serve import serve_home
from ca_server.cli.common import DEFAULT_HOME, HomeOption, SetOption, home_at, open_settings, run
from ca_server.domain.errors import ConfigurationError

AllowDomain = Annotated[
    list[str],
    typer.Option(
        "--allow-domain", metavar="DOMAIN", help="Allow names under this domain too; repeatable.", show_default=False
    ),
]
HttpsPort = Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the TLS listener (8443).")]
HttpPort = Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the plain listener (8080).")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("init")(init)
    app.command("serve")(serve)
    app.command("process", hidden=True)(process)


def init(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    https_port: HttpsPort = None,
    http_port: HttpPort = None,
    external_host: Annotated[
        str | None, typer.Option(help="Host name in every URL that clients and certificates are given.")
    ] = None,
    allow_domain: AllowDomain = [],  # noqa: B006
    pin_file: Annotated[
        Path | None, typer.Option(help="File with the token's user PIN; without it, CA_SERVER_PIN or a strong one.")
    ] = None,
    node: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of this node among those that share a database (node1).")
    ] = None,
    join: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Be another node of the CA whose home, or its copy, is here; with --node."),
    ] = None,
    *,
    if_missing: Annotated[bool, typer.Option("--if-missing", help="Do nothing where the home exists.")] = False,
    staging: Annotated[
        bool, typer.Option("--staging", help="A home for tests: the issuers' names begin with STAGING.")
    ] = False,
    staging_directory: Annotated[
        bool,
        typer.Option("--staging-directory", help="Beside the real CA one for clients to test with (docs/staging.md)."),
    ] = False,
) -> None:
    """Make a home: token, keys, root and issuing CA, database, configuration and profiles.

    PINs come from a file or the environment variable CA_SERVER_PIN, never from an argument; where none is given a
    strong one is made and kept in core/pin, readable by the owner alone. Options are written to ca-server.toml;
    --set is for this run alone.

    With --join the home is that of another node of a CA that is there: it shares the PostgreSQL database, takes
    configuration, profiles, PIN and (unless an HSM has the keys) the token from the home that is named, and keeps its
    URLs. See docs/nodes.md.

    - `ca-server init --external-host ca.corp.example --allow-domain corp.example`
    - `ca-server init --home /var/lib/ca-server --pin-file /run/secrets/pin`
    - `ca-server init --staging-directory`
    - `ca-server init --home /var/lib/ca-server --join /var/lib/node1 --node node2`
    """
    place = home_at(home)
    if if_missing and is_initialised(place):
        return
    choices = InitialChoices(
        https_port,
        http_port,
        external_host,
        tuple(allow_domain),
        pin_file,
        staging=staging,
        staging_directory=staging_directory,
        node=node,
    )
    if staging and staging_directory:
        raise typer.BadParameter("all of a staging home is for tests", param_hint="--staging-directory")
    if join is None:
        run(initialise(place, choices, settings))
    else:
        if node is None:
            raise typer.BadParameter("give the new node a name of its own", param_hint="--node")
        if external_host is not None or allow_domain or staging or staging_directory:
            raise typer.BadParameter("the home that is joined says this already", param_hint="--join")
        run(join_home(place, home_at(join), node, choices, settings))
    sys.stdout.write(f"initialised {place.path}; next: ca-server serve --home {place.path}\n")


def serve(
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    https_port: HttpsPort = None,
    http_port: HttpPort = None,
    fronts: Annotated[int | None, typer.Option(min=1, max=64, help="Number of front processes.")] = None,
    allow_domain: AllowDomain = [],  # noqa: B006
    *,
    single_process: Annotated[
        bool, typer.Option("--single-process", help="Core and front in one process, without separation.")
    ] = False,
    unsafe_skip_validation: Annotated[
        bool,
        typer.Option("--unsafe-skip-validation", help="Staging homes only: challenges are valid without a look."),
    ] = False,
) -> None:
    """Serve this home until SIGTERM; SIGHUP reads the profiles again.

    Prints where directory, CRL, OCSP and root certificate are, and a certbot line to copy.

    - `ca-server serve`
    - `ca-server serve --fronts 2 --set log.format=console`
    """
    overrides = [*settings]
    if https_port is not None:
        overrides.append(f"listeners.https.port={https_port}")
    if http_port is not None:
        overrides.append(f"listeners.http.port={http_port}")
    if fronts is not None:
        overrides.append(f"processes.fronts={fronts}")
    if unsafe_skip_validation:
        overrides.append("acme.unsafe_skip_validation=true")
    place, effective = open_settings(home, overrides)
    if allow_domain:
        domains = ",".join((*effective.policy.extra_domains, *allow_domain))
        overrides.append(f"policy.extra_domains={domains}")
        place, effective = open_settings(home, overrides)
    if not is_initialised(place):
        raise ConfigurationError(str(place.path), "home", None, "is not initialised; run 'ca-server init' first")
    if single_process:
        from ca_server.bootstrap.process import run_single  # noqa: PLC0415 - half of every command's start

        sys.exit(run_single(place, effective))
    sys.exit(serve_home(place, effective, overrides))


def process(
    role: Annotated[str, typer.Argument(help="core or front")],
    home: HomeOption = DEFAULT_HOME,
    settings: SetOption = [],  # noqa: B006
    index: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Run one process of a server: for the supervisor alone."""
    from ca_server.bootstrap.process import run_core, run_front  # noqa: PLC0415 - half of every command's start

    place, effective = open_settings(home, settings)
    if role == "core":
        sys.exit(run_core(place, effective))
    if role == "front":
        sys.exit(run_front(place, effective, index))
    raise typer.BadParameter(f"no such process, pid {os.getpid()}", param_hint="role")
