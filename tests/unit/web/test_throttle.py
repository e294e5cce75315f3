"""A flood fills no log."""

from ca_server.web.throttle import LogThrottle


def test_a_few_lines_then_how_many_were_left_out():
    now = [0.0]
    throttle = LogThrottle(lines=2, seconds=10, clock=lambda: now[0])
    assert [throttle.admit("slow") for _ in range(5)] == [{}, {}, None, None, None]
    assert throttle.admit("busy") == {}, "another kind"
    now[0] = 10.0
    assert [throttle.admit("slow") for _ in range(3)] == [{"left_out": 3}, {}, None]
    now[0] = 30.0
    assert throttle.admit("slow") == {"left_out": 1}
    now[0] = 60.0
    assert throttle.admit("slow") == {}


def test_kinds_are_bounded():
    throttle = LogThrottle()
    for kind in range(10_000):
        throttle.admit(kind)
    assert len(throttle._windows) <= 1024
