"""What must hold of several processes that are one CA: each check sends the same moment's requests to all of them."""

from collections import Counter
from collections.abc import Sequence

from interoplib.acme import Answer, Order, Problem, b64url, make_csr

from crashlib.nodes import Cluster, NodeClient, new_host, problems, race


def use_nonce(client: NodeClient, nonce: str) -> Answer:
    """A request of the client's account under this nonce."""
    client.given = [nonce]
    return client.post(client.account_url, {})


def check_nonces(clients: Sequence[NodeClient], rounds: int) -> None:
    """A nonce of one is good once, whoever is asked."""
    for turn in range(rounds):
        nonce = clients[turn % len(clients)].nonce()
        uses = [lambda client=client, nonce=nonce: use_nonce(client, nonce) for client in clients]
        assert problems(race(*uses)) == ["badNonce"] * (len(clients) - 1)
    assert problems(race(*uses)) == ["badNonce"] * len(clients)


def prepared(clients: Sequence[NodeClient]) -> Sequence[NodeClient]:
    """The clients with a nonce each: their next requests leave at the same moment."""
    for client in clients:
        client.given = [client.nonce()]
    return clients


def check_open_orders(clients: Sequence[NodeClient], limit: int) -> list[Order]:
    """One account gets as many orders as its limit says, of all that are asked for at once; they are returned."""
    results = race(*(lambda client=client: client.new_order(new_host()) for client in prepared(clients)))
    assert Counter(problems(results)) == {"rateLimited": len(clients) - limit}
    return [result for result in results if not isinstance(result, Problem)]


def check_finalize(cluster: Cluster, clients: Sequence[NodeClient]) -> None:
    """A finalize that is sent to all at once is one serial and one signature."""
    name = new_host()
    csr, order = make_csr(name), cluster.ready_order(clients[0], name)
    holding = cluster.note(order, csr)
    url, payload = order.body["finalize"], {"csr": b64url(csr)}
    results = race(*(lambda client=client: client.post(url, payload) for client in clients))
    assert set(problems(results)) <= {"orderNotReady"}
    assert len(problems(results)) < len(results)
    held = {cluster.collect(client, order, holding).serial_number for client in clients}
    (issued,) = cluster.intents_of(holding, "issued")
    assert held == {int(issued.serial, 16)}
    assert cluster.intents_of(holding, "abandoned") == []
    assert sum(trap.signatures().made[issued.tbs_sha256.hex()] for trap in cluster.traps) == 1
