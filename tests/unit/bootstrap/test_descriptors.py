"""Open files: what the system gives is used, and no more connections are let in than it allows."""

import subprocess
import sys

import structlog

from ca_server.bootstrap import descriptors
from ca_server.settings import Settings


def limits(monkeypatch, soft: int) -> None:
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _which: (soft, soft))


def test_the_soft_limit_is_raised():
    code = (
        "import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard));"
        "from ca_server.bootstrap.descriptors import raise_limit; raise_limit();"
        "found = resource.getrlimit(resource.RLIMIT_NOFILE);"
        "assert found[1] == hard and found[0] in (hard, 1 << 20), found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_enough(monkeypatch):
    settings = Settings()
    limits(monkeypatch, descriptors.needed(settings))
    with structlog.testing.capture_logs() as logs:
        assert descriptors.affordable_connections(settings) == {"https": 8000, "http": 8000}
    assert logs == []


def test_too_few(monkeypatch):
    limits(monkeypatch, 1024)
    with structlog.testing.capture_logs() as logs:
        given = descriptors.affordable_connections(Settings())
    assert given == {"https": 384, "http": 384}
    assert sum(given.values()) + descriptors.OTHER_DESCRIPTORS == 1024
    assert [each["log_level"] for each in logs] == ["warning"]


def test_far_too_few(monkeypatch):
    limits(monkeypatch, 64)
    assert descriptors.affordable_connections(Settings()) == {"https": 1, "http": 1}


def test_unlimited(monkeypatch):
    limits(monkeypatch, descriptors.resource.RLIM_INFINITY)
    assert descriptors.affordable_connections(Settings())["https"] == 8000
