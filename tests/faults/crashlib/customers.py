"""Clients that never give up: each works through orders, and keeps what it was given and what it was told."""

import json
import os
import random
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPSConnection
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from interoplib.acme import AcmeClient, Answer, Order, Problem, make_csr
from interoplib.enrollment import Enrollment

T = TypeVar("T")

PATIENCE = 120.0
_REVOKED_OF = 8
"""Of so many certificates one is revoked."""
_SAME_NAME_OF = 3
"""Of so many orders one is for a new name, with a validation; the others stand on an authorization that is valid."""


@dataclass
class Holding:
    """One order of a client: how it ended, and what the client holds."""

    order_id: str
    name: str
    spki: bytes
    finalized: int = 0
    """How often finalize was sent."""
    unanswered: bool = False
    """Whether the last finalize was sent whole, on a connection that stood, and never answered."""
    certificate: bytes | None = None
    refused: str | None = None
    revoked: bool = False


@dataclass
class Ledger:
    """What all clients saw. `complaints` are answers that no client should ever get."""

    holdings: list[Holding] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    retries: int = 0
    dropped: int = 0
    """Finalizes that were sent, never answered, and not carried out."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def complain(self, text: str) -> None:
        with self.lock:
            self.complaints.append(text)

    @property
    def issued(self) -> int:
        return sum(holding.certificate is not None for holding in self.holdings)


def check_retryable(problem: Problem, what: str, complain: Callable[[str], None]) -> bool:
    """Whether to try again after a problem. A failure of the server must say that it is one, and when to return."""
    if problem.type == "badNonce":
        return True
    if problem.status < 500 and problem.status != 429:
        return False
    if problem.type != "serverInternal" or "retry-after" not in problem.headers:
        complain(f"{what}: {problem} {problem.headers.get('retry-after')}")
    return True


class CarefulClient(AcmeClient):
    """Knows of each request whether it reached the server: `unanswered` is the URL of one that was sent in vain."""

    unanswered: str | None = None

    def _send(self, request: urllib.request.Request) -> Answer:
        self.unanswered = None
        connection = HTTPSConnection(request.host, timeout=30, context=self._tls)
        try:
            connection.connect()  # the TLS handshake included: somebody has accepted
            self.unanswered = request.full_url
            connection.request(request.get_method(), request.selector, request.data, dict(request.header_items()))
            with connection.getresponse() as response:
                body = response.read()
        finally:
            connection.close()
        self.unanswered = None
        headers = {name.lower(): value for name, value in response.getheaders()}
        if response.status < 400:
            return Answer(response.status, headers, body)
        try:
            document = json.loads(body)
        except ValueError:
            document = {"type": "not-a-problem-document", "detail": repr(body[:500])}
        raise Problem(response.status, document, headers)


@dataclass
class Account(Enrollment):
    """An enrollment whose client is careful."""

    client: CarefulClient


class Customer(threading.Thread):
    """One account in a thread of its own; `close` lets it finish its order and end."""

    def __init__(self, ledger: Ledger, open_account: Callable[[], Account], number: int, seed: int) -> None:
        super().__init__(name=f"customer-{number}", daemon=True)
        self._ledger = ledger
        self._open_account = open_account
        self._random = random.Random(seed + number)
        self._closing = threading.Event()
        self._names: list[str] = []
        self.pause = 0.0

    def close(self) -> None:
        self._closing.set()

    def run(self) -> None:
        try:
            enrollment = self._insist("register", self._open_account)
            while not self._closing.is_set():
                self._work(enrollment)
                time.sleep(self.pause)
        except BaseException as error:  # noqa: BLE001 - told where the ledger is read
            self._ledger.complain(f"{self.name} gave up: {type(error).__name__}: {error}")

    def _insist(self, what: str, attempt: Callable[[], T]) -> T:
        """Try until it is done, as a patient client does: after lost connections, and when told to try again."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return attempt()
            except Problem as problem:
                if time.monotonic() > deadline or not check_retryable(problem, what, self._ledger.complain):
                    raise
            except (OSError, HTTPException):
                if time.monotonic() > deadline:
                    raise
            self._ledger.retries += 1
            time.sleep(0.1)

    def _choose_name(self) -> str:
        if not self._names or self._random.randrange(_SAME_NAME_OF) == 0:
            self._names.append(f"crash-{os.urandom(5).hex()}.example.test")
        return self._random.choice(self._names)

    def _work(self, enrollment: Account) -> None:
        client, name = enrollment.client, self._choose_name()
        csr = make_csr(name)
        order = self._insist("newOrder", lambda: client.new_order(name))
        spki = x509.load_der_x509_csr(csr).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        holding = Holding(order.url.rpartition("/")[2], name, spki)
        with self._ledger.lock:
            self._ledger.holdings.append(holding)
        for url in order.body["authorizations"]:
            self._insist("authorize", lambda url=url: self._authorize(enrollment, url))
        deadline = time.monotonic() + PATIENCE
        while holding.certificate is None and holding.refused is None:
            if time.monotonic() > deadline:
                holding.refused = f"never finished: {order.body}"
                self._ledger.complain(f"order {holding.order_id} {holding.refused}")
                return
            self._insist("order", lambda: client.refresh(order))
            if holding.unanswered:
                self._ledger.dropped += order.status == "ready"
                holding.unanswered = False
            if order.status == "ready":
                self._finalize(client, order, csr, holding)
            elif order.status == "valid":
                chain = self._insist("certificate", lambda: client.certificate(order))
                holding.certificate = chain[0].public_bytes(Encoding.DER)
            elif order.status == "invalid":
                holding.refused = str(order.body.get("error", "the authorization failed"))
            else:
                time.sleep(0.05)
        if holding.certificate is not None and self._random.randrange(_REVOKED_OF) == 0:
            self._insist("revoke", lambda: self._revoke(client, holding))

    def _finalize(self, client: CarefulClient, order: Order, csr: bytes, holding: Holding) -> None:
        """Send finalize once; where no answer comes, the order tells what became of it."""
        holding.finalized += 1
        try:
            client.finalize(order, csr)
        except Problem as problem:
            if problem.type != "orderNotReady" and not check_retryable(problem, "finalize", self._ledger.complain):
                raise
            self._ledger.retries += 1
            time.sleep(0.05)
        except (OSError, HTTPException):
            holding.unanswered = client.unanswered == order.body["finalize"]
            self._ledger.retries += 1
            time.sleep(0.05)

    @staticmethod
    def _authorize(enrollment: Account, url: str) -> None:
        client = enrollment.client
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            authorization = client.post(url, None).json
            if authorization["status"] != "pending":
                return
            challenge = next(item for item in authorization["challenges"] if item["type"] == "http-01")
            if challenge["status"] == "pending":
                enrollment.web.put(challenge["token"], f"{challenge['token']}.{client.thumbprint}")
                client.answer_challenge(challenge)
            time.sleep(0.05)

    @staticmethod
    def _revoke(client: AcmeClient, holding: Holding) -> None:
        assert holding.certificate is not None
        try:
            client.revoke(x509.load_der_x509_certificate(holding.certificate), reason=4)
        except Problem as problem:
            if problem.type != "alreadyRevoked":
                raise
        holding.revoked = True
