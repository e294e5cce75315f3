"""A bare aiohttp server over TLS: `bare.py PORT CERTIFICATE KEY`."""

import asyncio
import ssl
import sys

import uvloop
from aiohttp import web


async def _answer(_request: web.Request) -> web.Response:
    return web.Response(text="ok")


async def main() -> None:
    """Serve until SIGTERM."""
    application = web.Application()
    application.router.add_route("*", "/{any:.*}", _answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[1]), ssl_context=context).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(main())
