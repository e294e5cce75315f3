"""Drives aioacme: a client of asyncio over httpx."""

import asyncio
import base64
import ssl
from importlib.metadata import version

import aioacme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from job import HOST, IP, JOB, csr, did, dns_value, end, keep, put_dns, put_http


async def obtain(client: aioacme.Client, *names: str, kind: str = "http-01") -> bytes:
    identifiers = [
        aioacme.Identifier(name, aioacme.IdentifierType.ip if name == IP else aioacme.IdentifierType.dns)
        for name in names
    ]
    order = await client.new_order(identifiers)
    for url in order.authorizations:
        authorization = await client.get_authorization(url)
        if authorization.status is aioacme.AuthorizationStatus.valid:
            continue
        challenge = next(each for each in authorization.challenges if each.type.value == kind)
        key_authorization = f"{challenge.token}.{client._account_key_jwk_thumbprint}"
        put_http(challenge.token, key_authorization)
        if kind == "dns-01":
            put_dns(f"_acme-challenge.{authorization.identifier.value}", dns_value(key_authorization))
        await client.answer_challenge(challenge.url)
        while (await client.get_authorization(url)).status is aioacme.AuthorizationStatus.pending:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    order = await client.finalize_order(order.finalize, csr(*names))
    while order.status is aioacme.OrderStatus.processing:
        await asyncio.sleep(0.1)
        order = await client.get_order(order.uri)
    assert order.certificate is not None
    return await client.get_certificate(order.certificate)


async def main() -> None:
    binding = aioacme.ExternalAccountBinding(JOB["eab"]["kid"], base64.urlsafe_b64decode(JOB["eab"]["hmac_key"] + "=="))
    client = aioacme.Client(
        account_key=ec.generate_private_key(ec.SECP256R1()),
        directory_url=JOB["directory"],
        external_account_binding=binding,
        ssl=ssl.create_default_context(cafile=JOB["root"]),
    )
    async with client:
        await client.get_account()
        did("EAB")
        keep("issue", await obtain(client, HOST))
        await client.change_key(ec.generate_private_key(ec.SECP256R1()))
        did("key roll")
        renewed = await obtain(client, HOST)
        keep("renew", renewed)
        keep("wildcard", await obtain(client, f"*.w.{HOST}", f"w.{HOST}", kind="dns-01"))
        keep("IP", await obtain(client, IP))
        await client.revoke_certificate(x509.load_pem_x509_certificates(renewed)[0])
        keep("revoke", renewed)
    end(version("aioacme"))


asyncio.run(main())
