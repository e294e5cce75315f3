"""uacme: all that it offers."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from interoplib.enrollment import Surroundings
from interoplib.openssl import Relying
from interoplib.server import Server
from interoplib.tls_alpn import TlsAlpnServer
from interoplib.tools import need, run
from interoplib.trust import trusting
from interoplib.web import CHALLENGES, ChallengeServer

HOOK = """
[ "$2" = "$WANTED" ] || exit 1
[ "$1" = begin ] || exit 0
case $2 in
  http-01) printf %s "$5" >"$WWW/$4" ;;
  dns-01) add "_acme-challenge.$3" "$5" ;;
  tls-alpn-01) printf %s "$5" >"$ALPN/$3.digest" ;;
esac
"""


@dataclass
class Uacme:
    """A uacme with a folder and an account of its own."""

    program: str
    folder: Path
    server: str
    hook: Path
    environment: dict[str, str]
    trusting: list[str]
    """Before each command: Debian's uacme can be told of no other CA than the system's."""

    def __call__(self, *arguments: str, kind: str = "http-01") -> None:
        argv = [
            *self.trusting,
            self.program,
            "--yes",
            "--acme-url",
            self.server,
            "--confdir",
            self.folder,
            "--hook",
            self.hook,
        ]
        run([*argv, "--type", "EC", *arguments], env={**self.environment, "WANTED": kind})

    def obtain(self, *names: str, kind: str = "http-01") -> Path:
        self("--force", "issue", *names, kind=kind)
        return self.folder / names[0].removeprefix("*.") / "cert.pem"


@pytest.fixture
def uacme(
    ca: Server,
    surroundings: Surroundings,
    environment: dict[str, str],
    txt_hook: Callable[[str, str], Path],
    eab: Mapping[str, str],
    tmp_path: Path,
) -> Uacme:
    places = {"WWW": str(tmp_path / CHALLENGES), "ALPN": str(tmp_path / "alpn")}
    hook = txt_hook("uacme-hook.sh", HOOK)
    words = trusting(ca.root, tmp_path / "trusted")
    client = Uacme(need("uacme"), tmp_path / "uacme", ca.directory, hook, environment | places, words)
    client("--eab", f"{eab['kid']}:{eab['hmac_key']}", "new", "hostmaster@example.test")
    return client


def test_all_that_it_offers(
    uacme: Uacme,
    relying: Relying,
    surroundings: Surroundings,
    record_client: Callable[..., None],
    tmp_path: Path,
) -> None:
    version = run(["dpkg-query", "-W", "-f", "${source:Upstream-Version}", "uacme"]).stdout
    record = partial(record_client, "uacme", version)
    record("EAB")
    host = f"uacme-{os.urandom(3).hex()}.example.test"
    with (
        ChallengeServer(tmp_path, surroundings.http_01_port),
        TlsAlpnServer(tmp_path / "alpn", surroundings.tls_alpn_01_port),
    ):
        certificate = uacme.obtain(host)
        relying.verify(certificate, "-verify_hostname", host)
        record("issue", "http-01")

        uacme("newkey")
        record("key roll")
        first = x509.load_pem_x509_certificate(certificate.read_bytes())
        relying.verify(uacme.obtain(host), "-verify_hostname", host)
        assert x509.load_pem_x509_certificate(certificate.read_bytes()) != first
        record("renew")

        uacme("--reason", "4", "revoke", str(certificate))
        revoked = certificate.parent / next(certificate.parent.glob("revoked*"), certificate).name
        assert f"{revoked}: revoked" in relying.ocsp(revoked)
        record("revoke", "by account")

        relying.verify(uacme.obtain(f"t.{host}", kind="tls-alpn-01"), "-verify_hostname", f"t.{host}")
        record("tls-alpn-01")
        wildcard = uacme.obtain(f"*.w.{host}", f"w.{host}", kind="dns-01")
        relying.verify(wildcard, "-verify_hostname", f"any.w.{host}")
        record("issue", "dns-01")
        record("wildcard", "dns-01")
        relying.verify(uacme.obtain("127.0.0.1"), "-verify_ip", "127.0.0.1")
        record("IP")
