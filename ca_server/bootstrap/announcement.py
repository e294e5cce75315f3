"""What a started server tells the person who started it."""

import shutil
import sys
from pathlib import Path

from ca_server.settings import Home, Settings

HTTP_01_PORT = 80
"""Where clients serve http-01 unless told otherwise (RFC 8555 section 8.3)."""


def announcement(home: Home, settings: Settings) -> str:
    """Where everything is, and what to do next."""
    issuing = next((name for name, issuer in settings.issuers.items() if issuer.parent), "issuing")
    root = next((name for name, issuer in settings.issuers.items() if not issuer.parent), "root")
    https, http = settings.https_url, settings.http_url
    command = f"{_own_command()} issuer export {root} --home {home.path} > root.pem"
    port = settings.acme.http_01_port
    chosen = "" if port == HTTP_01_PORT else f" --http-01-port {port}"
    return "\n".join(
        (
            "",
            *_warnings(settings),
            f"ca-server is ready; home {home.path}",
            f"  ACME directory    {https}/acme/directory",
            f"  CRL               {http}/crl/{issuing}.crl  (root: {http}/crl/{root}.crl)",
            f"  OCSP              {http}/ocsp",
            f"  Root certificate  {http}/issuer/{root}.cer  or  {command}",
            f"  Health            {http}/readyz   Metrics  {http}/metrics",
            "",
            f"  Get a certificate (the name must lead here, port {port} must be free):",
            f"    {command}",
            f"    REQUESTS_CA_BUNDLE=root.pem certbot certonly --standalone{chosen} --server {https}/acme/directory \\",
            "      --agree-tos --register-unsafely-without-email -d host.example.test",
            "",
            "",
        )
    )


def _own_command() -> str:
    """How to call this program from where the person is: by its name where that leads here, else by its path."""
    own = Path(sys.executable).with_name("ca-server")
    found = shutil.which("ca-server")
    return "ca-server" if found is not None and Path(found).resolve() == own.resolve() else str(own)


def _warnings(settings: Settings) -> tuple[str, ...]:
    """What nobody may overlook."""
    if not settings.server.staging:
        return ()
    unsafe = "; challenges are NOT VALIDATED (acme.unsafe_skip_validation)"
    return (f"STAGING: a CA for tests, never to be trusted{unsafe if settings.acme.unsafe_skip_validation else ''}",)
