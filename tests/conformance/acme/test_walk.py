"""A walk from the directory to whatever it leads to: no URL and no field that does not work (RFC 8555 section 7.1)."""

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import acme_errors
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from other_ca import OtherCa, der

from ca_server.core.cross import CrossCertificates
from ca_server.core.ports import ImportCrossCertificate
from ca_server.store.audit import SqlAuditStore
from ca_server.store.issuers import SqlIssuerStore
from protocols.acme.certid import certid_of
from protocols.acme.problems import ErrorType
from protocols.acme.star.offering import StarOptions

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
ENTRIES = {
    "newNonce": {"GET", "HEAD"},
    "newAccount": {"POST"},
    "newOrder": {"POST"},
    "newAuthz": {"POST"},
    "revokeCert": {"POST"},
    "keyChange": {"POST"},
    "renewalInfo": set(),
}
"""What the directory names, with the methods that are for it; renewalInfo is where other URLs begin."""
META = {
    "termsOfService": "https://terms.test/1",
    "website": "https://ca.test/",
    "caaIdentities": ["ca.test"],
    "externalAccountRequired": True,
    "issuerDomainNames": ["ca.test"],
    "accountHashPrefix": "https://ca.example.test:8443/acme/account-hash/",
    "subdomainAuthAllowed": True,
    "profiles": {name: f"profile {name}" for name in ("default", "held", "holdable", "short")},
    "auto-renewal": {"min-lifetime": 86_400, "max-duration": 34_560_000, "allow-certificate-get": True},
}
NOT_CALLED = {META["termsOfService"], META["website"], META["accountHashPrefix"]}
"""Pages of others, and what names in records begin with (draft-ietf-acme-dns-persist section 4.2)."""
CHALLENGES = {"http-01", "dns-01", "dns-account-01", "dns-persist-01", "tls-alpn-01"}


def urls_in(value: object) -> Iterator[str]:
    """Every URL in a JSON value."""
    if isinstance(value, dict):
        for each in value.values():
            yield from urls_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from urls_in(each)
    elif isinstance(value, str) and re.match("https?://", value):
        yield value


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Walk:
    """Calls URLs, remembers which, and what others the answers named."""

    def __init__(self, world, client, external):
        self.world, self.client, self.external = world, client, external
        self.called: dict[str, set[str]] = {}
        self.named: set[str] = set()

    def heard(self, answer, url, *methods):
        assert answer.status < 300, (url, answer.status, answer.body)
        self.called.setdefault(url, set()).update(methods)
        if answer.body and answer.headers["Content-Type"] == "application/json":
            self.named |= set(urls_in(answer.json))
        for link in answer.headers.getall("Link", []):
            self.named.add(link.partition(">")[0].removeprefix("<"))
        self.named |= {answer.headers["Location"]} if "Location" in answer.headers else set()
        return answer

    async def get(self, url):
        answer = self.heard(await self.world.send("GET", url), url, "GET")
        head = self.heard(await self.world.send("HEAD", url), url, "HEAD")
        changing = {"Date", "Replay-Nonce", "X-Request-Id", "Content-Length", "Content-Type"}
        assert {name for name in head.headers if name not in changing} == {
            name for name in answer.headers if name not in changing
        }
        return answer

    async def post(self, url, payload=None, **changes):
        return self.heard(await self.client.post(url, payload, **changes), url, "POST")

    async def other_methods(self):
        for url, allowed in self.called.items():
            for method in METHODS:
                if method in allowed:
                    continue
                refused = await self.world.send(method, url)
                assert refused.status == 405, (method, url)
                assert refused.headers["Allow"] == ", ".join(sorted(allowed)), url
                if method != "HEAD":
                    assert refused.problem == "malformed", (method, url)

    async def account(self, directory, binding):
        """A new account: what the directory's meta says of it is so. Its orders' URL."""
        client, url = self.client, directory["newAccount"]
        by_key = {"kid": None, "jwk": client.key.jwk}
        assert (await client.post(url, {"termsOfServiceAgreed": True}, **by_key)).problem == "externalAccountRequired"
        kid, secret = await self.world.eab()
        bound = {"externalAccountBinding": binding(client.key.jwk, url, kid, secret)}
        assert (await client.post(url, bound, **by_key)).problem == "userActionRequired"
        made = await self.post(url, {"termsOfServiceAgreed": True} | bound, **by_key)
        client.kid = made.headers["Location"]
        await self.post(client.kid, {"contact": ["mailto:a@ca.test"]})
        return (await self.post(client.kid)).json["orders"]

    async def authorize(self, url):
        """Every challenge that an authorization offers; one of them answered. The types."""
        authorization = (await self.post(url)).json
        for challenge in authorization["challenges"]:
            assert (await self.post(challenge["url"])).json == challenge
        kind = "dns-01" if authorization.get("wildcard") else "http-01"
        await self.post((await self.client.challenge(url, kind))["url"], {})
        assert (await self.client.poll(url, "pending"))["status"] == "valid"
        await self.post(url)
        return {challenge["type"] for challenge in authorization["challenges"]}

    async def certificate(self, order, request):
        """Finalize; the leaf."""
        place = order.headers["Location"]
        await self.post(place)
        await self.post(order.json["finalize"], {"csr": encode(request)})
        chain = await self.post((await self.client.poll(place, "processing"))["certificate"])
        await self.chains(chain)
        return x509.load_pem_x509_certificate(chain.body)

    async def chains(self, first):
        """The URLs of the chain that the first answer is not, and of that one among its alternates."""
        (alternate,) = first.links("alternate")
        (back,) = (await self.post(alternate)).links("alternate")
        assert (await self.post(back)).body == first.body
        return alternate, back

    async def rolling_certificate(self, directory, request):
        """An order that renews itself, with its certificate as its account and as anybody gets it, and its end."""
        end = (datetime.now(UTC) + timedelta(days=20)).isoformat()
        terms = {"end-date": end, "lifetime": 345_600, "allow-certificate-get": True}
        wanted = {"identifiers": [{"type": "dns", "value": "a.test"}], "profile": "default", "auto-renewal": terms}
        order = await self.post(directory["newOrder"], wanted)
        await self.authorize(*order.json["authorizations"])
        place = order.headers["Location"]
        await self.post(order.json["finalize"], {"csr": encode(request)})
        url = (await self.client.poll(place, "processing"))["star-certificate"]
        for each in (url, *await self.chains(await self.post(url))):
            await self.get(each)
        assert (await self.post(place, {"status": "canceled"})).json["status"] == "canceled"

    async def change_key(self, url, new):
        client, old = self.client, self.client.key
        client.key = new
        payload = {"account": client.kid, "oldKey": old.jwk}
        inner = await client.jws(url, payload, nonce=None, kid=None, jwk=new.jwk)
        client.key = old
        await self.post(url, inner)
        client.key = new


@pytest.fixture
async def walk(world, external, new_client, profiles):
    """A walk through a server on which all that can be switched on is on."""
    changed = profiles["default"].replace("[names]", "[names]\nallow_subdomain_authorization = true")
    await world.put_in_force(profiles | {"default": changed})
    options = replace(
        world.options,
        challenges=tuple(sorted(CHALLENGES)),
        validation=replace(world.options.validation, issuer_domain_names=tuple(META["issuerDomainNames"])),
        require_eab=META["externalAccountRequired"],
        terms_of_service=META["termsOfService"],
        website=META["website"],
        caa_identities=tuple(META["caaIdentities"]),
        star=StarOptions(frozenset({"default"}), timedelta(days=1), timedelta(days=400)),
    )
    issuers = SqlIssuerStore(world.database)
    (issuing,) = [each.key.certificate_der for each in await issuers.issuers() if each.name == "issuing"]
    other = OtherCa("Other Root")
    signed = ImportCrossCertificate("issuing", der(other.cross_sign(issuing)), (der(other.root),))
    cross = CrossCertificates(issuers, world.token, SqlAuditStore(world.database), world.events("core"))
    await cross.take_in(signed, "uid:0")
    await world.serve(options)
    return Walk(world, new_client(world), external)


async def test_fact_25_whatever_the_directory_leads_to_works(walk, world, external, csr, binding, new_key):
    directory = (await walk.get(f"{external}/acme/directory")).json
    meta = directory.pop("meta")
    assert set(directory) == set(ENTRIES), "walk what is new, too"
    assert meta == META, "walk what is new, too"
    walk.named -= NOT_CALLED | {directory["renewalInfo"]}
    await walk.get(directory["newNonce"])
    orders = await walk.account(directory, binding)

    world.resolve("a.test", "b.test")
    identifiers = [{"type": "dns", "value": name} for name in ("a.test", "*.b.test")]
    below = identifiers[0] | {"subdomainAuthAllowed": True}
    asked = await walk.post(directory["newAuthz"], {"identifier": below})
    assert asked.json["subdomainAuthAllowed"]
    for challenge in asked.json["challenges"]:
        await walk.post(challenge["url"])
    await walk.post(asked.headers["Location"], {"status": "deactivated"})
    order = await walk.post(directory["newOrder"], {"identifiers": identifiers})
    offered = [await walk.authorize(url) for url in order.json["authorizations"]]
    assert set().union(*offered) == CHALLENGES, "walk what is new, too"
    leaf = await walk.certificate(order, csr("a.test", "*.b.test"))
    assert order.headers["Location"] in (await walk.post(orders)).json["orders"]
    information = await walk.get(f"{directory['renewalInfo']}/{certid_of(leaf)}")
    assert set(information.json) == {"suggestedWindow"}

    await walk.rolling_certificate(directory, csr("a.test"))
    await walk.change_key(directory["keyChange"], new_key())
    revocation = {"certificate": encode(leaf.public_bytes(Encoding.DER)), "reason": 4}
    await walk.post(directory["revokeCert"], revocation)
    assert (await walk.client.post(directory["revokeCert"], revocation)).problem == "alreadyRevoked"

    assert walk.named - set(walk.called) == set(), "no answer names a URL that was not called"
    for name, methods in ENTRIES.items():
        assert walk.called.get(directory[name], set()) == methods, name
    await walk.other_methods()
    await walk.post(walk.client.kid, {"status": "deactivated"})


def test_every_error_type_is_registered_or_asked_for():
    assert {each.value for each in ErrorType} <= acme_errors.KNOWN
