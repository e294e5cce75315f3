"""CRLs and CA certificates over HTTP (RFC 5280 sections 4.2.1.13 and 4.2.2.1, RFC 2585): CRL fact 5."""

import asyncio
from datetime import timedelta
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID

from ca_server.domain.errors import CaError, ErrorKind

EXTERNAL = "http://ca.example.test"
CRL, CER = "/crl/issuing.crl", "/issuer/issuing.cer"


def points(certificate: x509.Certificate) -> tuple[str, str, str]:
    """Paths of CRL, caIssuers and OCSP in a certificate."""
    (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    crl = point.full_name[0].value
    access = {
        item.access_method: item.access_location.value
        for item in certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    }
    urls = crl, access[AuthorityInformationAccessOID.CA_ISSUERS], access[AuthorityInformationAccessOID.OCSP]
    assert all(url.startswith(EXTERNAL) for url in urls)
    return urls[0].removeprefix(EXTERNAL), urls[1].removeprefix(EXTERNAL), urls[2].removeprefix(EXTERNAL)


def break_database(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> None:
        raise CaError(ErrorKind.UNAVAILABLE, "the database is away")

    monkeypatch.setattr(world.stores, "latest_crl", away)
    monkeypatch.setattr(world.issuer_store, "issuer_keys", away)


async def test_what_certificates_point_at_is_there(world: Any) -> None:
    crl, issuer, responder = points(await world.issue())
    answer = await world.send("GET", crl)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/pkix-crl")
    assert answer.body == (await world.latest()).der
    assert (await world.send("GET", CRL)).body == answer.body
    answer = await world.send("GET", issuer)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/pkix-cert")
    assert answer.body == world.issuer().certificate.public_bytes(Encoding.DER)
    assert responder == "/ocsp"


async def test_what_ca_certificates_point_at_is_there(world: Any) -> None:
    authority = world.issuer().certificate
    (point,) = authority.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    answer = await world.send("GET", point.full_name[0].value.removeprefix(EXTERNAL))
    assert answer.body == (await world.latest("root")).der
    answer = await world.send("GET", "/issuer/root.cer")
    authority.verify_directly_issued_by(x509.load_der_x509_certificate(answer.body))


async def test_crl_headers(world: Any) -> None:
    crl = await world.latest()
    answer = await world.send("GET", CRL)
    assert answer.headers["ETag"] == f'"{sha256(crl.der).hexdigest()}"'
    assert parsedate_to_datetime(answer.headers["Last-Modified"]) == crl.this_update
    assert parsedate_to_datetime(answer.headers["Expires"]) == crl.next_update
    assert answer.headers["Cache-Control"] == "max-age=300, public, no-transform, must-revalidate"
    head = await world.send("HEAD", CRL)
    assert (head.status, head.headers["ETag"], head.body) == (200, answer.headers["ETag"], b"")


@pytest.mark.parametrize("form", ["{}", "W/{}", '"another", {}', "*"])
async def test_not_modified(world: Any, form: str) -> None:
    """RFC 9110 section 13.1.2: weakly compared."""
    first = await world.send("GET", CRL)
    condition = {"If-None-Match": form.format(first.headers["ETag"])}
    again = await world.send("GET", CRL, headers=condition)
    assert (again.status, again.body) == (304, b"")
    for name in ("ETag", "Cache-Control", "Expires", "Last-Modified"):
        assert again.headers[name] == first.headers[name]
    await world.revoke(await world.issue())
    await world.publish()
    later = await world.send("GET", CRL, headers=condition)
    assert later.status == (304 if form == "*" else 200)


@pytest.mark.parametrize("condition", ['"another"', "nonsense", '"', ""])
async def test_modified(world: Any, condition: str) -> None:
    assert (await world.send("GET", CRL, headers={"If-None-Match": condition})).status == 200


async def test_lists_of_one_second_are_told_apart(world: Any) -> None:
    """A date has seconds only: who has the list before is not told that nothing changed."""
    first = await world.send("GET", CRL)
    await world.revoke(await world.issue())
    await world.publish()
    condition = {"If-Modified-Since": first.headers["Last-Modified"]}
    assert (await world.send("GET", CRL, headers=condition)).body == (await world.latest()).der != first.body


async def test_max_age_near_the_end(world: Any) -> None:
    world.front_later = timedelta(days=7) - timedelta(seconds=100)
    assert (await world.send("GET", CRL)).max_age < 100
    world.front_later = timedelta(days=-400)
    assert (await world.send("GET", CRL)).max_age == 300


@pytest.mark.parametrize(
    "path",
    [
        "/crl/nobody.crl",
        "/crl/issuing",
        "/crl/issuing.2.crl",
        "/crl/issuing.1.7.crl",
        "/crl/issuing.1.0.0.crl",
        "/crl/issuing..crl",
        "/crl/Issuing.crl",
        "/crl/.crl",
        "/crl/issuing.9999999.crl",
        "/crl/issuing.%00.crl",
        "/issuer/nobody.cer",
        "/issuer/issuing",
        "/issuer/issuing.2.cer",
        "/issuer/issuing.crl",
    ],
)
async def test_what_is_not_there(world: Any, path: str) -> None:
    """404, which no cache keeps: it may be there in a moment."""
    answer = await world.send("GET", path)
    assert (answer.status, answer.headers["Cache-Control"]) == (404, "no-store")


async def test_served_though_the_token_is_away(world: Any) -> None:
    await world.revoke(await world.issue())
    await world.publish()
    world.keys.away = True
    answer = await world.send("GET", CRL)
    assert (answer.status, answer.body) == (200, (await world.latest()).der)
    assert (await world.send("GET", CER)).status == 200


async def test_served_though_the_database_is_away(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [(await world.send("GET", path)).body for path in (CRL, CER)]
    break_database(world, monkeypatch)
    assert [(await world.send("GET", path)).body for path in (CRL, CER)] == known


@pytest.mark.parametrize("path", ["/crl/other.crl", "/issuer/other.cer"])
async def test_not_read_yet_and_the_database_is_away(world: Any, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Come again: not that there is none."""
    break_database(world, monkeypatch)
    answer = await world.send("GET", path)
    assert (answer.status, answer.headers["Cache-Control"]) == (503, "no-store")


async def test_a_list_past_its_next_update_is_not_served(world: Any) -> None:
    world.later = timedelta(days=7, seconds=1)
    answer = await world.send("GET", CRL)
    assert (answer.status, answer.headers["Cache-Control"]) == (503, "no-store")
    assert int(answer.headers["Retry-After"]) > 0
    await world.publisher.refresh_due()
    assert (await world.send("GET", CRL)).status == 200


async def test_read_once_for_all_who_ask_at_once(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    latest, reads = world.stores.latest_crl, []

    async def counted(*arguments: Any) -> Any:
        reads.append(arguments)
        await asyncio.sleep(0.05)
        return await latest(*arguments)

    monkeypatch.setattr(world.stores, "latest_crl", counted)
    answers = await asyncio.gather(*(world.send("GET", CRL) for _ in range(20)))
    assert {answer.body for answer in answers} == {(await world.latest()).der}
    assert len(reads) - 1 == 1, "one of them is this test's own"


async def test_a_new_list_is_served(world: Any) -> None:
    certificate = await world.issue()
    assert (await world.send("GET", CRL)).status == 200
    await world.revoke(certificate)
    await world.publish()
    crl = x509.load_der_x509_crl((await world.send("GET", CRL)).body)
    assert crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
