"""Drives lacme, the library of the Python index."""

import asyncio
from importlib.metadata import version
from ipaddress import ip_address

from job import HOST, IP, JOB, did, dns_value, end, keep, put_dns, put_http
from lacme import Client


class Http:
    async def provision(self, _domain: str, token: str, key_authorization: str) -> None:
        put_http(token, key_authorization)

    async def deprovision(self, domain: str, token: str) -> None:
        pass


class Dns:
    async def provision(self, domain: str, _token: str, key_authorization: str) -> None:
        put_dns(f"_acme-challenge.{domain.removeprefix('*.')}", dns_value(key_authorization))

    async def deprovision(self, domain: str, token: str) -> None:
        pass


async def main() -> None:
    client = Client(
        directory_url=JOB["directory"],
        contact="mailto:hostmaster@example.test",
        challenge_handler=Http(),
        poll_interval=0.2,
        eab_kid=JOB["eab"]["kid"],
        eab_hmac_key=JOB["eab"]["hmac_key"],
        ca_bundle=JOB["root"],
    )
    async with client:
        await client.create_account()
        did("EAB")
        keep("issue", (await client.issue(HOST)).fullchain_pem)
        await client.rollover_key()
        did("key roll")
        renewed = (await client.issue(HOST)).fullchain_pem
        keep("renew", renewed)
        name = f"*.w.{HOST}"
        keep("wildcard", (await client.issue(name, challenge_map={name: ("dns-01", Dns())})).fullchain_pem)
        keep("IP", (await client.issue(ip_address(IP))).fullchain_pem)
        await client.revoke(renewed)
        keep("revoke", renewed)
    end(version("lacme"))


asyncio.run(main())
