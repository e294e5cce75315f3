"""HTTP views of the log: checkpoint, tiles and entry bundles, for peers in the configured networks only."""

from aiohttp import hdrs, web

from ca_server.core.audit.tiles import LogReader, Tiles
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.web.options import LOOPBACK, Network, address_in
from protocols.log.wire import ENTRIES, FULL, MalformedPathError, TilePath, parse_tile_path

PREFIX = "/log"
_NO_STORE = {hdrs.CACHE_CONTROL: "no-store"}
# Private: entries have names in them, which a shared cache would give to anybody.
_FULL = {hdrs.CACHE_CONTROL: "private, max-age=31536000, immutable"}
_PARTIAL = {hdrs.CACHE_CONTROL: "private, max-age=60"}


class LogFrontEnd:
    """The log's read interface (C2SP tlog-tiles) under `/log`.

    Behind a proxy every peer is the proxy: restrict there.
    """

    def __init__(self, reader: LogReader, networks: tuple[Network, ...] = LOOPBACK) -> None:
        self._tiles = Tiles(reader)
        self._networks = networks

    def register(self, application: web.Application) -> None:
        """Add the routes."""
        application.router.add_get(f"{PREFIX}/checkpoint", self.checkpoint)
        application.router.add_get(PREFIX + "/tile/{path:.+}", self.tile)

    async def checkpoint(self, request: web.Request) -> web.Response:
        """The last signed checkpoint."""
        self._check_peer(request)
        try:
            note = await self._tiles.checkpoint()
        except CaError as error:
            return _not_found(error)
        headers = {hdrs.CONTENT_TYPE: "text/plain; charset=utf-8", **_NO_STORE}
        return web.Response(body=note, headers=headers)

    async def tile(self, request: web.Request) -> web.Response:
        """A tile of hashes, or a bundle of entries."""
        self._check_peer(request)
        try:
            path = parse_tile_path(request.match_info["path"])
        except MalformedPathError:
            return web.Response(status=404, text="there is no such tile\n", headers=_NO_STORE)
        try:
            body = await self._read(path)
        except CaError as error:
            return _not_found(error)
        response = web.Response(
            body=body, content_type="application/octet-stream", headers=_FULL if path.width == FULL else _PARTIAL
        )
        if path.level == ENTRIES:
            response.enable_compression()
        return response

    async def _read(self, path: TilePath) -> bytes:
        if path.level == ENTRIES:
            return await self._tiles.entries(path.index, path.width)
        return await self._tiles.tile(path.level, path.index, path.width)

    def _check_peer(self, request: web.Request) -> None:
        if not address_in(request.remote, self._networks):
            raise web.HTTPForbidden(text="403: the log is for the configured networks\n", headers=_NO_STORE)


def _not_found(error: CaError) -> web.Response:
    """404 for what is not there (yet); other errors go on."""
    if error.kind is not ErrorKind.NOT_FOUND:
        raise error
    return web.Response(status=404, text=f"{error.detail}\n", headers=_NO_STORE)
