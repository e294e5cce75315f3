"""Speaks to the port of a running core as a front that was broken into, and prints what it was answered.

Arguments: the port's socket, and the serial of a certificate that is nobody's here.
"""

import asyncio
import json
import struct
import sys
from collections.abc import Awaitable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from ca_server.core.ports import Ping
from ca_server.domain.accounts import Account, AccountRegistration, AccountStatus, ExternalBinding
from ca_server.domain.certificates import RevocationReason, RevocationRequest
from ca_server.domain.enrollment import CaaChecked, EnrollmentRequest, Protocol, Requester, ValidatedIdentifier
from ca_server.domain.errors import CaError
from ca_server.domain.names import dns_identifier
from ca_server.rpc.client import RpcCorePort
from ca_server.rpc.messages import MAX_FRAME

SOCKET, SERIAL = Path(sys.argv[1]), sys.argv[2]
NOW = datetime.now(UTC)
GOOD, EVIL = "good.example.test", "www.bank.example"


def csr(*names: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None) -> bytes:
    extension = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(extension, False)
    return builder.sign(key or ec.generate_private_key(ec.SECP256R1()), SHA256()).public_bytes(Encoding.DER)


def shown(name: str, at: datetime = NOW, method: str = "http-01") -> tuple[ValidatedIdentifier, ...]:
    return (ValidatedIdentifier(dns_identifier(name.removeprefix("*.")), method, at),)


def checked(name: str, at: datetime) -> tuple[CaaChecked, ...]:
    return (CaaChecked(dns_identifier(name), at, authenticated=True),)


def enrollment(name: str = GOOD) -> EnrollmentRequest:
    return EnrollmentRequest(
        requester=Requester(Protocol.ACME, "impostor", "account-key"),
        profile="default",
        csr_der=csr(name),
        identifiers=(dns_identifier(name),),
        transaction_key="",
        evidence=shown(name),
    )


def of_another(request: EnrollmentRequest) -> bytes:
    """A CSR whose signature is not by its own key."""
    other = bytearray(request.csr_der)
    other[-1] ^= 1
    return bytes(other)


GOOD_REQUEST = enrollment()
OPERATOR = Requester(Protocol.ADMIN, "uid:0", "operator")
REVOCATION = RevocationRequest("issuing", SERIAL, RevocationReason.SUPERSEDED, "acme", "impostor", "account")
ENROLLMENTS = {
    "a name outside policy": enrollment(EVIL),
    "a wildcard without DNS": enrollment(f"*.{GOOD}"),
    "no evidence": replace(GOOD_REQUEST, evidence=()),
    "evidence of another name": replace(GOOD_REQUEST, evidence=shown("other.example.test")),
    "old evidence": replace(GOOD_REQUEST, evidence=shown(GOOD, NOW - timedelta(days=400))),
    "no check of CAA": replace(GOOD_REQUEST, profile="short"),
    "an old check of CAA": replace(GOOD_REQUEST, profile="short", caa=checked(GOOD, NOW - timedelta(hours=9))),
    "a check of another name's CAA": replace(GOOD_REQUEST, profile="short", caa=checked("other.example.test", NOW)),
    "no names": replace(GOOD_REQUEST, identifiers=()),
    "names that the CSR has not": replace(GOOD_REQUEST, csr_der=csr(GOOD, EVIL)),
    "no proof of possession": replace(GOOD_REQUEST, csr_der=of_another(GOOD_REQUEST)),
    "no CSR": replace(GOOD_REQUEST, csr_der=b"\x30\x00"),
    "a weak key": replace(GOOD_REQUEST, csr_der=csr(GOOD, key=rsa.generate_private_key(65537, 1024))),
    "a validity too long": replace(GOOD_REQUEST, not_after=NOW + timedelta(days=4000)),
    "an unknown profile": replace(GOOD_REQUEST, profile="nothing"),
    "the core's own profile": replace(GOOD_REQUEST, profile="ocsp-responder"),
    "an unknown pinned profile": replace(GOOD_REQUEST, profile_hash="00" * 32),
    "a CA": replace(GOOD_REQUEST, issuer="root"),
    "an operator's right": replace(GOOD_REQUEST, requester=OPERATOR),
    "another tenant": replace(GOOD_REQUEST, requester=replace(GOOD_REQUEST.requester, tenant="other")),
}
REVOCATIONS = {
    "to revoke what is another's": REVOCATION,
    "to revoke as an operator": replace(REVOCATION, authenticated_by="operator"),
    "to revoke as the core": replace(REVOCATION, requester_protocol="internal"),
}


def frame(envelope: Any) -> bytes:
    payload = msgspec.msgpack.encode(envelope)
    return struct.pack(">I", len(payload)) + payload


def call(**parts: Any) -> bytes:
    return frame({"v": 1, "id": 7, "op": "ping", "body": {}} | parts)


ANSWERED = {
    "an unknown operation": call(op="sign"),
    "an operator's operation": call(op="create_eab"),
    "another version": call(v=2),
    "an argument of the wrong type": call(op="issue", body={"profile": 3}),
}
CUT_OFF = {
    "a frame too large": struct.pack(">I", MAX_FRAME + 1),
    "a frame of 4 GiB": b"\xff" * 4,
    "no msgpack": struct.pack(">I", 3) + b"\xc1\xc1\xc1",
    "no envelope": frame([1, 2, 3]),
    "nested without end": struct.pack(">I", 200_005) + b"\x81\xa1z" + b"\x91" * 200_001 + b"\xc0",
    "another protocol": b"GET / HTTP/1.1\r\n\r\n",
}


async def answer(data: bytes) -> str:
    """The kind of error that is answered, or that the connection was cut off."""
    reader, writer = await asyncio.open_unix_connection(str(SOCKET))
    writer.write(data)
    try:
        async with asyncio.timeout(20):
            (length,) = struct.unpack(">I", await reader.readexactly(4))
            return str(msgspec.msgpack.decode(await reader.readexactly(length))["body"]["kind"])
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return "cut off"
    finally:
        writer.close()


async def refused(work: Awaitable[Any]) -> list[str]:
    """Kind and rule of the error."""
    try:
        done = await work
    except CaError as error:
        return [error.kind.value, error.rule or ""]
    return ["done", repr(done)[:100]]


async def main() -> None:
    port = RpcCorePort.at(SOCKET)
    await port.ping(Ping())
    told: dict[str, Any] = {name: await answer(data) for name, data in (ANSWERED | CUT_OFF).items()}
    for name, request in ENROLLMENTS.items():
        asked = replace(request, transaction_key=name, request_id=name)
        told[name] = await refused(port.issue(asked))
    for name, revocation in REVOCATIONS.items():
        told[name] = await refused(port.revoke(replace(revocation, request_id=name)))
    account = Account("impostor", "thumb", b"{}", AccountStatus.VALID, NOW)
    binding = ExternalBinding("nobody", "HS256", b"input", b"\x01" * 32)
    told["an unknown external account key"] = await refused(
        port.register_account(AccountRegistration(account, binding, "default"))
    )
    issued = await port.issue(replace(GOOD_REQUEST, transaction_key="good", request_id="good"))
    told["what policy allows"] = issued.serial
    await port.close()
    print(json.dumps(told))  # noqa: T201


asyncio.run(main())
