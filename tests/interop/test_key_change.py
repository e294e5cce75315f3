"""The change of an account's key at a running server: no packaged client offers it, so the tests' own does it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from interoplib.acme import Problem
from interoplib.enrollment import Enrollment
from interoplib.server import Server


def test_an_account_goes_on_with_another_key(
    ca: Server, enroll: Callable[[Server], Enrollment], tmp_path: Path
) -> None:
    customer = enroll(ca)
    client, host = customer.client, "rolled.example.test"
    certificate = customer.certificate(tmp_path, host)
    old, new = client.key, ec.generate_private_key(ec.SECP256R1())
    client.change_key(new)
    client.key = old
    for _ in range(10):
        with pytest.raises(Problem) as refused:
            client.post(client.account_url, None)
        assert (refused.value.status, refused.value.type) == (401, "unauthorized")
    client.key = new
    assert client.new_order(host).status == "ready", "what the old key authorized stands"
    client.revoke(x509.load_pem_x509_certificate(certificate.read_bytes()))
