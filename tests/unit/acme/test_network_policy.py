"""Which addresses validation may connect to, whatever challenge it is for."""

from ipaddress import ip_address, ip_network

import pytest

from ca_server.settings import AcmeSettings
from protocols.acme.validation import ValidationPolicy


@pytest.mark.parametrize(
    ("address", "permitted"),
    [
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:0.0.0.0", False),
        ("224.0.0.1", False),
        ("ff02::1", False),
        ("169.254.169.254", False),
        ("::ffff:169.254.169.254", False),
        ("::169.254.169.254", False),
        ("::ffff:0:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::a9fe:a9fe", False),
        ("2002:a9fe:a9fe::1", False),
        ("2001:0:a9fe:a9fe::1", False),  # Teredo: the server's address, and the client's with its bits turned over
        ("2001:0:c000:201::5601:5601", False),
        ("100.100.100.200", False),
        ("fd00:ec2::254", False),
        ("0.1.2.3", False),
        ("::1", True),
        ("127.0.0.1", True),
        ("10.0.0.1", True),
        ("::ffff:10.0.0.1", True),
        ("64:ff9b::a00:1", True),
        ("2001:db8::1", True),
    ],
)
def test_networks_as_configured_by_default(address: str, permitted: bool) -> None:
    networks = tuple(map(ip_network, AcmeSettings().denied_networks))
    assert ValidationPolicy(denied_networks=networks).permits(ip_address(address)) is permitted


@pytest.mark.parametrize("address", ["::", "0.0.0.0", "ff02::1", "224.0.0.1", "64:ff9b::"])
def test_some_addresses_are_never_permitted(address: str) -> None:
    everywhere = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert not ValidationPolicy(allowed_networks=everywhere).permits(ip_address(address))


@pytest.mark.parametrize(("address", "permitted"), [("64:ff9b::a00:1", True), ("64:ff9b::b00:1", False)])
def test_what_an_address_leads_to_must_be_allowed_too(address: str, permitted: bool) -> None:
    allowed = (ip_network("10.0.0.0/8"), ip_network("64:ff9b::/96"))
    assert ValidationPolicy(allowed_networks=allowed).permits(ip_address(address)) is permitted
    assert not ValidationPolicy(allowed_networks=allowed[:1]).permits(ip_address(address))
