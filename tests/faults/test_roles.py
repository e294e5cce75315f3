"""PostgreSQL under three roles: the whole server works, and a front's role is refused what is not a front's."""

import asyncio
import os
import pwd
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from databases import PostgresServer, administer, run_apart
from interoplib.acme import Problem, make_csr
from interoplib.commands import lines_of, told
from interoplib.enrollment import Enrollment, Surroundings
from interoplib.openssl import Relying
from interoplib.server import Server
from interoplib.tools import run

from ca_server.bootstrap.checkup.files import permissions
from ca_server.bootstrap.checkup.model import Check
from ca_server.bootstrap.checkup.records import roles
from ca_server.bootstrap.stores import open_stores, prepare_database
from ca_server.configuration import load_settings
from ca_server.domain.certificates import serial_text
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Home
from ca_server.store.roles import Roles, creation_statements

OWNER, CORE, FRONT = "ca_owner", "ca-core", "ca_front"
"""One of them is a name that SQL wants quoted."""
PATIENCE = 30.0


@dataclass
class Separated:
    """A running server whose owner, core and fronts are three roles, each with a password in a file of its user's."""

    server: Server
    postgres: PostgresServer

    def query(self, role: str, *statements: str, database: str = "ca") -> list[Any]:
        """Run statements in a transaction that is undone; the rows of the last."""
        found: list[Any] = []

        async def ask() -> None:
            connection = await asyncpg.connect(
                host="127.0.0.1",
                port=self.postgres.port,
                user=role,
                database=database,
                password=f"secret-of-{role}",
            )
            try:
                transaction = connection.transaction()
                await transaction.start()
                for statement in statements:
                    found[:] = await connection.fetch(statement)
                await transaction.rollback()
            finally:
                await connection.close()

        run_apart(ask())
        return found

    def refused(self, role: str, *statements: str, database: str = "ca") -> str:
        """The SQLSTATE with which the last statement is refused."""
        with pytest.raises(asyncpg.PostgresError) as error:
            self.query(role, *statements, database=database)
        return str(error.value.sqlstate)


def passfile(folder: Path, user: str, role: str) -> Path:
    """A file in the form of ~/.pgpass that its user alone can read."""
    file = folder / f"{role}.pgpass"
    file.write_text(f"*:*:*:{role}:secret-of-{role}\n")
    file.chmod(0o600)
    if os.getuid() == 0 and user != "root":
        os.chown(file, pwd.getpwnam(user).pw_uid, -1)
    return file


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer(passwords=True)
    server.start()
    run_apart(administer(server.url(), "CREATE DATABASE ca"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def separated(
    postgres: PostgresServer,
    ca_server_command: Path,
    surroundings: Surroundings,
    open_folder: Callable[[str], Path],
) -> Iterator[Separated]:
    folder = open_folder("roles")
    listeners = ("listeners.http.serves=status,health,metrics,log", "processes.fronts=2")
    server = Server(ca_server_command, folder, (*surroundings.settings, *listeners))
    # What `doctor` is to see too.
    server.environment["CA_SERVER__DNS__NAMESERVERS"] = surroundings.dns.address
    server.environment["CA_SERVER__ACME__CAA_IDENTITIES"] = "ca.test"
    for key, user, role in (
        ("URL", "ca-server-core", CORE),
        ("FRONT_URL", "ca-server-front", FRONT),
        ("OWNER_URL", "root", OWNER),
    ):
        url = f"{postgres.url('ca', role)}?passfile={passfile(folder, user, role)}"
        server.environment[f"CA_SERVER__DATABASE__{key}"] = url
    # As docs/security.md has it: the roles by a superuser, the schema and the rights by the owner.
    printed = run([server.command, "db", "roles", "--home", folder], env=server.environment).stdout
    passwords = (f"ALTER ROLE \"{role}\" PASSWORD 'secret-of-{role}'" for role in (OWNER, CORE, FRONT))
    run_apart(administer(postgres.url("ca"), *(line.removesuffix(";") for line in printed.splitlines()), *passwords))
    server.init()
    profile = server.home / "profiles" / "default.toml"
    text = profile.read_text().replace('["test", "internal", "home.arpa", "localhost"]', '["test"]')
    profile.write_text('caa = "enforce"\n' + text)
    server.start()
    yield Separated(server, postgres)
    if server.process is not None:
        assert server.stop() == 0, server.log_tail()
    server.kill()


def test_the_whole_server_works(separated: Separated, enroll: Callable[[Server], Enrollment], tmp_path: Path) -> None:
    server = separated.server
    customer = enroll(server)
    customer.dns.authenticate()
    customer.dns.add_caa("example.test", "0 issue ca.test")
    kept, revoked = (customer.certificate(tmp_path, f"{name}.example.test") for name in ("kept", "revoked"))
    customer.client.revoke(x509.load_pem_x509_certificate(revoked.read_bytes()))
    name = {"identifier": {"type": "dns", "value": "later.example.test"}}
    customer.client.post(customer.client.directory["newAuthz"], name)
    customer.client.change_key(ec.generate_private_key(ec.SECP256R1()))
    customer.dns.fail("failing.example.test", "CAA")
    refused = customer.client.new_order("failing.example.test")
    customer.authorize(refused)
    customer.client.finalize(refused, make_csr("failing.example.test"))
    error = customer.client.wait_for_order(refused).body["error"]
    assert (error["rule"], error["type"].rpartition(":")[2]) == ("acme.caa", "caa")
    relying = Relying(tmp_path, server.root, server.issuing)
    assert f"{kept}: good" in relying.ocsp(kept)
    assert f"{revoked}: revoked" in relying.ocsp(revoked)
    deadline = time.monotonic() + PATIENCE
    serial = serial_text(x509.load_pem_x509_certificate(revoked.read_bytes()).serial_number)
    while serial not in relying.crl_text(revoked).lower():
        assert time.monotonic() < deadline, "the CRL never had it"
        time.sleep(0.2)
    (stored,) = lines_of(server, "audit", "tail", "--json", "--type", "issuance.stored", "--serial", serial)
    assert stored["extra"]["caa_authenticated"] == "1 names"
    with urllib.request.urlopen(f"{server.http_url}/log/checkpoint", timeout=10) as answer:
        size = int(answer.read().split(b"\n")[1])
    with urllib.request.urlopen(f"{server.http_url}/log/tile/entries/000.p/{size}", timeout=10) as answer:
        assert answer.status == 200
    policy = ("--names", "*.example.test", "--quota", "9 live", "--quota", "9 per 1d", "--owner", "web team")
    bound, kid = customer.bound_by(server, *policy)
    bound.certificate(tmp_path, "bound.example.test")
    assert [row["owner"] for row in told(server, "cert", "list", "--owner", "web team")] == ["web team"]
    server.cli("eab", "update", kid, "--quota", "none")
    server.cli("eab", "disable", kid, "--and-accounts")
    with pytest.raises(Problem) as refused:
        bound.client.new_order("bound.example.test")
    assert (refused.value.status, refused.value.type) == (401, "unauthorized")
    server.cli("audit", "verify")
    found = {check["name"]: check["verdict"] for check in told(server, "doctor")}
    assert found.pop("database roles") == "good"
    assert set(found.values()) == {"good"}
    log = server.log.read_text("utf-8", "replace")
    assert "Traceback" not in log
    assert "permission denied" not in log


def test_each_process_has_its_own_role(separated: Separated) -> None:
    told_by = separated.query("postgres", "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = 'ca'")
    assert {row["usename"] for row in told_by} == {CORE, FRONT, "postgres"}


LEAF = """convert_to('{{"id":"{id}","process":"{process}","type":"{type}"}}', 'UTF8')"""


def event(kind: str, process: str = "node1/front-1/0", *, leaf: str = "") -> str:
    """An INSERT of an event; `leaf` says something else than the columns."""
    value = leaf or LEAF.format(id="f0", process=process, type=kind)
    return (
        "INSERT INTO audit_events (id, type, outcome, time, process, sequence, leaf)"
        f" VALUES ('f0', '{kind}', 'success', 1, '{process}', 1000000, {value})"
    )


def test_a_front_inserts_a_fronts_events(separated: Separated) -> None:
    """What the refusals below are held against."""
    pending = separated.query(FRONT, event("order.created"), "SELECT 1 FROM audit_events WHERE id = 'f0'")
    assert len(pending) == 1


FORBIDDEN = {
    "an event of the core": event("issuance.stored"),
    "an event of revocation": event("certificate.revoked"),
    "an event as the core": event("order.created", "node1/core/0"),
    "an event whose leaf says another type": event(
        "order.created", leaf=LEAF.format(id="f0", process="node1/front-1/0", type="issuance.stored")
    ),
    "an event whose leaf says another process": event(
        "order.created", leaf=LEAF.format(id="f0", process="node1/core/0", type="order.created")
    ),
    "insert a certificate": "INSERT INTO certificates SELECT * FROM certificates",
    "revoke a certificate": "UPDATE certificates SET revoked_at = 1, revocation_reason = 1",
    "un-revoke a certificate": "UPDATE certificates SET revoked_at = NULL, revocation_reason = NULL",
    "alter a certificate": "UPDATE certificates SET der = ''",
    "delete a certificate": "DELETE FROM certificates",
    "insert an intent": "INSERT INTO intents SELECT * FROM intents",
    "settle an intent": "UPDATE intents SET state = 'abandoned'",
    "insert an enrollment": "INSERT INTO enrollments SELECT * FROM enrollments",
    "insert a CRL": "INSERT INTO crls SELECT * FROM crls",
    "alter a CRL": "UPDATE crls SET der = ''",
    "use up CRL numbers": "UPDATE crl_numbers SET number = number + 1",
    "insert an issuer": "INSERT INTO issuers SELECT * FROM issuers",
    "alter an issuer's key": "UPDATE issuer_keys SET spki = ''",
    "insert a CA certificate": "INSERT INTO ca_certificates SELECT * FROM ca_certificates",
    "alter a CA certificate": "UPDATE ca_certificates SET der = ''",
    "put a profile in force": "UPDATE profiles SET superseded_at = NULL",
    "insert a profile": "INSERT INTO profiles SELECT * FROM profiles",
    "unblock a key": "DELETE FROM spki_blocklist",
    "make an external account key": "INSERT INTO eab_keys SELECT * FROM eab_keys",
    "use an external account key": "UPDATE eab_keys SET uses = 0",
    "read external account keys' secrets": "SELECT ciphertext FROM eab_keys",
    "read the core's secrets": "SELECT * FROM secrets",
    "take the core's boot": "UPDATE nodes SET boot_epoch = boot_epoch + 1",
    "take the log's lease": "UPDATE leases SET holder = 'front'",
    "alter an event": "UPDATE audit_events SET type = 'order.created'",
    "delete events": "DELETE FROM audit_events",
    "empty the log": "TRUNCATE audit_events CASCADE",
    "insert a leaf": "INSERT INTO audit_leaves SELECT * FROM audit_leaves",
    "insert a checkpoint": "INSERT INTO audit_checkpoints SELECT * FROM audit_checkpoints",
    "keep an event from the sequencer": "DELETE FROM audit_pending",
    "disarm the log": "ALTER TABLE audit_events DISABLE TRIGGER ALL",
    "open the log": "ALTER TABLE audit_events DISABLE ROW LEVEL SECURITY",
    "skip triggers": "SET session_replication_role = replica",
    "drop a table": "DROP TABLE acme_nonces",
    "make a table": "CREATE TABLE public.mine (a int)",
    "be the core": f'SET ROLE "{CORE}"',
    "be the owner": f"SET ROLE {OWNER}",
    "read files": "SELECT pg_read_file('/etc/passwd')",
    "run programs": "COPY (SELECT 1) TO PROGRAM 'true'",
}
DENIED = "42501"
"""insufficient_privilege: row-level security too."""


@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_front_may_not(separated: Separated, what: str) -> None:
    assert separated.refused(FRONT, FORBIDDEN[what]) == DENIED


def test_a_front_does_not_throw_the_core_out(separated: Separated) -> None:
    throw = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ca-core'"
    assert separated.refused(FRONT, throw) == DENIED


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE certificates",
        "ALTER TABLE certificates ADD COLUMN a int",
        "CREATE TABLE public.mine (a int)",
        "TRUNCATE certificates CASCADE",
        "DELETE FROM certificates",
        "UPDATE certificates SET der = ''",
        "UPDATE certificates SET serial = '00'",
        "UPDATE crls SET der = ''",
        "DELETE FROM crls",
        "UPDATE audit_events SET type = 'order.created'",
        "DELETE FROM audit_events",
        "DELETE FROM audit_leaves",
        "UPDATE audit_checkpoints SET root = ''",
        "TRUNCATE audit_events CASCADE",
        "ALTER TABLE audit_events DISABLE TRIGGER ALL",
        "DROP FUNCTION audit_refuse() CASCADE",
        f"SET ROLE {OWNER}",
    ],
)
def test_the_core_may_not(separated: Separated, statement: str) -> None:
    assert separated.refused(CORE, statement) == DENIED


def finding(server: Server, *overrides: str) -> tuple[str, str]:
    """What the doctor says of the roles."""
    found: list[Check] = []

    async def look() -> None:
        settings = load_settings(server.home / "ca-server.toml", overrides, server.environment)
        async with open_stores(Home(server.home), settings) as stores:
            found.extend([check async for check in roles(settings, stores)])

    run_apart(look())
    (check,) = found
    return check.verdict.value, check.found


def test_the_doctor_finds_rights_too_many(separated: Separated) -> None:
    server, admin = separated.server, separated.postgres.url("ca")
    run_apart(administer(admin, f"GRANT INSERT ON certificates TO {FRONT}", f'GRANT "{CORE}" TO {FRONT}'))
    verdict, found = finding(server)
    assert verdict == "warning"
    assert "a front may INSERT certificates" in found
    assert "a front has the rights of ca-core too" in found
    run_apart(administer(admin, f'REVOKE "{CORE}" FROM {FRONT}'))
    server.cli("db", "migrate")
    assert finding(server)[0] == "good"
    assert separated.refused(FRONT, FORBIDDEN["insert a certificate"]) == DENIED


def test_the_doctor_finds_a_password_that_others_can_read(separated: Separated) -> None:
    server = separated.server
    file = Path(server.environment["CA_SERVER__DATABASE__URL"].partition("passfile=")[2])
    settings = load_settings(server.home / "ca-server.toml", (), server.environment)

    def verdict() -> str:
        (check,) = (each for each in permissions(Home(server.home), settings) if file.name in each.name)
        return check.verdict.value

    assert verdict() == "good"
    file.chmod(0o640)
    assert verdict() == "bad"
    file.chmod(0o600)


def test_the_doctor_finds_roles_that_are_one(separated: Separated) -> None:
    verdict, found = finding(separated.server, "database.front_url=")
    assert verdict == "warning"
    assert "fronts have the core's role ca-core" in found
    verdict, found = finding(separated.server, "database.owner_url=")
    assert "the core owns the tables as ca-core" in found


def test_with_two_roles_the_core_migrates_and_the_front_is_held(separated: Separated) -> None:
    """No owner beside the core: its start makes the schema, and gives a front's rights."""
    postgres = separated.postgres
    run_apart(administer(postgres.url(), "CREATE DATABASE two"))
    made = creation_statements(Roles(CORE, CORE, FRONT), "two")
    run_apart(administer(postgres.url("two"), *(each for each in made if not each.startswith("CREATE ROLE"))))
    urls = {
        key.removeprefix("CA_SERVER__DATABASE__").lower(): url.replace("/ca?", "/two?")
        for key, url in separated.server.environment.items()
        if key in {"CA_SERVER__DATABASE__URL", "CA_SERVER__DATABASE__FRONT_URL"}
    }
    settings = load_settings(None, [f"database.{key}={url}" for key, url in urls.items()], {})
    run_apart(prepare_database(Home(Path("/nonexistent")), settings))
    run_apart(prepare_database(Home(Path("/nonexistent")), settings))
    separated.query(FRONT, event("order.created"), database="two")
    assert separated.refused(FRONT, event("issuance.stored"), database="two") == DENIED
    assert separated.refused(FRONT, "UPDATE certificates SET der = ''", database="two") == DENIED
    separated.query(CORE, event("issuance.stored", "node1/core/0"), database="two")


def test_the_core_does_not_migrate_for_the_owner(separated: Separated) -> None:
    """A schema that is behind is told with the command that mends it; the core could not."""
    postgres = separated.postgres
    run_apart(administer(postgres.url(), "CREATE DATABASE empty"))
    settings = load_settings(
        None,
        [
            f"database.url={postgres.url('empty')}",
            f"database.owner_url={postgres.url('empty', OWNER)}",
        ],
        {},
    )
    with pytest.raises(ConfigurationError, match="ca-server db migrate"):
        asyncio.run(prepare_database(Home(Path("/nonexistent")), settings))
