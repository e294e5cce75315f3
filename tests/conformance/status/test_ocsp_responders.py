"""Delegated responders (RFC 6960 sections 4.2.2.2 and 4.2.2.2.1): status fact 5."""

from datetime import UTC, datetime, timedelta
from hashlib import sha1
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca_server.domain.certificates import RevocationReason
from ca_server.domain.errors import CaError


async def response(world: Any, issuer: str = "issuing") -> Any:
    answer = await world.post(world.request(world.cert_id(5, issuer)))
    assert answer.outcome == "UNKNOWN"
    return answer.ocsp


async def responder(world: Any, issuer: str = "issuing") -> x509.Certificate:
    """The certificate in an answer, whose signature is right."""
    answered = await response(world, issuer)
    (certificate,) = answered.certificates
    digest = answered.signature_hash_algorithm
    certificate.public_key().verify(answered.signature, answered.tbs_response_bytes, ec.ECDSA(digest))
    return certificate


def keys_of(world: Any, issuer: str = "issuing") -> set[str]:
    return {label for label in world.keys._keys if label.startswith(f"ocsp-{issuer}-")}


async def test_the_certificate(world: Any) -> None:
    certificate = await responder(world)
    certificate.verify_directly_issued_by(world.issuer().certificate)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.OCSP_SIGNING]
    nocheck = certificate.extensions.get_extension_for_class(x509.OCSPNoCheck)
    assert not nocheck.critical
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    for absent in (x509.CRLDistributionPoints, x509.SubjectAlternativeName):
        with pytest.raises(x509.ExtensionNotFound):
            certificate.extensions.get_extension_for_class(absent)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= timedelta(days=15)


async def test_each_issuer_has_its_own(world: Any) -> None:
    here, there = await responder(world), await responder(world, "other")
    there.verify_directly_issued_by(world.issuer("other").certificate)
    with pytest.raises(ValueError, match="Issuer"):
        there.verify_directly_issued_by(world.issuer().certificate)
    assert here.public_key() != there.public_key()
    assert world.responders.get("root") is None


async def test_responder_id_is_by_key(world: Any) -> None:
    answered = await response(world)
    point = answered.certificates[0].public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert answered.responder_name is None
    assert answered.responder_key_hash == sha1(point).digest()


async def test_next_update_never_passes_the_responders_end(world: Any) -> None:
    end = (await responder(world)).not_valid_after_utc
    world.later = end - datetime.now(UTC) - timedelta(minutes=20)
    (single,) = (await response(world)).responses
    assert single.next_update_utc == end
    world.later += timedelta(minutes=21)
    assert (await world.post(world.request(world.cert_id(5)))).outcome == "UNAUTHORIZED"


async def test_rotation_with_overlap(world: Any) -> None:
    first = await responder(world)
    life = first.not_valid_after_utc - first.not_valid_before_utc
    world.later = life * 0.6
    await world.responders.ensure()
    assert await responder(world) == first
    world.later = life * 0.7
    await world.responders.ensure()
    second = await responder(world)
    assert second.public_key() != first.public_key()
    assert second.not_valid_after_utc > first.not_valid_after_utc > world.clock()
    assert len(keys_of(world)) == 2
    await world.responders.ensure()
    assert await responder(world) == second
    assert len(keys_of(world)) == 2


async def test_keys_of_the_expired_are_destroyed(world: Any) -> None:
    first = await responder(world)
    (old,) = keys_of(world)
    life = first.not_valid_after_utc - first.not_valid_before_utc
    world.later = life * 0.7
    await world.responders.ensure()
    world.later = life * 1.1
    for _ in range(2):
        assert await responder(world) != first
        await world.responders.ensure()
    assert old not in keys_of(world)
    assert len(keys_of(world)) == len(keys_of(world, "other")) == 1
    assert await world.audited("key.deleted") == 2
    assert {"root-1", "issuing-1", "other-1"} <= set(world.keys._keys)


async def test_a_key_that_another_node_is_making_stays(world: Any) -> None:
    """It has no certificate yet: only where it still has none the next time was it left behind."""
    await world.keys.generate("ocsp-issuing-0a0b0c0d", world.issuer().key.algorithm)
    await world.responders.ensure()
    assert "ocsp-issuing-0a0b0c0d" in keys_of(world)
    await world.responders.ensure()
    assert "ocsp-issuing-0a0b0c0d" not in keys_of(world)


async def test_a_restart_takes_up_what_stands(world: Any) -> None:
    first = await responder(world)
    world.responders = world.make_responders()
    await world.responders.ensure()
    await world.serve()
    assert await responder(world) == first
    assert len(keys_of(world)) == 1


async def test_a_key_that_is_gone_is_replaced(world: Any) -> None:
    first = await responder(world)
    (label,) = keys_of(world)
    await world.keys.delete(label)
    world.responders = world.make_responders()
    await world.responders.ensure()
    await world.serve()
    assert await responder(world) != first


async def test_a_revoked_responder_is_replaced(world: Any) -> None:
    first = await responder(world)
    await world.revoke_as_operator(first, RevocationReason.KEY_COMPROMISE, "issuing")
    await world.responders.ensure()
    second = await responder(world)
    assert second.serial_number != first.serial_number
    assert await world.ask(first.serial_number) == "REVOKED"


async def test_a_rotation_that_fails_leaves_the_old_one_at_work(world: Any) -> None:
    first = await responder(world)
    world.later = (first.not_valid_after_utc - first.not_valid_before_utc) * 0.7
    world.keys.away = True
    with pytest.raises(CaError):
        await world.responders.ensure()
    world.keys.away = False
    assert await responder(world) == first


async def test_signatures_are_the_responders_alone(world: Any) -> None:
    """The issuer's own key signs certificates and CRLs, never answers."""
    before = world.keys.uses["issuing-1"]
    await responder(world)
    assert world.keys.uses["issuing-1"] == before
