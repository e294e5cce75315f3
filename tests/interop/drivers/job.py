"""What the drivers of Python libraries share: their task, and the ways to answer challenges."""

import base64
import hashlib
import json
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

JOB: dict[str, Any] = json.loads(sys.argv[1])
HOST: str = JOB["host"]
IP = "127.0.0.1"
_done: dict[str, Any] = {"files": {}, "deeds": []}


def put_http(token: str, text: str) -> None:
    (Path(JOB["challenges"]) / token).write_text(text, "ascii")


def put_dns(name: str, value: str) -> None:
    with (Path(JOB["records"]) / name.rstrip(".")).open("a", encoding="ascii") as file:
        file.write(value + "\n")


def put_tls(name: str, certificate: bytes, key: bytes) -> None:
    (Path(JOB["alpn"]) / f"{name}.key.pem").write_bytes(key)
    (Path(JOB["alpn"]) / f"{name}.crt.pem").write_bytes(certificate)


def dns_value(key_authorization: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(key_authorization.encode()).digest()).rstrip(b"=").decode()


def csr(*names: str) -> x509.CertificateSigningRequest:
    alternatives = [x509.IPAddress(ip_address(name)) if name == IP else x509.DNSName(name) for name in names]
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )


def keep(deed: str, chain: str | bytes) -> None:
    """Hand a certificate to the test, under the column that it is for."""
    file = Path(JOB["folder"]) / f"{deed.replace(' ', '-')}.pem"
    file.write_bytes(chain.encode() if isinstance(chain, str) else chain)
    _done["files"][deed] = str(file)


def did(deed: str) -> None:
    _done["deeds"].append(deed)


def end(version: str) -> None:
    sys.stdout.write(json.dumps({"version": version, **_done}))
