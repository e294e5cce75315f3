"""Who has to go for one more."""

import random
from collections import Counter

import pytest

from ca_server.web.crowd import Crowd, origin


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
        (None, ""),
        ("a socket", ""),
    ],
)
def test_origin(address, peer):
    assert origin(address) == peer


def crowd_of(*members: str, limit: int = 100, per_address: int = 100) -> Crowd[str]:
    """Members are called by address and number: `a1` is of `a`."""
    crowd: Crowd[str] = Crowd(limit, per_address)
    for member in members:
        crowd.enter(member, member[0])
    return crowd


def test_the_longest_waiting_of_the_address_with_the_most():
    crowd = crowd_of("b1", "a1", "a2", "c1")
    assert crowd.longest_waiting() == "a1"
    assert crowd.longest_waiting("c") == "c1"
    crowd.leave("a1")
    assert crowd.longest_waiting() == "b1"


def test_who_works_stays_and_waits_anew_afterwards():
    crowd = crowd_of("a1", "a2", "b1")
    crowd.work("a1")
    assert crowd.longest_waiting("a") == "a2"
    crowd.work("a2")
    assert crowd.longest_waiting("a") is None
    assert crowd.longest_waiting() == "b1"
    crowd.wait("a1")
    crowd.wait("a2")
    assert crowd.longest_waiting() == "a1"
    crowd.work("a1")
    crowd.wait("a1")
    assert crowd.longest_waiting() == "a2"


def test_full():
    crowd = crowd_of("a1", "b1", limit=2)
    assert crowd.is_full
    assert crowd.can_grow
    crowd.work("a1")
    assert crowd.can_grow
    crowd.work("b1")
    assert not crowd.can_grow
    crowd.leave("a1")
    assert crowd.can_grow


def test_share_of_an_address():
    crowd = crowd_of("a1", "a2", "b1", per_address=2)
    assert crowd.has_share("a")
    assert not crowd.has_share("b")
    crowd.work("a1")
    assert crowd.has_share("a"), "who works counts too"
    crowd.leave("a1")
    assert not crowd.has_share("a")


def test_who_left_is_nobody():
    crowd = crowd_of("a1")
    assert crowd.leave("a1")
    assert not crowd.leave("a1")
    crowd.wait("a1")
    crowd.work("a1")
    assert (len(crowd), crowd.longest_waiting()) == (0, None)


def test_against_a_plain_model():
    chance = random.Random(7)
    crowd: Crowd[int] = Crowd(1_000, 1_000)
    address: dict[int, str] = {}
    waiting: list[int] = []
    for step in range(5_000):
        chosen = chance.choice(list(address)) if address else None
        match chance.randrange(5):
            case 0 | 1:
                address[step] = chance.choice("abcd")
                crowd.enter(step, address[step])
                waiting.append(step)
            case 2 if chosen is not None:
                crowd.work(chosen)
                waiting = [each for each in waiting if each != chosen]
            case 3 if chosen is not None:
                crowd.wait(chosen)
                waiting += [] if chosen in waiting else [chosen]
            case 4 if chosen is not None:
                crowd.leave(chosen)
                del address[chosen]
                waiting = [each for each in waiting if each != chosen]
        counts = Counter(address[each] for each in waiting)
        goes = crowd.longest_waiting()
        if goes is None:
            assert not waiting
            continue
        assert counts[address[goes]] == max(counts.values())
        assert goes == next(each for each in waiting if address[each] == address[goes])
    assert len(crowd) == len(address)
