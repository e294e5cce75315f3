"""What stands around a CA under test, and the whole way from an account to a certificate."""

from dataclasses import dataclass
from pathlib import Path

from interoplib.acme import AcmeClient, Order, make_csr
from interoplib.commands import told
from interoplib.dns import NameServer
from interoplib.server import Server
from interoplib.web import ChallengeServer


@dataclass
class Surroundings:
    """What stands around the CA: the name server, and the ports on which challenges are answered."""

    dns: NameServer
    http_01_port: int
    tls_alpn_01_port: int = 443

    @property
    def settings(self) -> tuple[str, ...]:
        return (
            f"acme.http_01_port={self.http_01_port}",
            f"acme.tls_alpn_01_port={self.tls_alpn_01_port}",
            f"dns.nameservers={self.dns.address}",
        )


@dataclass
class Enrollment:
    """An account at a CA with the means to answer its challenges."""

    client: AcmeClient
    web: ChallengeServer
    dns: NameServer

    def bound_by(self, server: Server, *policy: str) -> tuple["Enrollment", str]:
        """Another account at the same place, let in by a new external account key; with the key's id."""
        made = told(server, "eab", "create", *policy)
        client = AcmeClient(server.directory, server.root).register((made["kid"], made["hmac_key"]))
        return Enrollment(client, self.web, self.dns), made["kid"]

    def authorize(self, order: Order, kind: str = "http-01", *, wait: bool = True) -> None:
        for name, url in zip(order.body["identifiers"], order.body["authorizations"], strict=True):
            challenge, key_authorization = self.client.challenge(url, kind)
            if kind == "http-01":
                self.web.put(challenge["token"], key_authorization)
            else:
                self.dns.add(f"_acme-challenge.{name['value']}", self.client.dns_value(key_authorization))
            self.client.answer_challenge(challenge)
        if wait:
            for url in order.body["authorizations"]:
                answer = self.client.wait_for_authorization(url)
                assert answer["status"] == "valid", answer

    def certificate(self, folder: Path, *names: str) -> Path:
        """The whole way to a certificate; the path of the leaf as PEM."""
        order = self.client.new_order(*names)
        self.authorize(order)
        self.client.finalize(order, make_csr(*names))
        self.client.wait_for_order(order)
        assert order.status == "valid", order.body
        file = folder / f"{names[0]}.pem"
        file.write_bytes(self.client.post(order.body["certificate"], None).body)
        return file
