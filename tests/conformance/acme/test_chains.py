"""RFC 8555 section 7.4.2: alternate chains."""

from dataclasses import replace
from datetime import timedelta
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from other_ca import OtherCa, common_name, der
from sqlalchemy import update

from ca_server.core.cross import CrossCertificates
from ca_server.core.ports import ImportCrossCertificate
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.audit import SqlAuditStore
from ca_server.store.issuers import SqlIssuerStore
from ca_server.store.tables import ca_certificates
from protocols.acme.chains import FRESH_SECONDS

ONE_DATABASE = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
PEM = "application/pem-certificate-chain"


@pytest.fixture
def cross(world):
    store, audit = SqlIssuerStore(world.database), SqlAuditStore(world.database)
    return CrossCertificates(store, world.token, audit, world.events("core"))


@pytest.fixture
def take_in(cross):
    """Imports a certificate for an issuer, with what is above it."""

    async def take_in(issuer, *certificates):
        first, *above = map(der, certificates)
        return await cross.take_in(ImportCrossCertificate(issuer, first, tuple(above)), "uid:0")

    return take_in


@pytest.fixture
async def standing(world):
    """The CA certificates that the server made, by issuer."""
    return {issuer.name: issuer.key.certificate_der for issuer in await SqlIssuerStore(world.database).issuers()}


@pytest.fixture
async def order(world, csr):
    world.resolve("a.test")
    client = await world.client()
    ready = await client.ready("a.test")
    return client, (await client.finalize(ready, csr("a.test"))).json["certificate"]


async def roots(client, url):
    """The issuer of the topmost certificate of each chain, the default one first; each URL links to all the others."""
    first = await client.post(url)
    assert (first.status, first.headers["Content-Type"]) == (200, PEM)
    links = first.links("alternate")
    found = []
    for each in (first, *[await client.post(link) for link in links]):
        assert each.status == 200
        leaf, *chain = x509.load_pem_x509_certificates(each.body)
        for lower, upper in zip((leaf, *chain), chain, strict=False):
            lower.verify_directly_issued_by(upper)
        assert not any(above.subject == above.issuer for above in chain), "the root is left out"
        found.append(chain[-1].issuer.rfc4514_string())
        assert len(each.links("alternate")) == len(links)
    assert [link.rpartition("/")[0] for link in links] == [url] * len(links)
    return found


@ONE_DATABASE
async def test_fact_22_without_another_chain_there_is_no_link(order):
    assert await roots(*order) == ["CN=Test root CA"]


async def test_fact_22_an_issuer_that_another_ca_signed_too(world, order, standing, take_in):
    other = OtherCa("Other Root")
    added = await take_in("issuing", other.cross_sign(standing["issuing"]), other.root)
    assert (added.issuer, added.generation, added.signed_by) == ("issuing", 1, "CN=Other Root")
    (event,) = await world.audit("issuer.certificate-imported")
    assert (event["issuer"], event["actor"], event["extra"]["certificate_sha256"]) == ("issuing", "uid:0", added.sha256)
    await world.serve()
    assert await roots(*order) == ["CN=Test root CA", "CN=Other Root"]


@ONE_DATABASE
async def test_fact_22_a_root_that_another_ca_signed_too(world, order, standing, take_in):
    """The chains of all that is below the root have it; its own root has become an intermediate in them."""
    other = OtherCa("Old Root")
    await take_in("root", other.cross_sign(standing["root"]), other.root)
    await world.serve()
    assert await roots(*order) == ["CN=Test root CA", "CN=Old Root"]
    client, url = order
    (link,) = (await client.post(url)).links("alternate")
    chain = x509.load_pem_x509_certificates((await client.post(link)).body)
    assert [each.subject.rfc4514_string() for each in chain[1:]] == ["CN=Test issuing CA", "CN=Test root CA"]


@ONE_DATABASE
async def test_fact_22_a_root_that_was_renewed_is_no_other_chain(world, order, standing, take_in):
    """The root is left out, and so the chain is the same."""
    certificate = x509.load_der_x509_certificate(standing["root"])
    key = world.keys["root-1"].private
    renewed = OtherCa("Test root CA", key).cross_sign(standing["root"], end=timedelta(days=5000))
    assert certificate.subject == renewed.issuer
    await take_in("root", renewed)
    await world.serve()
    assert await roots(*order) == ["CN=Test root CA"]


@ONE_DATABASE
async def test_an_issuer_that_our_own_root_signed_again(world, order, standing, take_in):
    """What is above is known: the file has the certificate alone."""
    again = OtherCa("Test root CA", world.keys["root-1"].private)
    added = await take_in("issuing", again.cross_sign(standing["issuing"]))
    assert added.signed_by == "CN=Test root CA"
    await world.serve()
    assert await roots(*order) == ["CN=Test root CA", "CN=Test root CA"]


@ONE_DATABASE
async def test_the_default_chain_is_the_operators_choice(world, order, standing, take_in):
    for name in ("Older Root", "Other Root"):
        other = OtherCa(name)
        await take_in("issuing", other.cross_sign(standing["issuing"]), other.root)
    for preferred, first in (
        (("Other Root",), "CN=Other Root"),
        (("Nobody", "Older Root", "Other Root"), "CN=Older Root"),
        ((), "CN=Test root CA"),
    ):
        await world.serve(replace(world.options, preferred_chains=preferred))
        found = await roots(*order)
        assert (found[0], len(found)) == (first, 3)
    assert found[1:] == ["CN=Other Root", "CN=Older Root"], "newer ones first"


@ONE_DATABASE
async def test_what_has_expired_is_no_chain(world, order, standing, take_in):
    other = OtherCa("Other Root")
    await take_in("issuing", other.cross_sign(standing["issuing"]), other.root)
    client, url = order
    await world.serve()
    (link,) = (await client.post(url)).links("alternate")
    expired = other.cross_sign(standing["issuing"], begin=timedelta(days=-2), end=timedelta(days=-1))
    changed = update(ca_certificates).where(~ca_certificates.c.preferred).values(der=der(expired))
    await world.database.write(lambda connection: connection.execute(changed) and None)
    await world.serve()
    assert await roots(*order) == ["CN=Test root CA"]
    gone = await client.post(link)
    assert (gone.status, gone.problem) == (404, "malformed")


@ONE_DATABASE
async def test_an_import_shows_soon_and_costs_no_look_at_each_download(world, order, standing, take_in, monkeypatch):
    reads, store, clock = [], world.front._store, [0.0]
    read = store.ca_certificates

    async def counted():
        reads.append(True)
        return await read()

    monkeypatch.setattr(store, "ca_certificates", counted)
    world.front._chains._clock = lambda: clock[0]
    world.front._chains._read_at = float("-inf")
    assert await roots(*order) == await roots(*order) == ["CN=Test root CA"]
    other = OtherCa("Other Root")
    await take_in("issuing", other.cross_sign(standing["issuing"]), other.root)
    assert len(reads) == 1
    clock[0] = FRESH_SECONDS
    assert await roots(*order) == ["CN=Test root CA", "CN=Other Root"]
    assert len(reads) == 2


@ONE_DATABASE
async def test_the_certificate_of_another_account(world, order, standing, take_in):
    other = OtherCa("Other Root")
    await take_in("issuing", other.cross_sign(standing["issuing"]), other.root)
    await world.serve()
    client, url = order
    (link,) = (await client.post(url)).links("alternate")
    stranger = await world.client()
    for each in (url, link):
        assert (await stranger.post(each)).status == 404


@ONE_DATABASE
async def test_what_is_below_and_what_certificates_point_at_stays(world, order, standing, take_in, csr):
    other = OtherCa("Other Root")
    await take_in("issuing", other.cross_sign(standing["issuing"], end=timedelta(days=1)), other.root)
    await world.serve()
    (key,) = await SqlIssuerStore(world.database).issuer_keys("issuing")
    assert key.certificate_der == standing["issuing"]
    client, _ = order
    leaf, *_ = await client.issue("a.test")
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc > timedelta(days=89), "by the issuer's own certificate"


# --- The CSR that another CA is given ------------------------------------------------------------------------------


@ONE_DATABASE
@pytest.mark.parametrize("issuer", ["root", "issuing"])
async def test_a_csr_for_another_ca(world, standing, cross, issuer):
    csr = x509.load_der_x509_csr(await cross.sign_csr(issuer, "uid:0"))
    assert csr.is_signature_valid
    own = x509.load_der_x509_certificate(standing[issuer])
    assert (csr.subject, csr.public_key()) == (own.subject, own.public_key())
    asked = {each.oid: (each.critical, each.value) for each in csr.extensions}
    for kind in (x509.BasicConstraints, x509.KeyUsage, x509.SubjectKeyIdentifier):
        stands = own.extensions.get_extension_for_class(kind)
        assert asked.pop(kind.oid) == (stands.critical, stands.value)
    assert asked == {}
    (event,) = await world.audit("issuer.csr-signed")
    assert (event["issuer"], event["actor"]) == (issuer, "uid:0")
    assert event["extra"]["csr_info_sha256"] == sha256(csr.tbs_certrequest_bytes).hexdigest()


@ONE_DATABASE
async def test_a_csr_is_on_record_before_it_is_signed(world, cross, monkeypatch):
    async def away(_label):
        raise CaError(ErrorKind.UNAVAILABLE, "the token is away")

    monkeypatch.setattr(world.token, "find", away)
    with pytest.raises(CaError, match="away"):
        await cross.sign_csr("root", "uid:0")
    assert len(await world.audit("issuer.csr-signed")) == 1
    with pytest.raises(CaError) as refused:
        await cross.sign_csr("nobody", "uid:0")
    assert refused.value.kind is ErrorKind.NOT_FOUND


# --- What is not taken in -----------------------------------------------------------------------------------------

OTHER = OtherCa("Other Root")
FAULTS = {
    "another key": ({"key": ec.generate_private_key(ec.SECP256R1()).public_key()}, "public key"),
    "another subject": ({"subject": common_name("Test issuing")}, "subject"),
    "another key identifier": ({"identifier": x509.SubjectKeyIdentifier(b"x" * 20)}, "key identifier"),
    "no ca": ({"ca": False}, "no CA"),
    "may not sign": ({"may_sign": False}, "no CA"),
    "may not sign lists": ({"crl_sign": False}, "may not sign CRLs"),
    "expired": ({"begin": timedelta(days=-2), "end": timedelta(days=-1)}, "is valid from"),
    "not yet valid": ({"begin": timedelta(days=1)}, "is valid from"),
    "not signed by what is above": ({"signer": ec.generate_private_key(ec.SECP256R1())}, "not signed by"),
}


@ONE_DATABASE
async def test_certificates_that_are_not_taken_in(world, standing, take_in):
    for changes, said in FAULTS.values():
        with pytest.raises(CaError, match=said) as refused:
            await take_in("issuing", OTHER.cross_sign(standing["issuing"], **changes), OTHER.root)
        assert refused.value.kind is ErrorKind.MALFORMED
    assert await world.count("ca_certificates") == 2
    assert await world.audit("issuer.certificate-imported") == []


@ONE_DATABASE
async def test_a_root_has_room_for_the_issuers_below_it(standing, take_in):
    with pytest.raises(CaError, match="'CN=Test root CA' allows 0 CAs below it, and 1 are"):
        await take_in("root", OTHER.cross_sign(standing["root"], path_length=0), OTHER.root)
    await take_in("root", OTHER.cross_sign(standing["root"], path_length=1), OTHER.root)
    await take_in("issuing", OTHER.cross_sign(standing["issuing"], path_length=0), OTHER.root)


@ONE_DATABASE
async def test_a_ca_for_tests_vouches_for_no_other(standing, take_in):
    """Whoever trusts a staging root, which issues to anybody, would not know what he gets."""
    tests = OtherCa("STAGING Root")
    with pytest.raises(CaError, match="STAGING"):
        await take_in("issuing", tests.cross_sign(standing["issuing"]), tests.root)


@ONE_DATABASE
async def test_what_is_above_leads_to_a_root(world, standing, take_in):
    middle, lower = OtherCa("Middle"), OtherCa("Lower")
    key = middle.key.public_key()
    above = OTHER.sign(common_name("Middle"), key)
    paths = {
        "none of our issuers": (middle, []),
        "not signed by itself": (middle, [above]),
        "not signed by 'CN=Other Root'": (middle, [above, OtherCa("Other Root").root]),
        "is no CA": (middle, [OTHER.sign(common_name("Middle"), key, ca=False), OTHER.root]),
        "allows 1 CAs below it, and 2 are": (
            lower,
            [
                middle.sign(common_name("Lower"), lower.key.public_key()),
                OTHER.sign(common_name("Middle"), key, path_length=1),
                OTHER.root,
            ],
        ),
    }
    for said, (signer, path) in paths.items():
        with pytest.raises(CaError, match=said) as refused:
            await take_in("issuing", signer.cross_sign(standing["issuing"]), *path)
        assert refused.value.kind is ErrorKind.MALFORMED
    assert await world.count("ca_certificates") == 2
    await take_in("issuing", middle.cross_sign(standing["issuing"]), above, OTHER.root)


@ONE_DATABASE
async def test_a_signature_with_a_broken_hash(standing, take_in):
    other = OtherCa("Other Root", rsa.generate_private_key(65537, 2048))
    certificate = der(other.cross_sign(standing["issuing"]))
    sha2, sha1 = (bytes.fromhex(f"2a864886f70d0101{end}") for end in ("0b", "05"))
    with pytest.raises(CaError, match="broken hash"):
        await take_in("issuing", x509.load_der_x509_certificate(certificate.replace(sha2, sha1)), other.root)


async def test_an_issuer_that_is_not_there_and_a_certificate_that_is(standing, take_in):
    with pytest.raises(CaError) as refused:
        await take_in("nobody", OTHER.cross_sign(standing["issuing"]), OTHER.root)
    assert refused.value.kind is ErrorKind.NOT_FOUND
    certificate = OTHER.cross_sign(standing["issuing"])
    await take_in("issuing", certificate, OTHER.root)
    with pytest.raises(CaError) as refused:
        await take_in("issuing", certificate, OTHER.root)
    assert refused.value.kind is ErrorKind.CONFLICT
