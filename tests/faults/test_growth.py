"""What a server does at its start and ever after costs the same with a million certificates as with none."""

import sqlite3
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from interoplib.acme import AcmeClient
from interoplib.enrollment import Enrollment, Surroundings
from interoplib.server import Server

from ca_server.settings import AcmeLimitSettings
from protocols.acme.certid import certid_of

GROWING = frozenset(
    {
        "acme_accounts",
        "acme_attempts",
        "acme_authorizations",
        "acme_caa",
        "acme_challenges",
        "acme_former_keys",
        "acme_limits",
        "acme_nonces",
        "acme_order_links",
        "acme_orders",
        "audit_events",
        "audit_leaves",
        "certificate_names",
        "certificates",
        "enrollments",
        "intents",
    }
)

PARTS = ("_processing", "_live")
"""Ends of the names of indexes that have the unfinished alone."""

RATES = tuple(
    f"acme.limits.{field.name}=1000 per 1h"
    for field in msgspec.structs.fields(AcmeLimitSettings)
    if "_prefix" not in field.name and field.name != "help_url"
)


def test_no_statement_reads_a_whole_table_that_grows(
    ca_server_command: Path,
    surroundings: Surroundings,
    open_folder: Callable[[str], Path],
    enroll: Callable[[Server], Enrollment],
    tmp_path: Path,
) -> None:
    notes = open_folder("statements")
    notes.chmod(0o777)
    server = Server(
        ca_server_command, open_folder("growth"), (*surroundings.settings, *RATES, "acme.caa_identities=ca.test")
    )
    server.init()
    profile = server.home / "profiles" / "default.toml"
    profile.write_text('caa = "enforce"\n' + profile.read_text())
    server.environment = {
        "STATEMENTS_FOLDER": str(notes),
        "PYTHONPATH": str(Path(__file__).parent / "statements"),
    }
    for _ in range(2):  # the second start finds what the first left
        server.start()
        customer = enroll(server)
        certificate = customer.certificate(tmp_path, "growth.test", "second.growth.test")
        leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
        renew_early(customer.client, leaf)
        customer.client.revoke(leaf)
        name = {"identifier": {"type": "dns", "value": "later.growth.test"}}
        customer.client.post(customer.client.directory["newAuthz"], name)
        bound, kid = customer.bound_by(server, "--names", "*.growth.test", "--quota", "9 live", "--quota", "9 per 1d")
        bound.certificate(tmp_path, "bound.growth.test")
        server.cli("eab", "disable", kid, "--and-accounts")
        customer.client.change_key(ec.generate_private_key(ec.SECP256R1()))
        assert server.stop() == 0, server.log_tail()
    statements = {line for file in notes.iterdir() for line in file.read_text().splitlines()}
    assert len(statements) > 80, "the notes are not of the server's work"
    whole = []
    with closing(sqlite3.connect(server.home / "data" / "ca.db")) as database:
        for statement in statements:
            if statement.split()[0] not in {"SELECT", "UPDATE", "DELETE", "WITH", "INSERT"}:
                continue
            plan = database.execute(f"EXPLAIN QUERY PLAN {statement}", [None] * statement.count("?")).fetchall()
            whole += [(step, statement) for *_, step in plan if is_whole_table(step)]
    assert whole == []


def renew_early(client: AcmeClient, leaf: x509.Certificate) -> None:
    url = f"{client.directory['renewalInfo']}/{certid_of(leaf)}"
    assert client._send(urllib.request.Request(url)).status == 200
    names = [{"type": "dns", "value": "growth.test"}]
    order = client.post(client.directory["newOrder"], {"identifiers": names, "replaces": str(certid_of(leaf))})
    assert order.status == 201


def is_whole_table(step: str) -> bool:
    """Whether a step of a plan reads a growing table from end to end; an index over a part of the rows is no whole."""
    words = step.split()
    return words[0] == "SCAN" and words[1] in GROWING and not words[-1].endswith(PARTS)
