"""An ACME client (RFC 8555) that does as little as it can: one account, one kept connection."""

import asyncio
import hmac
import json
import ssl
from base64 import urlsafe_b64decode
from collections.abc import Sequence
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec

from benchlib.enrollment import AddressCsrMaker, CsrMaker, b64url, es256
from benchlib.https import Answer, Connection
from benchlib.responders import Responder

_POLL = 0.005
_POLLS = 2000


class FailedError(Exception):
    """An issuance did not come to a certificate; counted by status and problem."""


class AcmeClient:
    """`bad_nonces` counts badNonce answers, each of which was sent again."""

    def __init__(self, directory: str, context: ssl.SSLContext, responder: Responder | None = None) -> None:
        """With a responder certificates are for addresses, and validated; else any challenge is said to be met."""
        self._url = urlsplit(directory)
        self._context = context
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._responder = responder
        self._csrs = CsrMaker() if responder is None else AddressCsrMaker(responder.address)
        self._kind = "dns" if responder is None else "ip"
        self._thumbprint = ""
        self._nonce = ""
        self._kid = ""
        self._entries: dict[str, str] = {}
        self._connection: Connection
        self.bad_nonces = 0
        self.requests = 0

    async def register(self, external: Sequence[str] = ()) -> None:
        """Connect and make an account; with an external account key, its id and its secret, bound by it."""
        await self._connect()
        self._entries = json.loads((await self._connection.request(b"GET", self._url.path.encode())).body)
        head = await self._connection.request(b"GET", urlsplit(self._entries["newNonce"]).path.encode())
        self._nonce = head.header(b"replay-nonce")
        point = self._key.public_key().public_numbers()
        x, y = (b64url(value.to_bytes(32, "big")) for value in (point.x, point.y))
        jwk = {"crv": "P-256", "kty": "EC", "x": x, "y": y}
        self._thumbprint = b64url(sha256(json.dumps(jwk, separators=(",", ":")).encode()).digest())
        wanted: dict[str, Any] = {"termsOfServiceAgreed": True}
        if external:
            wanted["externalAccountBinding"] = self._binding(jwk, *external)
        answer = await self._post(self._entries["newAccount"], wanted, jwk=jwk)
        self._kid = answer.header(b"location")

    def _binding(self, jwk: dict[str, str], kid: str, secret: str) -> dict[str, str]:
        """RFC 8555 section 7.3.4."""
        protected = b64url(json.dumps({"alg": "HS256", "kid": kid, "url": self._entries["newAccount"]}).encode())
        payload = b64url(json.dumps(jwk).encode())
        mac = hmac.digest(urlsafe_b64decode(secret + "=="), f"{protected}.{payload}".encode(), "sha256")
        return {"protected": protected, "payload": payload, "signature": b64url(mac)}

    async def _connect(self) -> None:
        assert self._url.hostname
        self._connection = await Connection.open(self._url.hostname, self._url.port or 443, self._context)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    async def issue(self) -> None:
        """One issuance from newOrder to the certificate's bytes. FailedError, ConnectionError."""
        name = self._csrs.name()
        answer = await self._post(self._entries["newOrder"], {"identifiers": [{"type": self._kind, "value": name}]})
        order, where = json.loads(answer.body), answer.header(b"location")
        for url in order["authorizations"]:
            authorization = json.loads((await self._post(url)).body)
            if authorization["status"] == "valid":
                continue
            wanted = "http-01" if self._responder is None else self._responder.kind
            challenge = next(item for item in authorization["challenges"] if item["type"] == wanted)
            if self._responder is not None:
                self._responder.put(name, challenge["token"], self._thumbprint)
            answered = json.loads((await self._post(challenge["url"], {})).body)
            if answered["status"] != "valid":
                await self._poll(url, "valid")
        final = json.loads((await self._post(order["finalize"], {"csr": b64url(self._csrs.csr(name))})).body)
        if final["status"] != "valid":
            final = await self._poll(where, "valid")
        chain = (await self._post(final["certificate"])).body
        if b"BEGIN CERTIFICATE" not in chain:
            raise FailedError("no certificate")

    async def _poll(self, url: str, wanted: str) -> Any:
        for _ in range(_POLLS):
            found = json.loads((await self._post(url)).body)
            if found["status"] == wanted:
                return found
            if found["status"] == "invalid":
                break
            await asyncio.sleep(_POLL)
        raise FailedError(f"{found['status']}, not {wanted}")

    async def _post(self, url: str, payload: object = None, jwk: dict[str, str] | None = None) -> Answer:
        text = b64url(b"" if payload is None else json.dumps(payload).encode())
        signer: dict[str, Any] = {"kid": self._kid} if jwk is None else {"jwk": jwk}
        while True:
            header = {"alg": "ES256", "nonce": self._nonce, "url": url} | signer
            protected = b64url(json.dumps(header).encode())
            signature = b64url(es256(self._key, f"{protected}.{text}".encode()))
            body = f'{{"protected":"{protected}","payload":"{text}","signature":"{signature}"}}'.encode()
            self.requests += 1
            answer = await self._connection.request(b"POST", urlsplit(url).path.encode(), body)
            self._nonce = answer.header(b"replay-nonce")
            if answer.status < 400:
                return answer
            if b":badNonce" not in answer.body:
                kind = json.loads(answer.body).get("type", "").rpartition(":")[2] if answer.body else ""
                raise FailedError(f"{answer.status} {kind}".strip())
            self.bad_nonces += 1
