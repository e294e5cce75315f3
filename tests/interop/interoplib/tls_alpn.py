"""A TLS server that answers tls-alpn-01 (RFC 8737) with what clients leave in a folder."""

import base64
import contextlib
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

PROTOCOL = "acme-tls/1"
ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")


def write_pair(folder: Path, name: str, digest: bytes) -> None:
    """The certificate of RFC 8737 section 3 for clients that hand out the digest alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "responder")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.UnrecognizedExtension(ACME_IDENTIFIER, b"\x04\x20" + digest), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / f"{name}.crt.pem").write_bytes(certificate.public_bytes(Encoding.PEM))


class TlsAlpnServer:
    """Answers with `folder/NAME.crt.pem` and `folder/NAME.key.pem` for the SNI NAME, while used as a context manager.

    A `folder/NAME.digest` (base64url) is made a certificate first.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self._port = port
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols([PROTOCOL])
        context.sni_callback = self._choose
        with contextlib.suppress(OSError), connection, context.wrap_socket(connection, server_side=True):
            pass

    def _choose(self, peer: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> int | None:
        digest = self.folder / f"{name}.digest"
        if name is not None and digest.exists():
            write_pair(self.folder, name, base64.urlsafe_b64decode(digest.read_text("ascii").strip() + "=="))
        if name is None or not (self.folder / f"{name}.crt.pem").exists():
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        chosen = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        chosen.set_alpn_protocols([PROTOCOL])
        chosen.load_cert_chain(self.folder / f"{name}.crt.pem", self.folder / f"{name}.key.pem")
        peer.context = chosen
        return None
