"""A small ACME client (RFC 8555) whose every step can be taken by itself, and by two threads at once."""

import base64
import hashlib
import hmac
import json
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

PATIENCE = 90.0


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Problem(Exception):  # noqa: N818 - the RFC's word
    """A problem document."""

    def __init__(self, status: int, document: dict[str, Any], headers: dict[str, str]) -> None:
        super().__init__(f"{status}: {document}")
        self.status = status
        self.headers = headers
        self.type = str(document.get("type", "")).rpartition(":")[2]
        self.document = document


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class Order:
    url: str
    body: dict[str, Any]

    @property
    def status(self) -> str:
        return str(self.body["status"])


@dataclass
class AcmeClient:
    """One account; the nonce of each request is asked for by itself, so that threads and restarts don't matter."""

    directory_url: str
    root: Path
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    account_url: str = ""

    def __post_init__(self) -> None:
        self._tls = ssl.create_default_context(cafile=str(self.root))
        self.directory = self._send(urllib.request.Request(self.directory_url)).json

    # --- Account, orders ------------------------------------------------------------------------------------------

    def register(self, external: tuple[str, str] | None = None) -> "AcmeClient":
        """NewAccount; with an external account key, its id and its secret, bound by it (section 7.3.4)."""
        url = self.directory["newAccount"]
        payload: dict[str, Any] = {"termsOfServiceAgreed": True}
        if external is not None:
            kid, secret = external
            protected = b64url(json.dumps({"alg": "HS256", "kid": kid, "url": url}).encode())
            body = b64url(json.dumps(self.jwk).encode())
            mac = hmac.digest(base64.urlsafe_b64decode(secret + "=="), f"{protected}.{body}".encode(), "sha256")
            bound = {"protected": protected, "payload": body, "signature": b64url(mac)}
            payload["externalAccountBinding"] = bound
        answer = self.post(url, payload)
        self.account_url = answer.headers["location"]
        return self

    def change_key(self, key: ec.EllipticCurvePrivateKey) -> None:
        """KeyChange (section 7.3.5): the new key signs inside, the old one outside."""
        url, old = self.directory["keyChange"], self.key
        payload = {"account": self.account_url, "oldKey": self.jwk}
        self.key = key
        inner = self._sign({"url": url, "jwk": self.jwk}, payload)
        self.key = old
        self.post(url, inner)
        self.key = key

    def new_order(self, *names: str) -> Order:
        body = {"identifiers": [{"type": "dns", "value": name} for name in names]}
        answer = self.post(self.directory["newOrder"], body)
        return Order(answer.headers["location"], answer.json)

    def refresh(self, order: Order) -> Order:
        order.body = self.post(order.url, None).json
        return order

    def challenge(self, authorization_url: str, kind: str) -> tuple[dict[str, Any], str]:
        """The challenge of a kind and its key authorization (section 8.1)."""
        authorization = self.post(authorization_url, None).json
        challenge = next(item for item in authorization["challenges"] if item["type"] == kind)
        return challenge, f"{challenge['token']}.{self.thumbprint}"

    def answer_challenge(self, challenge: dict[str, Any]) -> None:
        self.post(challenge["url"], {})

    def wait_for_authorization(self, url: str) -> dict[str, Any]:
        return self._poll(url, {"pending"})

    def wait_for_order(self, order: Order, *unfinished: str) -> Order:
        order.body = self._poll(order.url, set(unfinished or ("pending", "processing")))
        return order

    def finalize(self, order: Order, csr_der: bytes) -> Order:
        order.body = self.post(order.body["finalize"], {"csr": b64url(csr_der)}).json
        return order

    def certificate(self, order: Order) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates(self.post(order.body["certificate"], None).body)

    def revoke(self, certificate: x509.Certificate, reason: int = 0) -> None:
        body = {"certificate": b64url(certificate.public_bytes(Encoding.DER)), "reason": reason}
        self.post(self.directory["revokeCert"], body)

    # --- Wire -----------------------------------------------------------------------------------------------------

    @property
    def jwk(self) -> dict[str, str]:
        numbers = self.key.public_key().public_numbers()
        return {
            "crv": "P-256",
            "kty": "EC",
            "x": b64url(numbers.x.to_bytes(32, "big")),
            "y": b64url(numbers.y.to_bytes(32, "big")),
        }

    @property
    def thumbprint(self) -> str:
        """RFC 7638."""
        return b64url(hashlib.sha256(json.dumps(self.jwk, separators=(",", ":"), sort_keys=True).encode()).digest())

    def dns_value(self, key_authorization: str) -> str:
        """The TXT record of dns-01 (section 8.4)."""
        return b64url(hashlib.sha256(key_authorization.encode()).digest())

    def nonce(self) -> str:
        request = urllib.request.Request(self.directory["newNonce"], method="HEAD")
        return self._send(request).headers["replay-nonce"]

    def post(self, url: str, payload: dict[str, Any] | None) -> Answer:
        """POST, or POST-as-GET where `payload` is None."""
        identity: dict[str, Any] = {"kid": self.account_url} if self.account_url else {"jwk": self.jwk}
        data = json.dumps(self._sign({"nonce": self.nonce(), "url": url, **identity}, payload)).encode()
        return self._send(urllib.request.Request(url, data, {"Content-Type": "application/jose+json"}))

    def _sign(self, header: dict[str, Any], payload: dict[str, Any] | None) -> dict[str, str]:
        protected = b64url(json.dumps({"alg": "ES256", **header}).encode())
        body = b64url(json.dumps(payload).encode()) if payload is not None else ""
        r, s = decode_dss_signature(self.key.sign(f"{protected}.{body}".encode(), ec.ECDSA(hashes.SHA256())))
        signature = b64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        return {"protected": protected, "payload": body, "signature": signature}

    def _send(self, request: urllib.request.Request) -> Answer:
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._tls) as response:
                headers = {name.lower(): ", ".join(response.headers.get_all(name)) for name in response.headers}
                return Answer(response.status, headers, response.read())
        except urllib.error.HTTPError as error:
            with error:
                text = error.read()
            try:
                document = json.loads(text)
            except ValueError:
                document = {"type": "not-a-problem-document", "detail": repr(text[:500])}
            headers = {name.lower(): value for name, value in error.headers.items()}
            raise Problem(error.code, document, headers) from None

    def _poll(self, url: str, unfinished: set[str]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while True:
            body = self.post(url, None).json
            if body["status"] not in unfinished or time.monotonic() > deadline:
                return body
            time.sleep(0.1)


def make_csr(*names: str) -> bytes:
    """A DER CSR under a new P-256 key."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
