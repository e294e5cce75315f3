"""Giant, deep and numerous things in ACME and OCSP requests: each has its refusal, none costs others anything."""

import base64
import contextlib
import json
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from floodlib import der
from floodlib.besieged import Besieged
from floodlib.bystander import Bystander
from interoplib.acme import AcmeClient, Order, Problem, b64url, make_csr

MEMORY = 400
"""MiB that front or core may have at any moment."""
OPEN = 10_000
DEEP = 10_000
ROUNDS = 3

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def besieged(ca_server_command: Path, open_folder: Callable[[str], Path]) -> Iterator[Besieged]:
    settings = (f"acme.max_open_orders={OPEN}", f"acme.max_open_names={2 * OPEN}")
    besieged = Besieged(ca_server_command, open_folder("giants"), settings)
    yield besieged
    assert besieged.server.stop() == 0, besieged.server.log_tail()


@pytest.fixture(scope="module")
def bystander(besieged: Besieged) -> Bystander:
    return Bystander(besieged.server)


@pytest.fixture(scope="module")
def giant(besieged: Besieged) -> AcmeClient:
    """Who sends them: an account of its own."""
    return AcmeClient(besieged.server.directory, besieged.server.root).register()


@pytest.fixture(scope="module")
def order(giant: AcmeClient) -> Order:
    """An order of the giant's that is ready."""
    order = giant.new_order("giant.flood.test")
    challenge, _ = giant.challenge(order.body["authorizations"][0], "http-01")
    giant.answer_challenge(challenge)
    return giant.wait_for_order(order, "pending")


@pytest.fixture(autouse=True)
def watch(besieged: Besieged, bystander: Bystander) -> Iterator[None]:
    """Others are served after each test, and memory was bounded in it."""
    for memory in (besieged.memory, besieged.core_memory):
        memory.forget_peak()
    yield
    assert besieged.memory.peak < MEMORY
    assert besieged.core_memory.peak < MEMORY
    bystander.be_served()


def post(client: AcmeClient, url: str, body: bytes) -> None:
    client._send(urllib.request.Request(url, body, {"Content-Type": "application/jose+json"}))


def signed(client: AcmeClient, url: str, payload: bytes, header: bytes | None = None) -> bytes:
    """A JWS of any payload; `header` takes the place of the protected header, and is as wrong as it likes."""
    own = {"alg": "ES256", "nonce": client.nonce(), "url": url, "kid": client.account_url}
    protected, text = b64url(header if header is not None else json.dumps(own).encode()), b64url(payload)
    r, s = decode_dss_signature(client.key.sign(f"{protected}.{text}".encode(), ec.ECDSA(hashes.SHA256())))
    signature = b64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
    return json.dumps({"protected": protected, "payload": text, "signature": signature}).encode()


def with_jwk(client: AcmeClient, url: str, jwk: dict[str, str]) -> bytes:
    """A newAccount by any key, the signature noise of the right length."""
    own = {"alg": "RS256", "nonce": client.nonce(), "url": url, "jwk": jwk}
    parts = {"protected": b64url(json.dumps(own).encode()), "payload": b64url(b"{}"), "signature": b64url(b"x" * 1024)}
    return json.dumps(parts).encode()


def rsa_jwk(bits: int, exponent: int = 65_537) -> dict[str, str]:
    e = exponent.to_bytes((exponent.bit_length() + 7) // 8, "big")
    return {"kty": "RSA", "n": b64url(der.modulus(bits).to_bytes(bits // 8, "big")), "e": b64url(e)}


@dataclass(frozen=True)
class Giant:
    """What is sent (to newOrder, or `to`), and how it is refused."""

    name: str
    body: Callable[[AcmeClient, str], bytes]
    status: int = 400
    type: str = "malformed"
    to: str = "newOrder"


def identifiers(count: int, name: str = "n{}.t") -> bytes:
    names = [{"type": "dns", "value": name.format(number)} for number in range(count)]
    return json.dumps({"identifiers": names}, separators=(",", ":")).encode()


def payload(data: bytes) -> Callable[[AcmeClient, str], bytes]:
    return lambda client, url: signed(client, url, data)


GIANTS = [
    Giant("arrays, deep", lambda *_: b"[" * DEEP + b"]" * DEEP),
    Giant("objects, deep", lambda *_: b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    Giant("arrays without an end", lambda *_: b"[" * 120_000),
    Giant("a giant text", lambda *_: json.dumps({"protected": "x" * 130_000}).encode()),
    Giant("a giant number", lambda *_: b'{"protected":' + b"9" * 130_000 + b"}"),
    Giant("many members", lambda *_: json.dumps({str(number): "" for number in range(10_000)}).encode()),
    Giant("more than is taken", lambda *_: b"{" + b" " * 200_000 + b"}", 413),
    Giant("a deep header", lambda c, u: signed(c, u, b"", b'{"x":' + b"[" * DEEP + b"]" * DEEP + b"}")),
    Giant("a giant header", lambda c, u: signed(c, u, b"", b'{"kid":"' + b"x" * 90_000 + b'"}')),
    Giant("a deep payload", payload(b'{"identifiers":' + b"[" * DEEP + b"]" * DEEP + b"}")),
    Giant("deep where nobody looks", payload(b'{"x":' + b"[" * DEEP + b"]" * DEEP + b"," + identifiers(1)[1:])),
    Giant("101 names", payload(identifiers(101))),
    Giant("3,000 names", payload(identifiers(3_000))),
    Giant("a giant name", payload(identifiers(1, "x" * 80_000))),
    Giant("a giant type", payload(json.dumps({"identifiers": [{"type": "x" * 80_000, "value": "a"}]}).encode())),
    Giant("giant base64", lambda *_: json.dumps({"protected": "A" * 120_000, "payload": "", "signature": ""}).encode()),
    Giant("an RSA key of 16,384 bits", lambda c, u: with_jwk(c, u, rsa_jwk(16_384)), 400, "badPublicKey", "newAccount"),
    Giant(
        "a giant RSA exponent",
        lambda c, u: with_jwk(c, u, rsa_jwk(8_192, der.modulus(8_000))),
        400,
        "badPublicKey",
        "newAccount",
    ),
    Giant("the largest RSA key", lambda c, u: with_jwk(c, u, rsa_jwk(8_192)), 401, "unauthorized", "newAccount"),
]


@pytest.mark.parametrize("each", GIANTS, ids=lambda each: each.name)
def test_giant_request(giant: AcmeClient, each: Giant) -> None:
    url = giant.directory[each.to]
    for _ in range(ROUNDS):
        with pytest.raises(Problem) as caught:
            post(giant, url, each.body(giant, url))
        assert (caught.value.status, caught.value.type) == (each.status, each.type), caught.value.document
        assert len(json.dumps(caught.value.document)) < 5_000, "what was sent is not sent back"


CSRS = {
    "larger than is taken": (lambda: b"\x30" + b"x" * 66_000, "badCSR", "csr.size"),
    "no DER": (lambda: b"\x30" * 60_000, "badCSR", "csr.der"),
    "deep": (lambda: der.nested(DEEP), "badCSR", "csr.der"),
    "deep in an attribute": (lambda: der.rsa_csr(2_048, attributes=der.nested(DEEP)), "badCSR", None),
    "deep in an extension": (lambda: der.rsa_csr(2_048, attributes=der.extension(der.nested(DEEP))), "badCSR", None),
    "2,000 names": (lambda: make_csr(*(f"n{number}.flood.test" for number in range(2_000))), "badCSR", "csr.names"),
    "101 names": (lambda: make_csr(*(f"n{number}.flood.test" for number in range(101))), None, None),
    "an RSA key of 16,384 bits": (lambda: der.rsa_csr(16_384), "badPublicKey", "keys.size"),
    "the largest RSA key": (lambda: der.rsa_csr(8_192), "badCSR", "csr.signature"),
    "a giant exponent": (lambda: der.rsa_csr(8_192, der.modulus(8_000)), "badPublicKey", "keys.exponent"),
    "a giant exponent of a small key": (
        lambda: der.rsa_csr(3_072, der.modulus(3_071)),
        "badPublicKey",
        "keys.exponent",
    ),
}


@pytest.mark.parametrize("name", CSRS)
def test_giant_csr(giant: AcmeClient, order: Order, name: str) -> None:
    make, kind, rule = CSRS[name]
    csr = make()
    for _ in range(ROUNDS):
        with pytest.raises(Problem) as caught:
            giant.post(order.body["finalize"], {"csr": b64url(csr)})
        assert caught.value.status in {400, 403}, caught.value.document
        assert kind in {None, caught.value.type}, caught.value.document
        assert rule in {None, caught.value.document.get("rule")}, caught.value.document
    assert giant.refresh(order).status == "ready", "a better one may follow"


def test_the_order_is_none_the_worse(giant: AcmeClient, order: Order) -> None:
    giant.finalize(order, make_csr("giant.flood.test"))
    assert giant.wait_for_order(order).status == "valid"


def ask(url: str, body: bytes | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/ocsp-request"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


MALFORMED = bytes.fromhex("30030a0101")
"""OCSPResponse of the status malformedRequest (RFC 6960 section 4.2.1)."""


@pytest.mark.parametrize(
    "request_der",
    [
        pytest.param(b"\x30" * 20_000, id="larger than is taken"),
        pytest.param(der.nested(DEEP)[-16_000:], id="deep"),
        pytest.param(der.nested(3_500), id="deep and whole"),
        pytest.param(
            der.tlv(0x30, der.tlv(0x30, der.tlv(0x30, der.tlv(0x30, der.tlv(0x30, b"")) * 1_000))), id="1,000 questions"
        ),
    ],
)
def test_giant_ocsp_request(besieged: Besieged, request_der: bytes) -> None:
    for _ in range(ROUNDS):
        assert ask(f"{besieged.server.http_url}/ocsp", request_der) == (200, MALFORMED)
    path = base64.b64encode(request_der).decode().replace("/", "%2F").replace("+", "%2B")
    status, body = ask(f"{besieged.server.http_url}/ocsp/{path}")
    assert status == 431 or (status, body) == (200, MALFORMED)


# --- Many orders --------------------------------------------------------------------------------------------------


def multiply_orders(besieged: Besieged, url: str, count: int) -> None:
    """Copies of an order, in the database: at the front door they would take a minute."""
    order_id = url.rpartition("/")[2]
    many = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
    with contextlib.closing(sqlite3.connect(besieged.server.home / "data" / "ca.db", timeout=30)) as database, database:
        for table, key in (("acme_orders", "id"), ("acme_order_links", "order_id")):
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})") if row[1] != "number"]
            copied = ", ".join("printf('flood%017d', n.i)" if each == key else f"o.{each}" for each in columns)
            chosen = f"SELECT {copied} FROM n, {table} o WHERE o.{key} = ?"
            database.execute(f"INSERT INTO {table} ({', '.join(columns)}) {many} {chosen}", (order_id,))


def pages(client: AcmeClient, url: str) -> Iterator[list[str]]:
    """The account's list of orders, page by page (RFC 8555 section 7.1.2.1)."""
    following: str | None = url
    while following is not None:
        answer = client.post(following, None)
        yield answer.json["orders"]
        link = answer.headers.get("link", "")
        following = next(
            (part.partition("<")[2].partition(">")[0] for part in link.split(",") if 'rel="next"' in part), None
        )


def test_ten_thousand_open_orders(besieged: Besieged, bystander: Bystander) -> None:
    client = AcmeClient(besieged.server.directory, besieged.server.root).register()
    first = client.new_order("many.flood.test")
    multiply_orders(besieged, first.url, OPEN - 2)
    assert client.new_order("many.flood.test").status == "pending"
    for _ in range(ROUNDS):
        with pytest.raises(Problem) as caught:
            client.new_order("many.flood.test")
        problem = caught.value
        assert (problem.status, problem.type, problem.document["rule"]) == (429, "rateLimited", "acme.max_open_orders")
        assert 0 < int(problem.headers["retry-after"]) < 600
    failures: list[BaseException] = []

    def others() -> None:
        try:
            for _ in range(3):
                bystander.be_served()
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    thread = threading.Thread(target=others)
    thread.start()
    account: dict[str, Any] = client.post(client.account_url, {}).json
    listed = list(pages(client, account["orders"]))
    thread.join()
    assert failures == []
    assert max(map(len, listed)) <= 100
    assert len({order for page in listed for order in page}) == sum(map(len, listed)) == OPEN
    assert client.refresh(first).status == "pending"


def test_no_errors_in_the_log(besieged: Besieged) -> None:
    lines = besieged.log_lines()
    assert [line for line in lines if line["level"] in {"error", "critical"}][1:] == [], "but that nothing is validated"
    assert not [line for line in lines if "exception" in line]
