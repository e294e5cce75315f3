"""Creates the issuers that the configuration names and that are not there yet."""

from ca_server.bootstrap.core import CoreRuntime
from ca_server.bootstrap.operator import is_running
from ca_server.bootstrap.users import become_core, resolve_users
from ca_server.core.issuers import IssuerPlan
from ca_server.core.staging import staging_name
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.settings import Home, Settings


def check_stopped(home: Home) -> None:
    """Check that no server runs, which would not know of what is to be made. CONFLICT."""
    if is_running(home):
        raise CaError(ErrorKind.CONFLICT, "the server runs; stop it first")


async def create_missing_issuers(home: Home, settings: Settings) -> tuple[str, ...]:
    """Create, in a home whose server is stopped, what is missing; the names, parents first. CONFLICT."""
    check_stopped(home)
    become_core(resolve_users(settings.processes, str(home.configuration)))
    async with CoreRuntime.open(home, settings, process="cli") as core:
        core.gate.check()
        made = await create_issuers(core)
        await core.settle_in()
        return made


async def create_issuers(core: CoreRuntime) -> tuple[str, ...]:
    """Create what is missing, each with its first CRL; the names, parents first."""
    settings, made = core.settings, []
    existing = {issuer.name for issuer in core.issuers.all()}
    for name in _parents_first(settings):
        if name in existing:
            continue
        issuer = settings.issuers[name]
        staging = settings.is_staging_issuer(name)
        await core.ceremony.create(
            IssuerPlan(
                name=name,
                parent=issuer.parent or None,
                algorithm=issuer.key,
                common_name=staging_name(issuer.common_name) if staging else issuer.common_name,
                organization=issuer.organization,
                country=issuer.country,
                days=issuer.days,
                path_length=issuer.path_length,
            )
        )
        await core.issuers_changed()
        # Before it signs anything else: whoever looks at a certificate finds a list.
        await core.publisher.publish(name)
        made.append(name)
    return tuple(made)


def _parents_first(settings: Settings) -> list[str]:
    ordered: list[str] = []

    def visit(name: str) -> None:
        parent = settings.issuers[name].parent
        if parent and parent not in ordered:
            visit(parent)
        if name not in ordered:
            ordered.append(name)

    for name in settings.issuers:
        visit(name)
    return ordered
