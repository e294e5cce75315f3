"""The roots of attestations are read at the start, or it is stopped by one line that names setting and file."""

from pathlib import Path

import pytest
from attestations import Chain, authority
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ca_server.bootstrap.attestation import load_attestation_roots
from ca_server.bootstrap.front import acme_options
from ca_server.core.ports import Welcome
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import AcmeSettings, AttestationSettings, Home, Settings
from protocols.acme.attestation import Roots

CHAIN = Chain.of("any")


def load(home: Path, **roots: tuple[str, ...]):
    return load_attestation_roots(Home(home), Settings(acme=AcmeSettings(attestation=AttestationSettings(**roots))))


def test_none(tmp_path: Path) -> None:
    assert not load(tmp_path)


def test_files(tmp_path: Path) -> None:
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots" / "two.pem").write_bytes(CHAIN.root.pem + b"\n" + CHAIN.intermediate.pem)
    (tmp_path / "one.pem").write_bytes(CHAIN.root.pem)
    found = load(tmp_path, tpm_roots=("roots/two.pem", str(tmp_path / "one.pem")), step_roots=("one.pem",)).by_format
    assert found == {
        "apple": (),
        "tpm": (CHAIN.root.certificate, CHAIN.intermediate.certificate),
        "step": (CHAIN.root.certificate,),
    }


def test_the_front_has_them() -> None:
    roots = Roots({"apple": (CHAIN.root.certificate,)})
    welcome = Welcome("node", b"", "")
    assert acme_options(Settings(), welcome, roots).validation.attestation_roots is roots


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (None, "can't be read: No such file"),
        (b"", "no certificates in PEM"),
        (CHAIN.root.der, "no certificates in PEM"),
        (CHAIN.root.pem[:-40], "no certificates in PEM"),
        (authority("no CA", CHAIN.root, ca=False).pem, "not a CA's"),
        (
            CHAIN.root.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            "no certificates in PEM",
        ),
        (b" " * (1024 * 1024 + 1), "more than 1048576 octets"),
    ],
)
def test_mistakes(tmp_path: Path, data: bytes | None, why: str) -> None:
    if data is not None:
        (tmp_path / "roots.pem").write_bytes(data)
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, apple_roots=("roots.pem",))
    assert str(caught.value).startswith(f"{tmp_path}/ca-server.toml: acme.attestation.apple_roots = 'roots.pem': ")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
