"""The web server that http-01 validation asks: serves challenge files from a folder."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

CHALLENGES = ".well-known/acme-challenge"


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class ChallengeServer:
    """Serves `folder/TOKEN` as /.well-known/acme-challenge/TOKEN while used as a context manager."""

    def __init__(self, root: Path, port: int) -> None:
        self.port = port
        self.folder = root / CHALLENGES
        self.folder.mkdir(parents=True, exist_ok=True)
        self._handler = functools.partial(_Handler, directory=str(root))

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, token: str, text: str) -> None:
        (self.folder / token).write_text(text, "ascii")
