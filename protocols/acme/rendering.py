"""Problem documents as HTTP responses."""

import msgspec
from aiohttp import web

from protocols.acme.problems import CONTENT_TYPE, Problem


def response(problem: Problem) -> web.Response:
    """Render a problem document; nonce and links are for the caller to add."""
    return web.Response(
        status=problem.status,
        body=msgspec.json.encode(problem.json()),
        content_type=CONTENT_TYPE,
        headers=problem.headers,
    )
