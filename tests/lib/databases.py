"""A PostgreSQL server of the tests' own, and fresh databases on it and on SQLite."""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from ca_server.store.backends import normalise_url

START_SECONDS = 60.0
_MUST_HAVE = "CA_SERVER_TESTS_NEED_TOOLS"
_USER = "postgres"


def run_apart(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run to the end on another thread: fixtures of a session are made while a test's event loop runs."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, coroutine).result()


def programs() -> Path:
    """The folder of PostgreSQL's server programs. Without it the test skips, or fails where it must be there."""
    on_path = shutil.which("postgres")
    found = [Path(on_path)] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)
    if found:
        return found[0].resolve().parent
    (pytest.fail if os.environ.get(_MUST_HAVE) else pytest.skip)("PostgreSQL's server is not installed")
    raise AssertionError("unreachable")


class PostgresServer:
    """A cluster in a folder of its own, on a port of its own, which can be stopped, killed and started again.

    As root it runs as the user `postgres` of Debian's package: the server refuses root. `durable` syncs to disk as in
    production; without, only a crash of the machine would lose anything, and the tests are faster. With `passwords`
    every role but the superuser needs its password.
    """

    def __init__(self, *, durable: bool = False, passwords: bool = False) -> None:
        self._programs = programs()
        self._durable = durable
        self._folder = Path(tempfile.mkdtemp(prefix="ca-pg-", dir="/tmp"))
        self._folder.chmod(0o755)
        self._process: subprocess.Popen[bytes] | None = None
        (self.port,) = free_ports(1)
        if os.getuid() == 0:
            account = pwd.getpwnam(_USER)
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync")
        if passwords:
            hosts = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
            Path(self._data, "pg_hba.conf").write_text(hosts)

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    @property
    def log(self) -> Path:
        """What the server wrote."""
        return self._folder / "log"

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def _argv(self, program: str, *arguments: str) -> list[str]:
        argv = [str(self._programs / program), *arguments]
        if os.getuid() == 0:
            argv = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--init-groups", "--", *argv]
        return argv

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            self._argv(program, *arguments), capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            pytest.fail(f"{program} exited {done.returncode}\n{done.stdout}\n{done.stderr}")

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "64MB",
            "fsync": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv("postgres", "-D", self._data, *settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            answer = subprocess.run(
                [self._programs / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port)],
                stdout=subprocess.DEVNULL,
                check=False,
            )
            if answer.returncode == 0:
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start\n{self.log.read_text('utf-8', 'replace')[-5000:]}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop: SIGINT disconnects everybody and saves; SIGQUIT, like SIGKILL, leaves recovery to the next start."""
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.wait(START_SECONDS)
        self._process = None

    def kill(self) -> None:
        """SIGKILL to the server and all its processes, as when its machine dies."""
        if self._process is None:
            return
        self._signal_all(signal.SIGKILL)
        self._process.wait(START_SECONDS)
        self._process = None

    def pause(self) -> None:
        """Let nothing be answered, as a machine does that hangs."""
        self._signal_all(signal.SIGSTOP)

    def go_on(self) -> None:
        """Undo `pause`."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def close(self) -> None:
        """Stop, and remove all it has."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)


async def administer(url: str, *statements: str) -> None:
    """Run statements outside a transaction."""
    engine = create_async_engine(normalise_url(url), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


async def empty(url: str) -> None:
    """Throw everybody out of a PostgreSQL database and delete all rows, as nobody but its superuser can."""
    await administer(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        "SET session_replication_role = replica",
        "DO $$ BEGIN EXECUTE (SELECT 'TRUNCATE ' || string_agg(quote_ident(tablename), ', ') || ' RESTART IDENTITY'"
        " FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'); END $$",
    )


def of_database(url: str, name: str) -> str:
    """The URL of another database of the same server."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def new_name() -> str:
    """A name for a database."""
    return f"ca_test_{uuid.uuid4().hex}"
