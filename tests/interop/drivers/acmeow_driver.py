"""Drives acmeow: a synchronous client over requests."""

from importlib.metadata import version

from acmeow import AcmeClient, ChallengeType, Identifier, KeyType
from acmeow.handlers import CallbackDnsHandler, CallbackHttpHandler, CallbackTlsAlpnHandler
from job import HOST, IP, JOB, did, end, keep, put_dns, put_http, put_tls

HTTP = CallbackHttpHandler(lambda _domain, token, text: put_http(token, text), lambda _domain, _token: None)
DNS = CallbackDnsHandler(lambda _domain, name, value: put_dns(name, value), lambda _domain, _name: None, 0)
TLS = CallbackTlsAlpnHandler(put_tls, lambda _domain: None)


def obtain(client: AcmeClient, handler: object, kind: ChallengeType, *names: str) -> str:
    client.create_order([Identifier.ip(name) if name == IP else Identifier.dns(name) for name in names])
    client.complete_challenges(handler, kind, verify_dns=False)
    client.finalize_order(KeyType.EC256)
    return client.get_certificate()[0]


client = AcmeClient(JOB["directory"], "hostmaster@example.test", JOB["folder"] + "/acmeow", verify_ssl=JOB["root"])
client.set_external_account_binding(JOB["eab"]["kid"], JOB["eab"]["hmac_key"])
client.create_account()
did("EAB")
keep("issue", obtain(client, HTTP, ChallengeType.HTTP, HOST))
client.key_rollover()
did("key roll")
renewed = obtain(client, HTTP, ChallengeType.HTTP, HOST)
keep("renew", renewed)
keep("tls-alpn-01", obtain(client, TLS, ChallengeType.TLS_ALPN, f"t.{HOST}"))
keep("wildcard", obtain(client, DNS, ChallengeType.DNS, f"*.w.{HOST}"))
keep("IP", obtain(client, HTTP, ChallengeType.HTTP, IP))
client.revoke_certificate(renewed)
keep("revoke", renewed)
end(version("acmeow"))
