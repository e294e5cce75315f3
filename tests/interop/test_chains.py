"""Clients choose among chains (RFC 8555 section 7.4.2): each takes the one to a root that another CA has."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from interoplib.enrollment import Surroundings
from interoplib.server import Server
from interoplib.tools import need, run
from other_ca import OtherCa

SEEN_WITHIN = 2.0
"""Seconds in which fronts see an import."""


@pytest.fixture(scope="module")
def other_root(ca: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The common name of a root that signed the issuing CA too, as the running server was told by its operator."""
    other = OtherCa("Root of Another CA")
    csr = x509.load_pem_x509_csr(ca.cli("issuer", "csr", "issuing").stdout.encode())
    file = tmp_path_factory.mktemp("chains") / "cross.pem"
    pem = [each.public_bytes(Encoding.PEM).decode() for each in (other.certify(csr), other.root)]
    file.write_text("".join(pem))
    told = ca.cli("issuer", "import", "issuing", str(file)).stdout
    assert "signed by 'CN=Root of Another CA'" in told
    assert ca.cli("issuer", "show", "issuing", "--json").stdout.count(other.name) == 1
    again = ca.cli("issuer", "import", "issuing", str(file), expect=1)
    assert "is there already" in again.stderr
    time.sleep(SEEN_WITHIN)
    return other.name


def top(fullchain: Path) -> str:
    """Who signed the topmost certificate of a chain."""
    certificates = x509.load_pem_x509_certificates(fullchain.read_bytes())
    assert len(certificates) == 2
    certificates[0].verify_directly_issued_by(certificates[1])
    return certificates[-1].issuer.rfc4514_string()


def test_certbot_prefers_a_chain(
    ca: Server,
    other_root: str,
    surroundings: Surroundings,
    environment: dict[str, str],
    record_client: Callable[..., None],
    tmp_path: Path,
) -> None:
    program = need("/usr/bin/certbot")
    host = "certbot-chain.example.test"
    common = [f"--{kind}-dir={tmp_path / kind}" for kind in ("config", "work", "logs")]
    common += ["--server", ca.directory, "--non-interactive", "--agree-tos", "--register-unsafely-without-email"]
    how = ["--standalone", "--preferred-challenges", "http", "--http-01-port", str(surroundings.http_01_port)]
    wanted = ["-d", host, "--cert-name", host, "--preferred-chain", other_root]
    run([program, "certonly", *common, *how, *wanted], env=environment)
    assert top(tmp_path / "config" / "live" / host / "fullchain.pem") == f"CN={other_root}"
    record_client("certbot", run([program, "--version"]).stdout.split()[-1], "other", "chosen chain")


def test_lego_prefers_a_chain(
    ca: Server,
    other_root: str,
    surroundings: Surroundings,
    environment: dict[str, str],
    record_client: Callable[..., None],
    tmp_path: Path,
) -> None:
    program, host = need("lego"), "lego-chain.example.test"
    common = ["--server", ca.directory, "--path", str(tmp_path), "--email", "a@example.test", "--accept-tos"]
    http = ["--http", "--http.port", f"127.0.0.1:{surroundings.http_01_port}"]
    run([program, *common, "--domains", host, *http, "run", "--preferred-chain", other_root], env=environment)
    assert top(tmp_path / "certificates" / f"{host}.crt") == f"CN={other_root}"
    shown = run(["dpkg-query", "-W", "-f", "${Version}", "lego"], expect=None).stdout
    record_client("lego", re.split(r"[-+]", shown)[0] or "dev", "other", "chosen chain")
