"""Client libraries of several languages, each driven through all that it offers by a program in drivers/."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from interoplib.enrollment import Surroundings
from interoplib.matrix import COLUMNS, LACKS
from interoplib.openssl import Relying
from interoplib.server import Server
from interoplib.tls_alpn import TlsAlpnServer
from interoplib.tools import CHECKOUT, need, run
from interoplib.web import ChallengeServer

DRIVERS = Path(__file__).parent / "drivers"
TOOLS = CHECKOUT / ".tools" / "clients"
PYTHON = str(TOOLS / "bin" / "python")
NODE = str(TOOLS / "bin" / "node")
LIBRARIES = {
    "acme-client (Node.js)": (NODE, "acme_client.js"),
    "acme-client (Ruby)": ("ruby", "acme_client.rb"),
    "acmeow": (PYTHON, "acmeow_driver.py"),
    "aioacme": (PYTHON, "aioacme_driver.py"),
    "gufo-acme": (PYTHON, "gufo_driver.py"),
    "lacme (Python)": (PYTHON, "lacme_driver.py"),
}
HOW = {"issue": "http-01", "revoke": "by account", "wildcard": "dns-01"}


@dataclass
class Ways:
    """Where challenges are answered from."""

    challenges: Path
    alpn: Path


@pytest.fixture(scope="module")
def ways(surroundings: Surroundings, open_folder: Callable[[str], Path]) -> Iterator[Ways]:
    folder = open_folder("ways")
    with (
        ChallengeServer(folder, surroundings.http_01_port) as web,
        TlsAlpnServer(folder / "alpn", surroundings.tls_alpn_01_port) as tls,
    ):
        yield Ways(web.folder, tls.folder)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_does_all_that_it_offers(
    library: str,
    ca: Server,
    eab: Mapping[str, str],
    ways: Ways,
    surroundings: Surroundings,
    relying: Relying,
    environment: dict[str, str],
    tmp_path: Path,
    record_client: Callable[[str, str, str, str], None],
) -> None:
    program, driver = LIBRARIES[library]
    host = f"{os.urandom(4).hex()}.example.test"
    job: dict[str, Any] = {
        "directory": ca.directory,
        "root": str(ca.root),
        "host": host,
        "eab": dict(eab),
        "challenges": str(ways.challenges),
        "alpn": str(ways.alpn),
        "records": str(surroundings.dns.records),
        "folder": str(tmp_path),
    }
    environment |= {"NODE_EXTRA_CA_CERTS": str(ca.root), "NODE_PATH": str(TOOLS / "node_modules")}
    done = json.loads(run([need(program), DRIVERS / driver, json.dumps(job)], env=environment).stdout)
    files = {deed: Path(file) for deed, file in done["files"].items()}

    names = {"wildcard": f"any.w.{host}", "tls-alpn-01": f"t.{host}"}
    for deed, file in files.items():
        which = ("-verify_ip", "127.0.0.1") if deed == "IP" else ("-verify_hostname", names.get(deed, host))
        relying.verify(file, *which)
        if deed == "revoke":
            assert f"{file}: revoked" in relying.ocsp(file)
    first, second = (x509.load_pem_x509_certificate(files[deed].read_bytes()) for deed in ("issue", "renew"))
    assert first.serial_number != second.serial_number

    deeds = {*files, *done["deeds"]}
    assert deeds == set(COLUMNS[:-1]) - set(LACKS[library])
    for deed in deeds:
        record_client(library, done["version"], deed, HOW.get(deed, "yes"))
