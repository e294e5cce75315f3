"""acme-tiny, Debian's and the one that the package index has today, and Debian's lacme, which know http-01 alone."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from interoplib.acme import make_csr
from interoplib.enrollment import Surroundings
from interoplib.openssl import Relying
from interoplib.server import Server
from interoplib.tools import CHECKOUT, need, run
from interoplib.trust import trusting
from interoplib.web import ChallengeServer

TINY = {"debian": Path("/usr/bin/acme-tiny"), "index": CHECKOUT / ".tools" / "clients" / "bin" / "acme-tiny"}


@pytest.fixture(scope="module")
def web(surroundings: Surroundings, open_folder: Callable[[str], Path]) -> Iterator[ChallengeServer]:
    with ChallengeServer(open_folder("www"), surroundings.http_01_port) as server:
        server.folder.chmod(0o777)
        yield server


@pytest.mark.parametrize("source", TINY)
def test_acme_tiny(
    source: str,
    ca: Server,
    web: ChallengeServer,
    environment: dict[str, str],
    relying: Relying,
    record_client: Callable[..., None],
    tmp_path: Path,
) -> None:
    program, host = need(str(TINY[source])), f"tiny-{os.urandom(3).hex()}.example.test"
    key, csr = tmp_path / "account.key", tmp_path / "request.csr"
    run(["openssl", "genrsa", "-out", key, "2048"])
    csr.write_bytes(x509.load_der_x509_csr(make_csr(host)).public_bytes(Encoding.PEM))
    command = [program, "--account-key", key, "--csr", csr, "--acme-dir", web.folder, "--directory-url", ca.directory]
    trust = environment | {"SSL_CERT_FILE": str(ca.root)}
    serials = set()
    for _ in range(2):
        certificate = tmp_path / "certificate.pem"
        done = run([*command, "--disable-check", "--contact", "mailto:hostmaster@example.test"], env=trust)
        certificate.write_text(done.stdout)
        relying.verify(certificate, "-verify_hostname", host)
        serials.add(x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number)
    assert len(serials) == 2
    version = version_of(source)
    record_client("acme-tiny", version, "issue", "http-01")
    record_client("acme-tiny", version, "renew", "yes")


def version_of(source: str) -> str:
    if source == "debian":
        shown = run(["dpkg-query", "-W", "-f", "${source:Upstream-Version}", "acme-tiny"]).stdout
        return shown.partition(":")[2] or shown
    python = TINY[source].with_name("python")
    return run([python, "-c", "from importlib.metadata import version; print(version('acme-tiny'))"]).stdout.strip()


def test_lacme(
    ca: Server,
    web: ChallengeServer,
    relying: Relying,
    record_client: Callable[..., None],
    tmp_path: Path,
) -> None:
    """It runs as a master, an account daemon, a client and a web server of its own, each a process."""
    program, host = need("lacme"), f"lacme-{os.urandom(3).hex()}.example.test"
    account, key, certificate = (tmp_path / name for name in ("account.key", "server.key", "certificate.pem"))
    run(["openssl", "genrsa", "-out", account, "2048"])
    key.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (tmp_path / "accountd.conf").write_text(f"privkey = file:{account}\n")
    (tmp_path / "certs.conf").write_text(
        f"[web]\ncertificate = {certificate}\ncertificate-key = {key}\nsubject = /CN={host}\n"
        f"subjectAltName = DNS:{host}\nCAfile =\n"
    )
    me = "user =\ngroup =\n"
    config = tmp_path / "lacme.conf"
    config.write_text(
        f"config-certs = {tmp_path / 'certs.conf'}\n[client]\n{me}server = {ca.directory}\n"
        f"[webserver]\nlisten =\nchallenge-directory = {web.folder}\n{me}"
        f"[accountd]\nconfig = {tmp_path / 'accountd.conf'}\n"
    )

    words = trusting(ca.root, tmp_path / "trusted")

    def lacme(*arguments: str) -> None:
        run([*words, program, f"--config={config}", *arguments])

    lacme("account", "--register", "--tos-agreed", "mailto:hostmaster@example.test")
    serials = set()
    for _ in range(2):
        lacme("newOrder", "--force")
        relying.verify(certificate, "-verify_hostname", host)
        serials.add(x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number)
    assert len(serials) == 2
    lacme("revokeCert", str(certificate))
    assert f"{certificate}: revoked" in relying.ocsp(certificate)
    version = run(["dpkg-query", "-W", "-f", "${source:Upstream-Version}", "lacme"]).stdout
    for column, deed in (("issue", "http-01"), ("renew", "yes"), ("revoke", "by account")):
        record_client("lacme (Debian)", version, column, deed)
