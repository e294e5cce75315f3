"""What `ca-server doctor` looks at."""

from ca_server.bootstrap.checkup.files import disks, permissions, tls_certificate
from ca_server.bootstrap.checkup.model import Check, Verdict, bad
from ca_server.bootstrap.checkup.network import caa
from ca_server.bootstrap.checkup.records import anchor, clock, crls, responders, roles, schema
from ca_server.bootstrap.checkup.services import descriptors, listeners, server, token
from ca_server.bootstrap.stores import open_stores
from ca_server.domain.errors import CaError, ConfigurationError
from ca_server.settings import Home, Settings

__all__ = ["Check", "Verdict", "check_up"]


async def check_up(home: Home, settings: Settings, *, minimum_free: int) -> list[Check]:
    """Look at everything; what can't be looked at is a finding, not an exception. Ends as the core's user."""
    running = await server(home)
    checks = [*permissions(home, settings), *disks(home, settings, minimum_free), running]
    if running.verdict is Verdict.GOOD:
        checks += listeners(settings)
    checks.append(descriptors(home, settings))
    checks += tls_certificate(home, settings)
    checks += [check async for check in caa(home, settings)]
    try:
        checks.append(await schema(home, settings))
        async with open_stores(home, settings) as stores:
            checks += [check async for check in roles(settings, stores)]
            checks += [await clock(stores), await anchor(home, settings, stores)]
            checks += [check async for check in crls(stores)]
            checks += [check async for check in responders(stores)]
            # The last, since it gives root up for the core's user.
            checks += await token(home, settings, stores)
    except PermissionError:
        # Bad, not a warning: a check that sees nothing must not look like one that found nothing.
        checks.append(bad("records", "not visible to this user; run as root"))
    except (CaError, ConfigurationError) as error:
        checks.append(bad("records", str(error)))
    return checks
