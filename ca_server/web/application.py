"""The application factory: one aiohttp application for each listener, of the front-ends that it serves."""

from collections.abc import Callable, Sequence

from aiohttp import web

from ca_server import telemetry
from ca_server.web.middleware import STATE, ListenerState, finish_headers, limit, observe
from ca_server.web.options import WebOptions

Registrar = Callable[[web.Application], None]
"""Adds a front-end's routes, and what it starts and stops with the application."""


def create_application(name: str, options: WebOptions, registrars: Sequence[Registrar]) -> web.Application:
    """Make the application of the listener `name`.

    Paths are matched as they are, without merging or unescaping (`request.raw_path` is what the client sent): OCSP by
    GET (RFC 6960 appendix A.1) has base64 with slashes in its path.
    """
    application = web.Application(middlewares=(observe, limit), client_max_size=options.max_body)
    application[STATE] = ListenerState(name, options, telemetry.HTTP_IN_FLIGHT.labels(name))
    application.on_response_prepare.append(finish_headers)
    for register in registrars:
        register(application)
    return application
