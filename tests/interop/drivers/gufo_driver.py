"""Drives Gufo ACME: its own HTTP client, keys of josepy."""

import asyncio
from importlib.metadata import version

from cryptography.hazmat.primitives.serialization import Encoding
from gufo.acme.clients.base import AcmeClient
from gufo.acme.types import AcmeChallenge, ExternalAccountBinding
from gufo.http.async_client import HttpClient
from job import HOST, JOB, csr, did, dns_value, end, keep, put_dns, put_http


class Client(AcmeClient):
    kind = "http-01"

    def _get_client(self, auth: object = None) -> HttpClient:
        # It trusts a list of its own and takes no other: whether our chain is right the other clients see.
        return HttpClient(headers={"User-Agent": self._user_agent.encode()}, auth=auth, validate_cert=False)

    async def fulfill_http_01(self, domain: str, challenge: AcmeChallenge) -> bool:
        put_http(challenge.token, self.get_key_authorization(challenge).decode())
        return self.kind == "http-01"

    async def fulfill_dns_01(self, domain: str, challenge: AcmeChallenge) -> bool:
        value = dns_value(self.get_key_authorization(challenge).decode())
        put_dns(f"_acme-challenge.{domain.removeprefix('*.')}", value)
        return self.kind == "dns-01"


async def obtain(client: Client, name: str) -> bytes:
    return await client.sign(name, csr(name).public_bytes(Encoding.PEM))


async def main() -> None:
    async with Client(JOB["directory"], key=AcmeClient.get_key()) as client:
        binding = ExternalAccountBinding(JOB["eab"]["kid"], AcmeClient.decode_auto_base64(JOB["eab"]["hmac_key"]))
        await client.new_account("hostmaster@example.test", external_binding=binding)
        did("EAB")
        keep("issue", await obtain(client, HOST))
        keep("renew", await obtain(client, HOST))
        client.kind = "dns-01"
        keep("wildcard", await obtain(client, f"*.w.{HOST}"))
    end(version("gufo-acme"))


asyncio.run(main())
