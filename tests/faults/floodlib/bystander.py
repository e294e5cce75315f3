"""Somebody who wants a certificate while others attack, and whose status others look up."""

import urllib.request
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from interoplib.acme import AcmeClient, Answer, make_csr
from interoplib.server import Server

_PATIENCE = 30.0


class Bystander:
    """A client of a staging CA, whose challenges are valid at once; each step is a connection of its own."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._client = AcmeClient(server.directory, server.root).register()
        self._issuing = x509.load_pem_x509_certificate(server.issuing.read_bytes())
        self._issued = 0

    @property
    def account_url(self) -> str:
        return self._client.account_url

    def post(self, url: str, payload: dict[str, object] | None) -> Answer:
        return self._client.post(url, payload)

    def issue(self) -> x509.Certificate:
        """All the way from a new order to the certificate."""
        self._issued += 1
        name = f"bystander-{self._issued}.flood.test"
        order = self._client.new_order(name)
        challenge, _ = self._client.challenge(order.body["authorizations"][0], "http-01")
        self._client.answer_challenge(challenge)
        assert self._client.wait_for_authorization(order.body["authorizations"][0])["status"] == "valid"
        self._client.finalize(order, make_csr(name))
        self._client.wait_for_order(order)
        return self._client.certificate(order)[0]

    def look_up(self, certificate: x509.Certificate) -> None:
        """Ask OCSP and CRL of it."""
        request = ocsp.OCSPRequestBuilder().add_certificate(certificate, self._issuing, hashes.SHA256()).build()
        media_type = {"Content-Type": "application/ocsp-request"}
        post = partial(urllib.request.Request, headers=media_type)
        answer = self._open(post(f"{self._server.http_url}/ocsp", request.public_bytes(Encoding.DER)))
        assert ocsp.load_der_ocsp_response(answer).certificate_status is ocsp.OCSPCertStatus.GOOD
        x509.load_der_x509_crl(self._open(f"{self._server.http_url}/crl/root.crl"))

    def be_served(self) -> None:
        """A certificate, and its status."""
        self.look_up(self.issue())

    @staticmethod
    def _open(request: str | urllib.request.Request) -> bytes:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as response:
            return bytes(response.read())
