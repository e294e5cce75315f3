"""One node with one, two and four fronts on PostgreSQL: they are one to clients, and one that dies loses nothing."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crashlib.nodes import Cluster, until
from crashlib.oneness import check_finalize, check_nonces, check_open_orders
from interoplib.enrollment import Surroundings
from interoplib.server import Server

MAX_OPEN_ORDERS = 4

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def cluster(
    ca_server_command: Path,
    open_folder: Callable[[str], Path],
    surroundings: Surroundings,
    make_database: Callable[[], str],
) -> Iterator[Cluster]:
    settings = (f"acme.max_open_orders={MAX_OPEN_ORDERS}",)
    with Cluster(ca_server_command, open_folder, surroundings, make_database(), settings, nodes=1) as made:
        yield made


def fronts_that_answered(server: Server, since: int) -> set[str]:
    """The fronts that the log has a request of, from an octet of it on."""
    with server.log.open("rb") as log:
        log.seek(since)
        lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if '"event":"request"' in line]
    return {found[1] for line in lines if (found := re.search(r'"process":"(front-\d+)"', line))}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_fronts_are_one(cluster: Cluster, count: int) -> None:
    (server,) = cluster.nodes
    if count > 1:
        assert server.stop() == 0, server.log_tail()
        server.settings = (*server.settings, f"processes.fronts={count}")
    since = server.log.stat().st_size
    cluster.up()
    names = {f"front-{index}" for index in range(1, count + 1)}
    cluster.open_shop(3)
    client = cluster.register(server)
    clients = [client.at(server) for _ in range(6)]
    check_nonces(clients, 5)
    for _ in range(2):
        check_finalize(cluster, clients)
    for _ in range(6):
        client = cluster.register(server)
        check_open_orders([client.at(server) for _ in range(2 * MAX_OPEN_ORDERS)], MAX_OPEN_ORDERS)
    until(lambda: fronts_that_answered(server, since) == names, "not every front answers")

    # One dies right after it has accepted a finalize, before it answers or asks for the certificate.
    cluster.traps[0].arm("front.finalize.after", 1)
    assert cluster.traps[0].sprung(30), "no front was asked to finalize"
    until(lambda: len(server.processes_as("front")) == count and server.is_ready())
    since = server.log.stat().st_size
    until(lambda: fronts_that_answered(server, since) == names, "a front that died was not started again")
    cluster.close_shop()
    assert cluster.ledger.complaints == []


def test_the_books_agree(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever was accepted was done once, by whichever front."""
    books = cluster.books(cluster.nodes[0])
    with capsys.disabled():
        print(f"\n{books}")  # noqa: T201
    assert books.differences == []
    assert books.held > 20
