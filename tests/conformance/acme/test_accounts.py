"""RFC 8555 section 7.3."""

import asyncio
import base64
from dataclasses import replace

import pytest

from ca_server.core.ports import DisableEab, RevokeAccount
from ca_server.domain.errors import CaError
from ca_server.store.acme import SqlAcmeStore


async def test_fact_08_new_and_existing(world, new_client):
    client = new_client(world)
    created = await client.register(contact=["mailto:admin@a.test"])
    assert created.status == 201
    assert created.json["status"] == "valid"
    assert created.json["contact"] == ["mailto:admin@a.test"]
    assert created.json["orders"] == f"{client.kid}/orders"
    again = await client.register(contact=["mailto:other@a.test"])
    assert (again.status, again.headers["Location"]) == (200, created.headers["Location"])
    assert again.json["contact"] == ["mailto:admin@a.test"]
    found = await client.register(onlyReturnExisting=True)
    assert (found.status, found.headers["Location"]) == (200, created.headers["Location"])
    assert [event["actor"] for event in await world.audit("account.created")] == [
        f"acme:{client.kid.rpartition('/')[2]}"
    ]


async def test_fact_08_only_return_existing(world, new_client):
    client = new_client(world)
    answer = await client.register(onlyReturnExisting=True)
    assert (answer.status, answer.problem) == (400, "accountDoesNotExist")
    assert await world.count("acme_accounts") == 0


async def test_one_key_has_one_account(world, new_client):
    client = new_client(world)
    url = f"{client.base}/new-account"
    signed = [await client.jws(url, {}) for _ in range(20)]
    answers = await asyncio.gather(*(client.send(url, jws) for jws in signed))
    assert sorted(answer.status for answer in answers) == [200] * 19 + [201]
    assert len({answer.headers["Location"] for answer in answers}) == 1


async def test_fact_09_contacts(world):
    client = await world.client()
    assert (await client.post(client.kid, {"contact": ["mailto:a@a.test"]})).json["contact"] == ["mailto:a@a.test"]
    assert (await client.post(client.kid, {})).json["contact"] == ["mailto:a@a.test"]
    assert not (await client.post(client.kid, {"contact": []})).json.get("contact")
    assert not (await client.post(client.kid)).json.get("contact")


@pytest.mark.parametrize(
    ("contact", "problem"),
    [
        ("tel:+123", "unsupportedContact"),
        ("https://a.test", "unsupportedContact"),
        ("mailto:", "invalidContact"),
        ("mailto:a", "invalidContact"),
        ("mailto:a@a.test,b@a.test", "invalidContact"),
        ("mailto:a@a.test?subject=x", "invalidContact"),
    ],
)
async def test_fact_09_contacts_that_are_refused(world, new_client, contact, problem):
    client = new_client(world)
    answer = await client.register(contact=[contact])
    assert (answer.status, answer.problem) == (400, problem)
    assert await world.count("acme_accounts") == 0


async def test_too_many_contacts(world, new_client):
    answer = await new_client(world).register(contact=[f"mailto:{n}@a.test" for n in range(50)])
    assert answer.status == 400


async def test_terms_of_service(world, new_client, external):
    await world.serve(replace(world.options, terms_of_service="https://ca.example.test/terms"))
    directory = (await world.send("GET", f"{external}/acme/directory")).json
    assert directory["meta"]["termsOfService"] == "https://ca.example.test/terms"
    client = new_client(world)
    assert (await client.register(termsOfServiceAgreed=False)).problem == "userActionRequired"
    assert (await client.register()).json["termsOfServiceAgreed"] is True


TERMS, LATER_TERMS = "https://ca.example.test/terms", "https://ca.example.test/terms/2"


def is_told_to_agree(answer, terms):
    assert (answer.status, answer.problem) == (403, "userActionRequired")
    assert answer.json["instance"] == terms
    assert answer.links("terms-of-service") == [terms]
    return True


@pytest.mark.parametrize("before", [TERMS, ""])
async def test_terms_of_service_that_changed_are_agreed_to_anew(world, external, csr, before):
    world.resolve("a.test", "b.test")
    await world.serve(replace(world.options, terms_of_service=before))
    client = await world.client()
    assert (await client.post(client.kid)).json["termsOfServiceAgreed"] is True
    ready = await client.ready("a.test")
    await world.serve(replace(world.options, terms_of_service=LATER_TERMS), process="front-2")
    name = {"identifier": {"type": "dns", "value": "b.test"}}
    for _ in range(2):
        assert is_told_to_agree(await client.order("b.test"), LATER_TERMS)
        assert is_told_to_agree(await client.post(f"{external}/acme/new-authz", name), LATER_TERMS)
        shown = await client.post(client.kid, {"contact": ["mailto:a@a.test"], "termsOfServiceAgreed": False})
        assert (shown.status, "termsOfServiceAgreed" in shown.json) == (200, False)
    assert (await client.finalize(ready, csr("a.test"))).json["status"] == "valid", "what was begun is finished"
    agreed = await client.post(client.kid, {"termsOfServiceAgreed": True})
    assert (agreed.status, agreed.json["termsOfServiceAgreed"]) == (200, True)
    assert (await client.order("b.test")).status == 201
    assert (await client.post(f"{external}/acme/new-authz", name)).status == 201
    told = len(await world.audit("account.updated"))
    assert (await client.post(client.kid, {"termsOfServiceAgreed": True})).status == 200
    assert len(await world.audit("account.updated")) == told, "who has agreed agrees to nothing new"


async def test_terms_are_agreed_to_by_a_bound_account_too(world, new_client, binding):
    await world.serve(replace(world.options, terms_of_service=TERMS))
    client = new_client(world)
    assert is_told_to_agree(await client.register(termsOfServiceAgreed=False), TERMS)
    kid, secret = await world.eab()
    bound = binding(client.key.jwk, f"{client.base}/new-account", kid, secret)
    assert (await client.register(externalAccountBinding=bound)).json["termsOfServiceAgreed"] is True
    assert (await client.order("a.test")).status == 201


async def test_without_terms_nothing_is_asked(world, new_client):
    client = new_client(world)
    assert (await client.register(termsOfServiceAgreed=None)).status == 201
    assert "termsOfServiceAgreed" not in (await client.post(client.kid)).json
    assert (await client.order("a.test")).status == 201


async def test_weak_account_keys(world, new_client, new_key):
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = new_key("RS256")
    key.private = rsa.generate_private_key(65537, 1024)
    public = key.private.public_key().public_numbers()
    key.jwk["n"] = base64.urlsafe_b64encode(public.n.to_bytes(128, "big")).rstrip(b"=").decode()
    answer = await new_client(world, key).register()
    assert (answer.status, answer.problem) == (400, "badPublicKey")
    point = new_key()
    point.jwk["y"] = point.jwk["x"]
    assert (await new_client(world, point).register()).problem == "badPublicKey"


async def test_fact_10_a_deactivated_account_can_do_nothing(world, csr):
    from cryptography.hazmat.primitives.asymmetric import ec

    world.resolve("a.test", "b.test")
    client = await world.client()
    key = ec.generate_private_key(ec.SECP256R1())
    (leaf, _) = await client.issue("a.test", csr=csr("a.test", key=key))
    pending = await client.order("b.test")
    answer = await client.post(client.kid, {"status": "deactivated"})
    assert (answer.status, answer.json["status"]) == (200, "deactivated")
    for url, payload in ((client.kid, None), (f"{client.base}/new-order", {}), (pending.headers["Location"], None)):
        refused = await client.post(url, payload)
        assert (refused.status, refused.problem) == (401, "unauthorized")
    again = await client.register()
    assert (again.status, again.problem) == (401, "unauthorized")
    states = await world.query("SELECT status FROM acme_authorizations")
    assert {row[0] for row in states} == {"deactivated"}
    assert len(await world.audit("account.deactivated")) == 1
    revoked = await revoke_with(world, leaf, key)
    assert revoked.status == 200


async def revoke_with(world, certificate, private):
    """Revoke with the certificate's own key."""
    from cryptography.hazmat.primitives.serialization import Encoding

    client = type(await world.client())(world)
    client.key.private = private
    point = private.public_key().public_numbers()
    for name in ("x", "y"):
        octets = getattr(point, name).to_bytes(32, "big")
        client.key.jwk[name] = base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
    der = base64.urlsafe_b64encode(certificate.public_bytes(Encoding.DER)).rstrip(b"=").decode()
    return await client.post(f"{client.base}/revoke-cert", {"certificate": der})


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
async def test_fact_11_external_account_binding(world, new_client, binding, external, alg):
    await world.serve(replace(world.options, require_eab=True))
    directory = (await world.send("GET", f"{external}/acme/directory")).json
    assert directory["meta"]["externalAccountRequired"] is True
    client = new_client(world)
    url = f"{client.base}/new-account"
    assert (await client.register()).problem == "externalAccountRequired"
    kid, hmac_key = await world.eab()
    bound = binding(client.key.jwk, url, kid, hmac_key, alg)
    created = await client.register(externalAccountBinding=bound)
    assert created.status == 201
    assert created.json["externalAccountBinding"] == bound
    assert (await client.register(externalAccountBinding=bound)).status == 200
    other = new_client(world)
    refused = await other.register(externalAccountBinding=binding(other.key.jwk, url, kid, hmac_key))
    assert refused.problem == "unauthorized", "the key was for one account"
    assert await world.count("acme_accounts") == 1
    assert len(await world.audit("eab.used")) == 1


@pytest.mark.parametrize(
    "fault", ["mac", "kid", "url", "jwk", "nonce", "algorithm", "expired", "disabled", "profile", "form"]
)
async def test_fact_11_bindings_that_are_refused(world, new_client, new_key, binding, fault):
    client = new_client(world)
    url = f"{client.base}/new-account"
    kid, secret = await world.eab(
        lifetime_seconds=-1 if fault == "expired" else None, profiles=("inside",) if fault == "profile" else ()
    )
    if fault == "disabled":
        await world.core.accounts.disable(DisableEab(kid), "uid:0")
    jws = binding(
        new_key().jwk if fault == "jwk" else client.key.jwk,
        f"{url}/" if fault == "url" else url,
        "nobody" if fault == "kid" else kid,
        "AAAA" if fault == "mac" else secret,
        **({"nonce": "AAAA"} if fault == "nonce" else {}),
    )
    if fault == "algorithm":
        jws = await client.jws(url, client.key.jwk)
    if fault == "form":
        jws = {"protected": 1}
    answer = await client.register(externalAccountBinding=jws)
    assert answer.status in {400, 403}
    assert answer.problem in {"unauthorized", "malformed", "badSignatureAlgorithm"}
    assert await world.count("acme_accounts") == 0
    assert (await world.query("SELECT sum(uses) FROM eab_keys"))[0][0] == 0


async def test_fact_11_a_key_for_one_profile_gives_no_other(world, new_client, binding, external):
    client = new_client(world, profile="short")
    kid, secret = await world.eab(profiles=("short",))
    url = f"{external}/acme/short/new-account"
    assert (await client.register(externalAccountBinding=binding(client.key.jwk, url, kid, secret))).status == 201
    assert (await client.order("a.short.test")).status == 201
    client.base = f"{external}/acme"
    refused = await client.order("a.test")
    assert (refused.status, refused.problem) == (403, "unauthorized")


async def test_accounts_of_others(world):
    first, second = await world.client(), await world.client()
    for url in (first.kid, f"{first.kid}/orders"):
        assert (await second.post(url)).status in {403, 404}


async def test_the_list_of_orders_in_pages(world):
    """RFC 8555 section 7.1.2.1: each page links to the next, and none twice."""
    client, other = await world.client(), await world.client()
    made = []
    for number in range(130):
        made.append((await client.order("a.test")).headers["Location"])
        if number == 60:
            await other.order("a.test")
    pages, url = [], f"{client.kid}/orders"
    while url:
        page = await client.post(url)
        pages.append(page.json["orders"])
        (url,) = page.links("next") or [None]
        assert url is None or url.startswith(f"{client.kid}/orders?")
    assert [len(page) for page in pages] == [100, 30]
    assert pages[0] + pages[1] == made, "oldest first"


async def test_a_page_after_an_order_that_was_forgotten(world):
    """An empty list would say that there are no more."""
    client = await world.client()
    forgotten, *made = [(await client.order("a.test")).headers["Location"] for _ in range(3)]
    gone = forgotten.rpartition("/")[2]
    assert (await client.post(f"{client.kid}/orders?after={gone}")).json["orders"] == made
    await SqlAcmeStore(world.database).forget_orders([gone])
    answer = await client.post(f"{client.kid}/orders?after={gone}")
    assert (answer.status, answer.problem) == (404, "malformed")
    assert (await client.post(f"{client.kid}/orders")).json["orders"] == made


async def test_cursors_that_no_server_gave(world):
    client, other = await world.client(), await world.client()
    own, theirs = [(await each.order("a.test")).headers["Location"] for each in (client, other)]
    for cursor in ("'%20OR%201=1", "", "%00", "a" * 65, "a.b", "%F0%9F%92%A9", "1%0D%0ALink:x"):
        answer = await client.post(f"{client.kid}/orders?after={cursor}")
        assert (answer.status, answer.problem) == (400, "malformed")
    for cursor in (theirs, "nobody", "x" * 64):
        answer = await client.post(f"{client.kid}/orders?after={cursor.rpartition('/')[2]}")
        assert (answer.status, answer.problem) == (404, "malformed")
    page = await client.post(f"{client.kid}/orders?after={own.rpartition('/')[2]}")
    assert (page.status, page.json, page.links("next")) == (200, {"orders": []}, [])
    assert (await client.post(f"{client.kid}/orders?before=x&after={own.rpartition('/')[2]}")).status == 200
    assert (await client.post(f"{client.kid}/orders")).json["orders"] == [own]


async def test_null_is_as_if_the_member_were_not_there(world, new_client):
    client = new_client(world)
    made = await client.register(contact=None, onlyReturnExisting=None, externalAccountBinding=None)
    assert (made.status, made.json["contact"]) == (201, [])
    assert (await client.post(client.kid, {"contact": ["mailto:a@a.test"]})).status == 200
    kept = await client.post(client.kid, {"contact": None, "status": None})
    assert (kept.status, kept.json["contact"]) == (200, ["mailto:a@a.test"])


async def test_an_update_may_name_the_status_that_stands(world):
    client = await world.client()
    changed = await client.post(client.kid, {"status": "valid", "contact": ["mailto:a@a.test"]})
    assert (changed.status, changed.json["status"], changed.json["contact"]) == (200, "valid", ["mailto:a@a.test"])
    assert (await client.post(client.kid, {"status": "revoked"})).problem == "malformed"


# --- Keys that are put on the blocklist later ---------------------------------------------------------------------


async def test_an_account_whose_key_was_blocked_signs_nothing_any_more(world, new_client, new_key, csr):
    world.resolve("a.test")
    client, stranger = await world.client(), await world.client()
    leaf = (await client.issue("a.test"))[0]
    ready = await client.ready("a.test")
    await world.block(client.key.spki_sha256)
    fresh = new_client(world, client.key)
    for answer in (
        await client.order("a.test"),
        await client.post(client.kid),
        await client.finalize(ready, csr("a.test")),
        await client.post(f"{client.base}/key-change", {}),
        await fresh.register(onlyReturnExisting=True),
        await fresh.register(),
    ):
        assert (answer.status, answer.problem, answer.json["rule"]) == (401, "unauthorized", "keys.blocklist")
        assert "another key" in answer.json["detail"]
    assert {event["rule"] for event in await world.audit("access.refused")} == {"jws.unauthorized"}
    assert (await stranger.order("a.test")).status == 201
    again = await world.client()
    assert (await again.order("a.test")).status == 201, "with another key"
    assert leaf is not None


async def test_a_blocked_key_ends_the_orders_of_its_account_that_wait(world, csr):
    world.resolve("a.test")
    world.options = replace(world.options, finalize_wait=0.01)
    await world.serve()
    client = await world.client()
    order = await client.ready("a.test")
    world.core.outages = 1
    await client.finalize(order, csr("a.test"))
    await world.block(client.key.spki_sha256)
    path = order.headers["Location"].rpartition("/")[2]
    for _ in range(300):
        status, error = (await world.query(f"SELECT status, error FROM acme_orders WHERE id = '{path}'"))[0]
        if status == "invalid":
            break
        await asyncio.sleep(0.02)
    assert b"blocklist" in error


async def test_a_key_that_is_unblocked_signs_again(world):
    client = await world.client()
    await world.block(client.key.spki_sha256)
    assert (await client.order("a.test")).status == 401
    await world.execute("DELETE FROM spki_blocklist")
    assert (await client.order("a.test")).status == 201


async def test_the_key_of_a_changed_account_is_its_own(world, new_client, new_key):
    client = await world.client()
    old, new = client.key, new_key()
    payload = {"account": client.kid, "oldKey": old.jwk}
    inner = await new_client(world, new).jws(f"{client.base}/key-change", payload, nonce=None)
    assert (await client.post(f"{client.base}/key-change", inner)).status == 200
    client.key = new
    await world.block(old.spki_sha256)
    assert (await client.order("a.test")).status == 201
    await world.block(new.spki_sha256)
    assert (await client.order("a.test")).status == 401


async def test_section_7_1_6_an_account_that_operators_revoked_may_do_nothing(world, csr):
    world.resolve("a.test")
    client, other = await world.client(), await world.client()
    order = await client.ready("a.test")
    request = RevokeAccount(client.kid.rpartition("/")[2], "its owner left")
    assert await world.core.accounts.revoke_account(request, "uid:0")
    for answer in (await client.order("b.test"), await client.finalize(order, csr("a.test")), await client.register()):
        assert (answer.status, answer.problem) == (401, "unauthorized")
    assert (await other.order("b.test")).status == 201
    assert not await world.core.accounts.revoke_account(request, "uid:0")
    assert not await world.core.accounts.revoke_account(replace(request, account_id="nobody"), "uid:0")
    (event,) = await world.audit("account.revoked")
    assert (event["actor"], event["object"], event["reason"]) == ("uid:0", f"acme:{request.account_id}", request.reason)
    for reason in ("", " ", "two\nlines", "x" * 501):
        with pytest.raises(CaError, match="give a reason"):
            await world.core.accounts.revoke_account(replace(request, reason=reason), "uid:0")
