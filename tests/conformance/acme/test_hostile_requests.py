"""Whatever a client sends, it gets what it asked for or a problem document of a registered type, and never a 5xx.

Requests are those of a client with an account, changed anywhere and, unless that is what is changed, signed as they
should be: what gets behind the signature is what matters.
"""

import asyncio
import base64
import copy
import json
from dataclasses import replace
from datetime import timedelta

import acme_errors
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols.acme.star.offering import StarOptions

ONE_DATABASE = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
BOUNDED = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)

TEXTS = st.text(max_size=24) | st.sampled_from(
    [
        "",
        "a.test",
        "*.a.test",
        "dns",
        "ip",
        "127.0.0.1",
        "::1",
        "valid",
        "deactivated",
        "canceled",
        "A" * 5000,
        "\ud800",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """The path to each value in a JSON value."""
    yield path
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list):
        for number in range(len(value)):
            yield from places(value[number], (*path, number))


@st.composite
def changed(draw, value):
    """A JSON value with up to three values in it replaced, left out or added to."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            if isinstance(value, dict):
                value[draw(TEXTS)] = draw(VALUES)
            else:
                value = draw(VALUES)
            continue
        above = value
        for step in path[:-1]:
            above = above[step]
        how = draw(st.sampled_from(["replace", "replace", "replace by any", "leave out", "more"]))
        if how == "leave out":
            del above[path[-1]]
        elif how == "more" and isinstance(above, list):
            above.extend([above[path[-1]]] * draw(st.sampled_from([1, 300])))
        else:
            # A text for a text gets further than a list would.
            like = TEXTS if isinstance(above[path[-1]], str) and how == "replace" else VALUES
            above[path[-1]] = draw(like)
    return value


@pytest.fixture
async def asked(world, external, csr, binding, new_key):
    """Requests that are good, as (URL, payload, signed by a key of its own), and the client that sends them."""
    world.resolve("a.test")
    star = StarOptions(frozenset({"default"}), timedelta(days=1), timedelta(days=400))
    kinds = ("http-01", "dns-01", "dns-account-01", "dns-persist-01", "tls-alpn-01")
    validation = replace(world.options.validation, issuer_domain_names=("ca.test",))
    await world.serve(replace(world.options, star=star, challenges=kinds, validation=validation))
    client = await world.client()
    pending = await client.order("a.test", "127.0.0.1")
    done = await client.ready("a.test")
    valid = (await client.finalize(done, csr("a.test"))).json
    der = (await client.post(valid["certificate"])).body
    (authorization, *_) = pending.json["authorizations"]
    challenges = [each["url"] for each in (await client.post(authorization)).json["challenges"]]
    names = [{"type": "dns", "value": "a.test"}, {"type": "ip", "value": "127.0.0.1"}]
    terms = {
        "end-date": "2030-01-01T00:00:00Z",
        "lifetime": 345_600,
        "lifetime-adjust": 1,
        "allow-certificate-get": True,
    }
    base = f"{external}/acme"
    kid, secret = await world.eab()
    fresh = new_key()
    bound = binding(fresh.jwk, f"{base}/new-account", kid, secret)
    account = {
        "contact": ["mailto:a@ca.test"],
        "termsOfServiceAgreed": True,
        "onlyReturnExisting": False,
        "externalAccountBinding": bound,
    }
    order = {"identifiers": names, "notBefore": "2030-01-01T00:00:00Z", "notAfter": "2030-01-02T00:00:00Z"}
    order |= {"replaces": "AAAA.AAAA", "profile": "default", "auto-renewal": terms}
    inner = await client.jws(f"{base}/key-change", {"account": client.kid, "oldKey": client.key.jwk}, nonce=None)
    good = [
        (f"{base}/new-account", account, True),
        (f"{base}/new-order", order, False),
        (f"{base}/new-order", {"identifiers": names}, False),
        (f"{base}/new-authz", {"identifier": names[0] | {"subdomainAuthAllowed": True}}, False),
        (f"{base}/key-change", inner, False),
        (f"{base}/revoke-cert", {"certificate": der.decode()[:2000], "reason": 1}, False),
        (f"{base}/revoke-cert", {"certificate": "MIIB", "reason": 1}, True),
        (client.kid, {"contact": ["mailto:a@ca.test"], "status": "valid"}, False),
        (f"{client.kid}/orders?after={'a' * 8}", None, False),
        (done.headers["Location"], {"status": "canceled"}, False),
        (pending.json["finalize"], {"csr": "MIIB"}, False),
        (done.json["finalize"], {"csr": "MIIB"}, False),
        (authorization, {"status": "valid"}, False),
        *[(each, {"attObj": "o2NmbXQ", "error": "x"}, False) for each in challenges],
        (valid["certificate"], None, False),
    ]
    return client, fresh, good


def checked(answer):
    """A success, or a problem that tells the client what it did wrong."""
    assert answer.status < 500, answer.body
    if answer.status >= 400:
        assert answer.problem in acme_errors.KNOWN, answer.body
        assert answer.json["detail"]
    return answer


async def in_turn(sending, strategy, examples):
    """Run a property over a coroutine function: Hypothesis in a thread, what it draws in this loop."""
    loop = asyncio.get_running_loop()

    @settings(BOUNDED, max_examples=examples)
    @given(strategy)
    def each(drawn):
        asyncio.run_coroutine_threadsafe(sending(drawn), loop).result(60)

    await asyncio.to_thread(each)


def b64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(key, header, payload):
    """A JWS of any header and payload."""
    protected = b64url(json.dumps(header).encode())
    body = b64url(payload if isinstance(payload, bytes) else json.dumps(payload).encode())
    return {"protected": protected, "payload": body, "signature": b64url(key.sign(f"{protected}.{body}".encode()))}


async def still_works(client):
    order = await client.order("a.test")
    assert order.status == 201, order.body


@ONE_DATABASE
async def test_any_payload_that_is_signed(world, asked):
    client, fresh, good = asked
    payloads = st.sampled_from([each for each in good if each[1] is not None]).flatmap(
        lambda each: st.tuples(st.just(each), changed(each[1]) | VALUES | st.binary(max_size=40))
    )

    async def send(drawn):
        (url, _, by_key), payload = drawn
        key = client.key if not by_key else fresh
        header = {"alg": key.algorithm, "url": url, "nonce": await client.nonce()}
        header |= {"jwk": key.jwk} if by_key else {"kid": client.kid}
        checked(await client.send(url, signed(key, header, payload)))
        if url == client.kid:
            await world.execute("UPDATE acme_accounts SET status = 'valid'")

    await in_turn(send, payloads, 400)
    await still_works(client)


@ONE_DATABASE
async def test_any_header_that_is_signed(asked):
    client, _, good = asked

    @st.composite
    def requests(draw):
        url, payload, _ = draw(st.sampled_from(good))
        header = {"alg": client.key.algorithm, "url": url, "nonce": "NONCE", "kid": client.kid}
        return url, payload, draw(changed(header))

    async def send(drawn):
        url, payload, header = drawn
        if isinstance(header, dict) and header.get("nonce") == "NONCE":
            header["nonce"] = await client.nonce()
        checked(await client.send(url, signed(client.key, header, b"" if payload is None else payload)))

    await in_turn(send, requests(), 150)
    await still_works(client)


@ONE_DATABASE
async def test_any_body(asked):
    client, _, good = asked
    url, payload, _ = good[1]
    outer = await client.jws(url, payload)
    bodies = st.one_of(
        changed(outer).map(lambda value: json.dumps(value).encode()),
        VALUES.map(lambda value: json.dumps(value).encode()),
        st.binary(max_size=200),
        st.builds(
            lambda text, at: text[:at] + b"\xff" + text[at:], st.just(json.dumps(outer).encode()), st.integers(0, 99)
        ),
        st.just(b"[" * 100_000),
    )

    async def send(body):
        answer = checked(await client.send(url, body))
        assert answer.status >= 400 or json.loads(body)["signature"] == outer["signature"]

    await in_turn(send, bodies, 150)
    await still_works(client)


@ONE_DATABASE
async def test_any_url(world, asked, external):
    client, _, good = asked
    text = st.text(alphabet="abcdefABCDEF0123456789-_.~%/?&=+;:@!$'()*, \x01\xe4\u2028", max_size=30)
    urls = st.builds(
        lambda whole, cut, more: whole[: len(whole) - cut] + more,
        st.sampled_from([each[0] for each in good]),
        st.integers(0, 30),
        text,
    ).filter(lambda url: url.startswith(f"{external}/acme/"))
    methods = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])

    async def send(drawn):
        method, url = drawn
        answer = await world.send(method, url, b"{}" if method in {"POST", "PUT", "PATCH"} else None)
        assert answer.status < 500
        if answer.status >= 400 and method != "HEAD":
            assert answer.problem in acme_errors.KNOWN

    await in_turn(send, st.tuples(methods, urls), 150)
    await still_works(client)
