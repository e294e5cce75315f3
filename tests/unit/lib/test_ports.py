"""The ports that tests give to servers: no two callers get the same."""

import socket
from concurrent.futures import ProcessPoolExecutor

import ports
from ports import free_ports


def test_processes_that_ask_at_once_are_given_different_ports():
    with ProcessPoolExecutor(4) as pool:
        given = [port for some in pool.map(free_ports, [25] * 8) for port in some]
    assert len(set(given)) == 200


def test_a_port_that_something_is_bound_to_is_passed_over(monkeypatch, tmp_path):
    monkeypatch.setattr(ports, "_COUNTER", tmp_path / "counter")
    (first,) = free_ports(1)
    (tmp_path / "counter").write_text(str(first - 1))
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", first))
        assert free_ports(1) != [first]


def test_after_the_last_port_comes_the_first(monkeypatch, tmp_path):
    monkeypatch.setattr(ports, "_COUNTER", tmp_path / "counter")
    (tmp_path / "counter").write_text(str(ports._end() - 1))
    assert ports._FIRST <= free_ports(1)[0] < ports._end() - 1
