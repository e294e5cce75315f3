"""Whole nodes of one CA on one PostgreSQL database, each with a home, ports and a token of its own."""

import os
import random
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from databases import administer, run_apart
from interoplib.acme import AcmeClient, Answer, Order, Problem, make_csr
from interoplib.enrollment import Enrollment, Surroundings
from interoplib.server import Server
from interoplib.web import ChallengeServer

from crashlib.books import DATABASE_URL, Books, reconcile, rows, serials_known
from crashlib.customers import Account, CarefulClient, Customer, Holding, Ledger
from crashlib.trap import Signatures, Trap

T = TypeVar("T")

NAMES = ("node1", "node2")
LONGEST_LEASE = 180
"""Seconds after which every lease of a dead node has run out: a validation's, with its longest pause."""
_MICROSECONDS = 1_000_000
_PATIENCE = 60.0


def until(condition: Callable[[], object], what: str = "it never came about") -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def race(*acts: Callable[[], T]) -> list[T | Problem]:
    """Do all at the same moment; what each returned, or the problem that it was told."""
    start = threading.Barrier(len(acts))

    def run(act: Callable[[], T]) -> T | Problem:
        start.wait(60)
        try:
            return act()
        except Problem as problem:
            return problem

    with ThreadPoolExecutor(len(acts)) as threads:
        return list(threads.map(run, acts))


def problems(results: Sequence[object]) -> list[str]:
    """The types of the problems among results."""
    return [result.type for result in results if isinstance(result, Problem)]


def _moved(request: urllib.request.Request, node: Server) -> urllib.request.Request:
    """The request, sent to a node whatever address its URL has, as a balancer before the nodes would."""
    place = urlsplit(node.directory).netloc
    url = urlsplit(request.full_url)._replace(netloc=place).geturl()
    return urllib.request.Request(url, request.data, dict(request.header_items()), method=request.get_method())


@dataclass
class NodeClient(AcmeClient):
    """The client of an account, at one node. Nonces that it is given go before those that it asks for."""

    node: Server | None = None
    given: list[str] = field(default_factory=list)

    def at(self, node: Server) -> "NodeClient":
        """The same account's client at another node."""
        return NodeClient(node.directory, self.root, self.key, self.account_url, node)

    def nonce(self) -> str:
        return self.given.pop() if self.given else super().nonce()

    def _send(self, request: urllib.request.Request) -> Answer:
        return super()._send(request if self.node is None else _moved(request, self.node))


@dataclass
class BalancedClient(CarefulClient):
    """Sends each request to any node; where none accepts there, to another."""

    nodes: Sequence[Server] = ()

    def _send(self, request: urllib.request.Request) -> Answer:
        first, *others = random.sample(self.nodes, len(self.nodes))
        for node in (first, *others[:-1]):
            try:
                return super()._send(_moved(request, node))
            except OSError:
                if self.unanswered is not None:
                    raise
        return super()._send(_moved(request, (first, *others)[-1]))


class Cluster:
    """Owns the nodes and what stands around them. Used as a context manager, it leaves nothing behind that runs."""

    def __init__(
        self,
        command: Path,
        open_folder: Callable[[str], Path],
        surroundings: Surroundings,
        database: str,
        settings: Sequence[str] = (),
        nodes: int = len(NAMES),
    ) -> None:
        self.database = database
        self.ledger = Ledger()
        self.folders = [open_folder(name) for name in NAMES[:nodes]]
        own = (*surroundings.settings, "lint.sample_size=0", "lint.pkilint=false", *settings)
        self.nodes = [Server(command, folder, own) for folder in self.folders]
        self.traps: list[Trap] = []
        for node, folder in zip(self.nodes, self.folders, strict=True):
            (folder / "trap").mkdir()
            self.traps.append(Trap(folder / "trap"))
            node.environment = self.traps[-1].environment | {DATABASE_URL: database}
        self._dns = surroundings.dns
        self._web = ChallengeServer(open_folder("www"), surroundings.http_01_port)
        self._before: frozenset[str] = frozenset()
        self._customers: list[Customer] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        first, *others = self.nodes
        self._stack.enter_context(self._web)
        first.init()
        self._before = serials_known(first)
        for node in self.nodes:
            self._stack.callback(node.kill)
        first.start()
        for node, name, folder in zip(others, NAMES[1:], self.folders[1:], strict=False):
            # From the home of a node that is at work, as an operator would.
            node.join(first.home, name)
            for certificate in (first.root, first.issuing):
                shutil.copy(certificate, folder)
            node.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for customer in self._customers:
            customer.close()
        self._stack.close()

    def up(self) -> tuple[Server, ...]:
        """All nodes, at work."""
        for node in self.nodes:
            if node.process is None:
                node.start()
        return tuple(self.nodes)

    # --- Clients --------------------------------------------------------------------------------------------------

    def register(self, node: Server) -> NodeClient:
        """A new account, made at a node."""
        client = NodeClient(node.directory, self.nodes[0].root, node=node)
        client.register()
        return client

    def enrollment(self, client: AcmeClient) -> Enrollment:
        return Enrollment(client, self._web, self._dns)

    def ready_order(self, client: NodeClient, name: str) -> Order:
        """An order of which nothing is wanting but finalize."""
        order = client.new_order(name)
        self.enrollment(client).authorize(order)
        client.refresh(order)
        assert order.status == "ready", order.body
        return order

    def note(self, order: Order, csr: bytes) -> Holding:
        """Let the books know of an order that is about to be finalized."""
        spki = x509.load_der_x509_csr(csr).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        holding = Holding(order.url.rpartition("/")[2], order.body["identifiers"][0]["value"], spki)
        self.ledger.holdings.append(holding)
        return holding

    def collect(self, client: AcmeClient, order: Order, holding: Holding) -> x509.Certificate:
        """Wait for an order's certificate and fetch it."""
        client.wait_for_order(order)
        assert order.status == "valid", order.body
        certificate = client.certificate(order)[0]
        holding.certificate = certificate.public_bytes(Encoding.DER)
        return certificate

    def obtain(self, client: NodeClient, name: str) -> x509.Certificate:
        """The whole way to a certificate, at the client's node."""
        csr, order = make_csr(name), self.ready_order(client, name)
        holding = self.note(order, csr)
        client.finalize(order, csr)
        return self.collect(client, order, holding)

    def open_shop(self, count: int) -> None:
        """Let clients begin who go to any node with each request."""
        seed = random.SystemRandom().randrange(1 << 31)
        self._customers = [Customer(self.ledger, self._account, number, seed) for number in range(count)]
        for customer in self._customers:
            customer.pause = 0.05
            customer.start()

    def _account(self) -> Account:
        client = BalancedClient(self.nodes[0].directory, self.nodes[0].root, nodes=self.nodes)
        client.register()
        return Account(client, self._web, self._dns)

    def close_shop(self) -> None:
        """Let every client bring its last order to an end."""
        for customer in self._customers:
            customer.close()
        for customer in self._customers:
            customer.join(180)
            assert not customer.is_alive(), f"{customer.name} never finished: {self.ledger.complaints}"
        self._customers = []

    # --- What the database says -----------------------------------------------------------------------------------

    def rows(self, statement: str) -> list[Any]:
        return rows(self.database, statement)

    def events(self, condition: str) -> list[Any]:
        """Events of the log with the node of each."""
        return self.rows(f"SELECT split_part(process, '/', 1) AS node, leaf FROM audit_events WHERE {condition}")

    def intents_of(self, holding: Holding, state: str) -> list[Any]:
        """Intents of an order's enrollment in a state, with the node that reserved each."""
        return self.rows(
            "SELECT i.node, i.serial, i.tbs_sha256 FROM intents i JOIN enrollments e ON e.id = i.enrollment_id"
            f" WHERE e.transaction_key = '{holding.order_id}' AND i.state = '{state}'"
        )

    def drawn(self, issuer: str) -> int:
        """The last CRL number that was drawn for an issuer."""
        (drawn,) = self.rows(
            "SELECT n.number FROM crl_numbers n JOIN issuer_keys k ON k.id = n.issuer_key_id"
            f" JOIN issuers i ON i.id = k.issuer_id WHERE i.name = '{issuer}'"
        )
        return int(drawn.number)

    def books(self, node: Server) -> Books:
        """Hold everything against everything, with what a node says of it."""
        together = Signatures()
        for trap in self.traps:
            found = trap.signatures()
            together = Signatures(
                together.asked + found.asked, together.made + found.made, together.others + found.others
            )
        return reconcile(node, self.ledger, together, self._before)

    def bury(self, node: Server) -> None:
        """Let the leases of a node that was killed run out, as they would in two minutes."""
        assert node.process is None
        name, ago = NAMES[self.nodes.index(node)], LONGEST_LEASE * _MICROSECONDS
        run_apart(
            administer(
                self.database,
                f"UPDATE nodes SET lease_expires = lease_expires - {ago} WHERE node = '{name}'",
                f"UPDATE leases SET expires_at = expires_at - {ago} WHERE holder = '{name}' OR holder LIKE '{name}/%'",
                f"UPDATE acme_orders SET lease_until = lease_until - {ago} WHERE lease_holder LIKE '{name}/%'",
                f"UPDATE acme_challenges SET lease_until = lease_until - {ago} WHERE lease_holder LIKE '{name}/%'",
            )
        )


def new_host() -> str:
    """A name that nobody has."""
    return f"node-{os.urandom(5).hex()}.example.test"
