"""draft-ietf-acme-device-attest, seen through the server: from newOrder to the certificate."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from attestations import (
    APPLE_NONCE,
    APPLE_SERIAL,
    DAY,
    NOW,
    AppleDevice,
    Chain,
    Tpm,
    YubiKey,
    attestation,
    hardware_module,
    new_key,
    permanent_identifier,
)
from cryptography import x509

from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.attestation import Roots

VENDORS = {"apple": Chain.of("Apple"), "tpm": Chain.of("TPM"), "step": Chain.of("Yubico")}
ROOTS = Roots({kind: (chain.root.certificate,) for kind, chain in VENDORS.items()})
SERIAL = "C02XK1ZZJGH5"
ON_SQLITE = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
"""For what does not hang on the database."""
DEVICES = """
frontends = ["acme"]
[names]
dns_suffixes = ["test"]
permanent_identifiers = ["*.test", "C02*", "0000*", "PC-*", "2086*"]
hardware_modules = ["*/2.23.133.1.2"]
[subject]
organization = "Corp"
[keys]
allowed = ["ec-p256", "rsa-2048"]
[validity]
default = "90d"
maximum = "90d"
[extensions]
key_usage = ["digital_signature"]
extended_key_usage = ["client_auth"]
"""


def options_of(world, roots=ROOTS):
    return replace(world.options, validation=replace(world.options.validation, attestation_roots=roots))


@pytest.fixture
async def devices(world, profiles):
    """The server, with a profile for devices as the default one, and roots of every format."""
    private = DEVICES.replace("[subject]", 'device_identifiers = "omit"\n[subject]')
    copying = DEVICES.replace("[subject]", '[subject]\ncommon_name = "csr"')
    await world.put_in_force(profiles | {"default": DEVICES, "private": private, "copying": copying})
    world.options = options_of(world)
    await world.serve()
    return world


async def order_for(client, value=SERIAL, kind="permanent-identifier", *more):
    identifiers = [{"type": kind, "value": value}, *more]
    return await client.post(f"{client.base}/new-order", {"identifiers": identifiers})


async def challenge_of(client, order):
    """The one challenge of an order's first authorization."""
    found = (await client.post(order.json["authorizations"][0])).json
    (challenge,) = found["challenges"]
    assert challenge["type"] == "device-attest-01"
    return challenge


def b64(data):
    from base64 import urlsafe_b64encode

    return urlsafe_b64encode(data).rstrip(b"=").decode()


async def respond(client, challenge, data):
    return await client.post(challenge["url"], {"attObj": b64(data), "more": 1})


def key_authorization(client, challenge):
    return f"{challenge['token']}.{client.key.thumbprint}"


async def certificate(client, order):
    done = await client.poll(order.headers["Location"], "processing")
    assert done["status"] == "valid", done
    leaf, *_ = x509.load_pem_x509_certificates((await client.post(done["certificate"])).body)
    return leaf


def other_names(leaf):
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    return [(each.type_id.dotted_string, each.value) for each in names if isinstance(each, x509.OtherName)]


def make(kind):
    """A device of each format: its identifier's type and value, its key, and what it answers."""
    if kind == "apple":
        apple = AppleDevice(VENDORS["apple"])
        return "permanent-identifier", SERIAL, apple.key, lambda c, ch: apple.attest(ch["token"])
    if kind == "udid":
        apple = AppleDevice(VENDORS["apple"])
        return "permanent-identifier", apple.udid, apple.key, lambda c, ch: apple.attest(ch["token"])
    if kind == "step":
        token = YubiKey(VENDORS["step"])
        return "permanent-identifier", "20862622", token.key, lambda c, ch: token.attest(key_authorization(c, ch))
    names = (permanent_identifier("PC-0001", b"\x2a\x03"), hardware_module(b"HW1", b"\x67\x81\x05\x01\x02"))
    tpm = Tpm(VENDORS["tpm"], names=names)
    answer = lambda c, ch: tpm.attest(key_authorization(c, ch))  # noqa: E731
    if kind == "module":
        return "hardware-module", "HW1/2.23.133.1.2", tpm.key, answer
    return "permanent-identifier", "PC-0001/1.2.3", tpm.key, answer


@ON_SQLITE
@pytest.mark.parametrize("kind", ["apple", "udid", "step", "tpm", "module"])
async def test_section_5_a_certificate_is_issued_on_an_attestation(devices, csr, monkeypatch, kind):
    # What waits for the verdict is woken by it, and never by the end of its patience.
    monkeypatch.setattr("protocols.acme.authorizations._ATTESTATION_PATIENCE", 3600.0)
    client = await devices.client()
    sort, value, key, answer = make(kind)
    order = await order_for(client, value, sort)
    assert order.status == 201, order.body
    assert order.json["identifiers"] == [{"type": sort, "value": value}]
    challenge = await challenge_of(client, order)
    answered = await respond(client, challenge, answer(client, challenge))
    assert (answered.status, answered.json["status"], answered.json["url"]) == (200, "valid", challenge["url"])
    assert answered.links("up") == [order.json["authorizations"][0]]
    await client.finalize(order, csr(key=key))
    leaf = await certificate(client, order)
    assert leaf.public_key() == key.public_key()
    ((type_id, der),) = other_names(leaf)
    assert type_id == ("1.3.6.1.5.5.7.8.4" if kind == "module" else "1.3.6.1.5.5.7.8.3")
    assert value.partition("/")[0].encode() in der
    ((seen,),) = await devices.query("SELECT seen FROM acme_attempts")
    assert seen.startswith("attestation object of ")
    assert value.partition("/")[0] in seen.splitlines()[1]
    (event,) = await devices.audit("challenge.validated")
    format_ = {"udid": "apple", "module": "tpm"}.get(kind, kind)
    assert event["extra"].items() >= {"challenge": "device-attest-01", "attestation": format_}.items()
    stored = (await devices.audit("issuance.stored"))[-1]
    assert stored["extra"]["validated_by"] == "device-attest-01"
    assert stored["names"] == [f"{sort}:{value}"]


@ON_SQLITE
@pytest.mark.parametrize(
    ("names", "subject"),
    [((), None), ((), SERIAL), (("phone.test",), None)],
    ids=["no names", "the device as common name", "a DNS name"],
)
async def test_section_3_2_a_csr_may_leave_the_device_out(devices, csr, names, subject):
    devices.resolve("phone.test")
    client = await devices.client()
    apple = AppleDevice(VENDORS["apple"])
    more = [{"type": "dns", "value": name} for name in names]
    order = await order_for(client, SERIAL, "permanent-identifier", *more)
    challenge = await challenge_of(client, order)
    await respond(client, challenge, apple.attest(challenge["token"]))
    if names:
        dns = await client.challenge(order.json["authorizations"][1], "http-01")
        await client.post(dns["url"], {})
        await client.poll(order.json["authorizations"][1], "pending")
    await client.finalize(order, csr(*names, key=apple.key, common_name=subject))
    leaf = await certificate(client, order)
    assert other_names(leaf) == [("1.3.6.1.5.5.7.8.3", b"\x30\x0e\x0c\x0c" + SERIAL.encode())]
    assert leaf.subject.rfc4514_string() == "O=Corp"


@ON_SQLITE
async def test_section_3_2_a_profile_may_leave_the_device_out(devices, csr):
    client = await devices.client(profile="private")
    apple = AppleDevice(VENDORS["apple"])
    order = await order_for(client)
    challenge = await challenge_of(client, order)
    await respond(client, challenge, apple.attest(challenge["token"]))
    await client.finalize(order, csr(key=apple.key))
    leaf = await certificate(client, order)
    assert other_names(leaf) is None
    assert SERIAL.encode() not in leaf.tbs_certificate_bytes


async def refused(devices, client, answer, value=SERIAL):
    """The error of a challenge that was answered so; the order fails with it, and it is on record."""
    order = await order_for(client, value)
    challenge = await challenge_of(client, order)
    data = answer(challenge) if callable(answer) else answer
    found = (await respond(client, challenge, data)).json
    assert found["status"] == "invalid"
    assert found["error"]["type"] == "urn:ietf:params:acme:error:badAttestationStatement"
    failed = (await client.post(order.headers["Location"])).json
    assert (failed["status"], failed["error"]) == ("invalid", found["error"])
    event = (await devices.audit("challenge.failed"))[-1]
    assert event["reason"] == found["error"]["detail"]
    assert devices.observed[-1] == ("device-attest-01", "badAttestationStatement")
    return found["error"]["detail"]


APPLE = AppleDevice(VENDORS["apple"])
EXPIRED = {"begin": NOW - 3 * DAY, "end": NOW - 2 * DAY}


@ON_SQLITE
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda ch: APPLE.attest("of-another-challenge"), "freshness code is not the digest"),
        (lambda ch: APPLE.attest(ch["token"], values={APPLE_NONCE: None}), "no freshness code"),
        (lambda ch: APPLE.attest(ch["token"], values={APPLE_SERIAL: b"C02other"}), "not of the permanent-identifier"),
        (lambda ch: APPLE.attest(ch["token"], **EXPIRED), "expired"),
        (lambda ch: AppleDevice(Chain.of("Apple")).attest(ch["token"]), "do not lead to a root"),
        (lambda ch: AppleDevice(VENDORS["step"]).attest(ch["token"]), "do not lead to a root"),
        (attestation("android-key", {}), "'android-key' are not accepted"),
        (b"\xff", "canonical CBOR"),
    ],
    ids=["replay", "no nonce", "serial", "expired", "foreign root", "root of another format", "format", "no CBOR"],
)
async def test_section_5_what_is_refused(devices, answer, why):
    assert why in await refused(devices, await devices.client(), answer)


@ON_SQLITE
async def test_section_5_another_account_can_not_use_a_key_authorization(devices):
    client, other = await devices.client(), await devices.client()
    for device, value in ((YubiKey(VENDORS["step"]), "20862622"), (Tpm(VENDORS["tpm"]), "PC-0001")):
        why = await refused(devices, client, lambda ch, d=device: d.attest(key_authorization(other, ch)), value)
        assert "key authorization" in why


async def test_section_5_the_certified_key_is_the_attested_one(devices, csr):
    client = await devices.client()
    order = await order_for(client)
    challenge = await challenge_of(client, order)
    device = AppleDevice(VENDORS["apple"])
    await respond(client, challenge, device.attest(challenge["token"]))
    answered = await client.finalize(order, csr(key=new_key()))
    assert (answered.status, answered.problem, answered.json["rule"]) == (400, "badCSR", "csr.attested_key")
    assert (await client.post(order.headers["Location"])).json["status"] == "ready", "for a better CSR"
    await client.finalize(order, csr(key=device.key))
    assert (await certificate(client, order)).public_key() == device.key.public_key()


@ON_SQLITE
async def test_section_5_the_core_does_not_believe_the_front(devices, csr):
    """A front that forgets to look at the key gets no certificate for another."""
    client = await devices.client()
    order = await order_for(client)
    challenge = await challenge_of(client, order)
    await respond(client, challenge, AppleDevice(VENDORS["apple"]).attest(challenge["token"]))

    async def nothing(*_arguments):
        return None

    devices.front._orders._wrong_key = nothing
    await client.finalize(order, csr(key=new_key()))
    failed = await client.poll(order.headers["Location"], "processing")
    assert failed["status"] == "invalid"
    assert failed["error"]["type"].endswith(":badCSR")


async def test_section_5_each_certificate_has_an_attestation_of_its_own(devices, csr):
    client = await devices.client()
    device = AppleDevice(VENDORS["apple"], serial="a.test", udid="")
    order = await order_for(client, "a.test")
    challenge = await challenge_of(client, order)
    await respond(client, challenge, device.attest(challenge["token"]))
    await client.finalize(order, csr(key=device.key))
    await certificate(client, order)
    again = await order_for(client, "a.test")
    assert again.json["status"] == "pending"
    assert again.json["authorizations"] != order.json["authorizations"]
    # Not even where a DNS name of the same order is looked for under the same text.
    again = await order_for(client, "a.test", "permanent-identifier", {"type": "dns", "value": "a.test"})
    assert not set(again.json["authorizations"]) & set(order.json["authorizations"])


@ON_SQLITE
async def test_sections_3_1_and_4_1_grammar(devices):
    client = await devices.client()
    for kind, value in (
        ("permanent-identifier", "C02/x"),
        ("permanent-identifier", ""),
        ("permanent-identifier", "C02/1.2.3/4"),
        ("hardware-module", "HW1"),
    ):
        answer = await order_for(client, value, kind)
        assert (answer.status, answer.problem) == (400, "malformed"), value
    answer = await order_for(client, "C02/x", "permanent-identifier", {"type": "hardware-module", "value": "HW1"})
    assert answer.problem == "malformed"
    assert [each["identifier"]["value"] for each in answer.json["subproblems"]] == ["C02/x", "HW1"]


@ON_SQLITE
async def test_devices_are_for_the_profiles_that_name_them(devices):
    client = await devices.client()
    answer = await order_for(client, "D02")
    assert (answer.problem, answer.json["rule"]) == ("rejectedIdentifier", "names.permanent-identifier")
    short = await devices.client(profile="short")
    assert (await order_for(short)).json["rule"] == "names.permanent-identifier"


@ON_SQLITE
async def test_devices_are_not_authorized_by_themselves(devices):
    client = await devices.client()
    wanted = {"identifier": {"type": "permanent-identifier", "value": SERIAL}}
    answer = await client.post(f"{client.base}/new-authz", wanted)
    assert (answer.problem, answer.json["rule"]) == ("rejectedIdentifier", "names.preauthorization")


@ON_SQLITE
async def test_nothing_is_offered_without_roots(devices):
    await devices.serve(options_of(devices, Roots({"apple": ()})))
    client = await devices.client()
    answer = await order_for(client)
    assert (answer.status, answer.problem) == (400, "unsupportedIdentifier")
    assert answer.json["detail"].endswith("use dns or ip")


@ON_SQLITE
async def test_dns_names_are_not_offered_attestation(devices):
    client = await devices.client()
    order = await client.order("a.test")
    found = (await client.post(order.json["authorizations"][0])).json
    assert "device-attest-01" not in {each["type"] for each in found["challenges"]}


@ON_SQLITE
@pytest.mark.parametrize("payload", [{}, {"attObj": 1}, {"attObj": ""}, {"attObj": "*"}, {"error": "no"}])
async def test_what_is_no_attestation_leaves_the_challenge_pending(devices, payload):
    client = await devices.client()
    challenge = await challenge_of(client, await order_for(client))
    answer = await client.post(challenge["url"], payload)
    assert (answer.status, answer.problem) == (400, "malformed")
    assert (await client.post(challenge["url"])).json["status"] == "pending"


@ON_SQLITE
async def test_the_size_of_an_attestation_is_bounded(devices):
    client = await devices.client()
    challenge = await challenge_of(client, await order_for(client))
    answer = await respond(client, challenge, b"\x00" * (64 * 1024 + 1))
    assert (answer.status, answer.problem) == (400, "badAttestationStatement")
    answer = await respond(client, challenge, b"\x00" * (64 * 1024))
    assert answer.json["status"] == "invalid"


@pytest.mark.parametrize("process", ["front-1", "front-2"])
async def test_another_front_finishes_what_one_began(devices, csr, monkeypatch, process):
    """The attestation is stored with the challenge: a front that dies leaves it to its next run, or to another."""
    client = await devices.client()
    order = await order_for(client)
    challenge = await challenge_of(client, order)
    device = AppleDevice(VENDORS["apple"])
    first = devices.front
    monkeypatch.setattr(first._validating, "_dispatch", lambda: None)
    monkeypatch.setattr("protocols.acme.authorizations._ATTESTATION_PATIENCE", 0.01)
    answered = await respond(client, challenge, device.attest(challenge["token"]))
    assert answered.json["status"] == "processing"
    assert answered.headers["Retry-After"]
    await first.stop()
    if process != "front-1":
        await devices.execute("UPDATE acme_challenges SET lease_until = 1")
    await devices.serve(process=process)
    assert (await client.poll(challenge["url"], "processing"))["status"] == "valid"
    ((kept, evidence),) = await devices.query("SELECT response, evidence FROM acme_challenges")
    assert kept is None, "an attestation tells more than needs to be kept"
    shown = json.loads(bytes(evidence))
    assert (shown["attestation"], shown["serial_number"], shown["udid"]) == ("apple", SERIAL, device.udid)
    assert len(shown["attestation_sha256"]) == len(shown["key_sha256"]) == 64
    await client.finalize(order, csr(key=device.key))
    await certificate(client, order)


@ON_SQLITE
async def test_staging_skips_no_attestation(devices):
    """Without one there is no key that a certificate could be for."""
    await devices.serve(replace(options_of(devices), unsafe_skip_validation=True))
    client = await devices.client()
    assert "canonical CBOR" in await refused(devices, client, b"\xff")


@ON_SQLITE
async def test_the_subject_that_a_profile_copies_is_the_device(devices, csr):
    client = await devices.client(profile="copying")
    device = AppleDevice(VENDORS["apple"])
    order = await order_for(client)
    challenge = await challenge_of(client, order)
    await respond(client, challenge, device.attest(challenge["token"]))
    answer = await client.finalize(order, csr(key=device.key, common_name="My Phone"))
    assert (answer.problem, answer.json["rule"]) == ("unauthorized", "subject.device")
    await client.finalize(order, csr(key=device.key, common_name=SERIAL))
    assert (await certificate(client, order)).subject.rfc4514_string() == f"CN={SERIAL},O=Corp"


@ON_SQLITE
async def test_evidence_is_told_to_the_core(devices, csr):
    client = await devices.client()
    device = AppleDevice(VENDORS["apple"])
    order = await order_for(client)
    challenge = await challenge_of(client, order)
    await respond(client, challenge, device.attest(challenge["token"]))
    await client.finalize(order, csr(key=device.key))
    await certificate(client, order)
    (evidence,) = devices.core.asked[-1].evidence
    assert evidence.identifier == Identifier(IdentifierType.PERMANENT_IDENTIFIER, SERIAL)
    assert evidence.method == "device-attest-01"
    assert len(evidence.spki_sha256) == 32
    assert evidence.validated_at - NOW < timedelta(hours=1)
