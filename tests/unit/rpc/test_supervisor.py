"""The supervisor with real children: order, restart, drain, failing start, reload, the end of the lifeline."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ports import free_ports

from ca_server.domain.errors import ConfigurationError
from ca_server.rpc.children import LIFELINE_FD, READY_FD, notify_ready, notify_systemd, watch_lifeline
from ca_server.rpc.listeners import (
    LISTENER_FDS,
    ListenerSpec,
    bind_listeners,
    inherited_sockets,
    listener_environment,
)

ROOT = Path(__file__).resolve().parents[3]

DRIVER = """
import asyncio, json, os, socket, sys
sys.path.insert(0, {root!r})
from ca_server.rpc.supervisor import Backoff, ChildSpec, SupervisorPlan, supervise
from ca_server.rpc.listeners import ListenerSpec, bind_listeners
from ca_server.telemetry import configure_logging
configure_logging()
plan = json.loads(sys.argv[1])
listeners = bind_listeners([ListenerSpec("http", "127.0.0.1", 0)])
print("port", listeners["http"][0].getsockname()[1], flush=True)
def child(name):
    env = dict(os.environ, CHILD=name, FOLDER=plan["folder"])
    return ChildSpec(name, [sys.executable, "-c", plan["child"]], env, listeners=("http",) if name != "core" else ())
options = dict(start_seconds=plan.get("start", 10), drain_seconds=plan.get("drain", 10))
options["backoff"] = Backoff(first=0.02)
loops = {{"asyncio": asyncio.new_event_loop}}
if plan.get("loop") == "uvloop":
    import uvloop
    loops["uvloop"] = uvloop.new_event_loop
with asyncio.Runner(loop_factory=loops[plan.get("loop", "asyncio")]) as runner:
    sys.exit(runner.run(supervise(SupervisorPlan(
        child("core"), (child("front-1"), child("front-2")), listeners, announcement="all ready", **options))))
"""

# Children are as small as can be: they import nothing of the server, so that tests stay quick.
CHILD = """
import os, select, signal, sys, time
name, folder = os.environ["CHILD"], os.environ["FOLDER"]
def say(what):
    with open(folder + "/log", "a") as log:
        log.write(name + " " + what + " " + str(os.getpid()) + chr(10))
def on_term(*_):
    say("term")
    time.sleep(SLOW.get(name, 0))
    say("end")
    sys.exit(0)
SLOW = {}
signal.signal(signal.SIGTERM, on_term)
signal.signal(signal.SIGHUP, lambda *_: say("hup"))
BEFORE
say("ready")
fd = int(os.environ["CA_SERVER_READY_FD"])
os.write(fd, b"1"); os.close(fd)
while not os.read(int(os.environ["CA_SERVER_LIFELINE_FD"]), 1):
    say("orphan")
    sys.exit(3)
"""


class Supervised:
    def __init__(self, folder: Path, *, before: str = "", slow: str = "{}", **options: object) -> None:
        self.log_path = folder / "log"
        self.log_path.touch()
        child = CHILD.replace("BEFORE", before).replace("SLOW = {}", f"SLOW = {slow}")
        plan = {"folder": str(folder), "child": child} | options
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CA_SERVER_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER.format(root=str(ROOT)), json.dumps(plan)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"NOTIFY_SOCKET": str(folder / "notify")},
        )

    def log(self) -> list[tuple[str, str, int]]:
        lines = [line.split() for line in self.log_path.read_text().splitlines()]
        return [(name, what, int(pid)) for name, what, pid in lines]

    def said(self, what: str) -> list[str]:
        return [name for name, said, _ in self.log() if said == what]

    def pid(self, name: str) -> int:
        return [pid for named, what, pid in self.log() if (named, what) == (name, "ready")][-1]

    def until(self, condition) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, (self.log(), self.process.poll())
            time.sleep(0.01)

    def until_ready(self) -> int:
        assert self.process.stdout is not None
        port = int(self.process.stdout.readline().split()[1])
        assert self.process.stdout.readline() == "all ready\n"
        return port

    def finish(self) -> int:
        return self.process.wait(20)


@pytest.fixture
def supervised(tmp_path):
    started = []

    def start(**options: object) -> Supervised:
        started.append(Supervised(tmp_path, **options))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.fixture
def systemd(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(20)
        yield notify


class TestSupervise:
    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    def test_core_first_then_fronts_and_the_other_way_round(self, supervised, systemd, loop):
        if loop == "uvloop":
            pytest.importorskip("uvloop")
        run = supervised(slow="{'front-1': 0.3}", loop=loop)
        run.until_ready()
        assert systemd.recv(100) == b"READY=1"
        assert run.said("ready")[0] == "core"
        assert sorted(run.said("ready")) == ["core", "front-1", "front-2"]
        run.process.send_signal(signal.SIGTERM)
        assert run.finish() == 0
        assert systemd.recv(100) == b"STOPPING=1"
        assert sorted(run.said("end")) == ["core", "front-1", "front-2"]
        entries = [(name, what) for name, what, _ in run.log()]
        assert entries.index(("core", "term")) > entries.index(("front-1", "end"))
        assert entries.index(("core", "term")) > entries.index(("front-2", "end"))

    @pytest.mark.parametrize("name", ["core", "front-2"])
    def test_what_dies_is_restarted(self, supervised, name):
        run = supervised()
        run.until_ready()
        for count in (2, 3):
            os.kill(run.pid(name), signal.SIGKILL)
            run.until(lambda count=count: run.said("ready").count(name) == count)
        others = {"core", "front-1", "front-2"} - {name}
        assert all(run.said("ready").count(other) == 1 for other in others)
        run.process.send_signal(signal.SIGINT)
        assert run.finish() == 0
        assert sorted(run.said("end")) == ["core", "front-1", "front-2"]

    @pytest.mark.parametrize(
        ("before", "expected", "started"),
        [
            pytest.param("sys.exit('core: wrong PIN')", 1, [], id="core fails"),
            pytest.param("name == 'core' or sys.exit(7)", 7, ["core"], id="front fails"),
            pytest.param("sys.exit(0)", 1, [], id="ends well without being ready"),
            pytest.param("os.kill(os.getpid(), signal.SIGKILL)", 137, [], id="killed"),
        ],
    )
    def test_a_first_start_that_fails_ends_it(self, supervised, before, expected, started):
        run = supervised(before=before)
        assert run.finish() == expected
        assert run.said("ready") == started
        assert run.said("end") == started
        assert run.process.stderr is not None
        if "PIN" in before:
            assert run.process.stderr.read().count("core: wrong PIN\n") == 1

    def test_a_front_that_is_killed_in_its_first_start_is_restarted(self, supervised):
        mark = "mark = folder + '/killed'"
        die = "open(mark, 'w').close(); os.kill(os.getpid(), signal.SIGKILL)"
        run = supervised(before=f"{mark}\nif name == 'front-2' and not os.path.exists(mark): {die}")
        run.until(lambda: sorted(run.said("ready")) == ["core", "front-1", "front-2"])
        run.process.send_signal(signal.SIGTERM)
        assert run.finish() == 0

    def test_a_first_start_that_never_ends_is_ended(self, supervised):
        run = supervised(before="time.sleep(60)", start=0.3)
        assert run.finish() == 75

    def test_stopped_while_starting(self, supervised):
        run = supervised(before="say('begun'); time.sleep(60)")
        run.until(lambda: run.said("begun"))
        run.process.send_signal(signal.SIGTERM)
        assert run.finish() == 0
        assert run.said("ready") == []
        assert run.said("term") == ["core"]

    def test_drain_has_a_limit(self, supervised):
        run = supervised(slow="{'front-1': 60}", drain=0.3)
        run.until_ready()
        run.process.send_signal(signal.SIGTERM)
        assert run.finish() == 0
        assert "front-1" in run.said("term")
        assert sorted(run.said("end")) == ["core", "front-2"]

    def test_a_second_signal_does_not_wait_for_the_limit(self, supervised):
        run = supervised(slow="{'front-1': 60}", drain=60)
        run.until_ready()
        run.process.send_signal(signal.SIGTERM)
        run.until(lambda: "front-1" in run.said("term"))
        run.process.send_signal(signal.SIGTERM)
        assert run.finish() == 0
        assert "front-1" not in run.said("end")

    def test_reload_reaches_every_child(self, supervised):
        run = supervised()
        run.until_ready()
        run.process.send_signal(signal.SIGHUP)
        run.until(lambda: sorted(run.said("hup")) == ["core", "front-1", "front-2"])
        run.process.send_signal(signal.SIGTERM)
        assert run.finish() == 0

    def test_children_notice_that_the_supervisor_died(self, supervised):
        run = supervised()
        run.until_ready()
        run.process.kill()
        run.until(lambda: sorted(run.said("orphan")) == ["core", "front-1", "front-2"])

    def test_what_a_dead_child_started_dies_with_it(self, supervised):
        run = supervised(
            before="import subprocess\n"
            "if name == 'core':\n"
            "    helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            "    open(folder + '/helper', 'a').write(str(helper.pid) + chr(10))\n"
        )
        run.until_ready()
        helper = int((run.log_path.parent / "helper").read_text().split()[0])
        os.kill(run.pid("core"), signal.SIGKILL)

        def gone() -> bool:
            try:
                return Path(f"/proc/{helper}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except FileNotFoundError:
                return True

        run.until(gone)
        run.process.send_signal(signal.SIGTERM)
        assert run.finish() == 0

    def test_the_listener_stays_open_while_fronts_restart(self, supervised):
        run = supervised()
        port = run.until_ready()
        for name in ("front-1", "front-2"):
            os.kill(run.pid(name), signal.SIGKILL)
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass
        run.process.send_signal(signal.SIGTERM)
        assert run.finish() == 0

    @pytest.mark.skipif(os.getuid() != 0, reason="only root may change users")
    def test_children_run_as_their_users(self):
        script = "echo $(id -u) $(id -g) $(id -G) $(umask); exit 5"
        driver = (
            f"import asyncio, sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from ca_server.rpc.supervisor import *\n"
            "from ca_server.telemetry import configure_logging; configure_logging()\n"
            f"core = ChildSpec('core', ['/bin/sh', '-c', {script!r}], {{'PATH': '/usr/bin:/bin'}},"
            " user=65534, group=65534, extra_groups=(123,), umask=0o027)\n"
            "sys.exit(asyncio.run(supervise(SupervisorPlan(core, ()))))"
        )
        ran = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, check=False, timeout=30)
        assert ran.stdout == "65534 65534 65534 123 0027\n", ran
        assert ran.returncode == 5


class TestChildSide:
    def test_readiness_is_one_octet_and_the_pipe_is_closed(self):
        read, write = os.pipe()
        notify_ready({READY_FD: str(write)})
        assert os.read(read, 10) == b"1"
        assert os.read(read, 10) == b""
        os.close(read)

    @pytest.mark.parametrize("environment", [{}, {READY_FD: ""}, {READY_FD: "x"}, {READY_FD: "9999"}])
    def test_without_a_supervisor_readiness_is_nothing(self, environment):
        notify_ready(environment)

    async def test_lifeline_returns_at_its_end_only(self):
        read, write = os.pipe()
        watch = asyncio.create_task(watch_lifeline({LIFELINE_FD: str(read)}))
        await asyncio.sleep(0.05)
        assert not watch.done()
        os.close(write)
        await asyncio.wait_for(watch, 5)

    async def test_without_a_supervisor_there_is_no_lifeline(self):
        watch = asyncio.create_task(watch_lifeline({}))
        await asyncio.sleep(0.02)
        assert not watch.done()
        watch.cancel()

    def test_systemd_that_did_not_ask_or_is_away_is_not_told(self, tmp_path):
        notify_systemd("READY=1", {})
        notify_systemd("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "none")})

    def test_systemd_s_abstract_socket(self):
        name = f"ca-server-test-{os.getpid()}-{time.monotonic_ns()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind("\0" + name)
            notify.settimeout(5)
            notify_systemd("READY=1", {"NOTIFY_SOCKET": "@" + name})
            assert notify.recv(100) == b"READY=1"


class TestListeners:
    def test_bound_and_inherited_by_name(self):
        bound = bind_listeners([ListenerSpec("https", "127.0.0.1", 0), ListenerSpec("http", "*", 0)])
        duplicated = {name: tuple(s.dup() for s in group) for name, group in bound.items()}
        environment = listener_environment(duplicated)
        inherited = inherited_sockets(environment)
        assert [s.getsockname() for s in inherited["https"]] == [s.getsockname() for s in bound["https"]]
        assert not inherited["https"][0].getblocking()
        port = inherited["http"][0].getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        for group in duplicated.values():
            for each in group:
                each.detach()  # `inherited` owns the descriptor
        for group in [*inherited.values(), *bound.values()]:
            for each in group:
                each.close()

    def test_a_port_in_use_is_named_and_nothing_stays_bound(self):
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
            (free_port,) = free_ports(1)
            with pytest.raises(
                ConfigurationError, match=rf"listeners.https: address = '127.0.0.1 port {taken}': is in use"
            ):
                bind_listeners(
                    [ListenerSpec("http", "127.0.0.1", free_port), ListenerSpec("https", "127.0.0.1", taken)]
                )
            socket.create_server(("127.0.0.1", free_port)).close()

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (ListenerSpec("http", "192.0.2.1", 0), "not an address of this machine"),
            (ListenerSpec("http", "no host at all", 0), "is neither address nor name"),
            (ListenerSpec("http", "127.0.0.1", 70000), "is no port"),
        ],
    )
    def test_what_can_t_be_bound_is_one_clear_line(self, spec, message):
        with pytest.raises(ConfigurationError, match=message) as caught:
            bind_listeners([spec])
        assert "\n" not in str(caught.value)

    def test_a_name_is_there_once(self):
        with pytest.raises(ConfigurationError, match="twice"):
            bind_listeners([ListenerSpec("a", "127.0.0.1", 0), ListenerSpec("a", "127.0.0.1", 0)])

    def test_a_name_with_several_addresses_has_one_port(self):
        (group,) = bind_listeners([ListenerSpec("http", "localhost", 0)]).values()
        assert len({each.getsockname()[1] for each in group}) == 1
        for each in group:
            each.close()

    @pytest.mark.parametrize("text", ["https=x", "https", "https=9999"])
    def test_an_environment_that_lies_is_refused(self, text):
        with pytest.raises(ConfigurationError, match="no inherited listener"):
            inherited_sockets({LISTENER_FDS: text})

    def test_nothing_inherited_is_nothing(self):
        assert inherited_sockets({}) == {}
