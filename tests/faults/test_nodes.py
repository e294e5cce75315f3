"""Two nodes on one database are one CA: to clients, in limits and numbers, in the log, and when one of them dies.

The tests stand in one order: what the last ones kill and roll back is what the first ones made.
"""

import re
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from crashlib.nodes import NAMES, Cluster, NodeClient, new_host, problems, race, until
from crashlib.oneness import check_finalize, check_nonces, check_open_orders, prepared, use_nonce
from crashlib.trap import LIST_SIGNED
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from databases import administer, run_apart
from interoplib.acme import Order, Problem, make_csr
from interoplib.enrollment import Surroundings
from interoplib.server import Server

MAX_OPEN_ORDERS = 4
MAX_VALIDATIONS = 2
PATIENCE = 60.0

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def cluster(
    ca_server_command: Path,
    open_folder: Callable[[str], Path],
    surroundings: Surroundings,
    make_database: Callable[[], str],
) -> Iterator[Cluster]:
    settings = (
        f"acme.max_open_orders={MAX_OPEN_ORDERS}",
        f"acme.max_validations={MAX_VALIDATIONS}",
        # What has no answer yet goes on being asked for, for as long as these tests need.
        "acme.validation_attempts=20",
    )
    with Cluster(ca_server_command, open_folder, surroundings, make_database(), settings) as made:
        yield made


@pytest.fixture
def nodes(cluster: Cluster) -> tuple[Server, Server]:
    return cluster.up()


def fetch_crl(node: Server) -> x509.CertificateRevocationList:
    with urllib.request.urlopen(f"{node.http_url}/crl/issuing.crl", timeout=30) as answer:
        return x509.load_der_x509_crl(answer.read())


def crl_number(node: Server) -> int:
    return fetch_crl(node).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def is_listed(node: Server, certificate: x509.Certificate) -> bool:
    return fetch_crl(node).get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


def ocsp_status(node: Server, certificate: x509.Certificate) -> ocsp.OCSPCertStatus:
    issuing = x509.load_pem_x509_certificate(node.issuing.read_bytes())
    question = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuing, hashes.SHA1()).build()
    body, kind = question.public_bytes(Encoding.DER), {"Content-Type": "application/ocsp-request"}
    with urllib.request.urlopen(urllib.request.Request(f"{node.http_url}/ocsp", body, kind), timeout=30) as answer:
        return ocsp.load_der_ocsp_response(answer.read()).certificate_status


def anchored_size(node: Server) -> int:
    return int((node.home / "core" / "anchor").read_text().splitlines()[1])


# --- One CA to clients --------------------------------------------------------------------------------------------


def test_each_step_of_an_order_at_another_node(cluster: Cluster, nodes: tuple[Server, Server]) -> None:
    first, second = nodes
    at_first = cluster.register(first)
    at_second = at_first.at(second)
    name = new_host()
    order = at_first.new_order(name)
    cluster.enrollment(at_second).authorize(order)
    at_first.refresh(order)
    assert order.status == "ready"
    csr = make_csr(name)
    holding = cluster.note(order, csr)
    at_first.finalize(order, csr)
    certificate = cluster.collect(at_second, order, holding)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name]
    # URLs are those of the CA, whichever node was asked.
    assert at_second.directory == at_first.directory
    at_second.post(at_second.account_url, {"status": "deactivated"})
    with pytest.raises(Problem) as refused:
        at_first.new_order(new_host())
    assert refused.value.type == "unauthorized"


def test_a_nonce_is_good_once_at_one_of_them(cluster: Cluster, nodes: tuple[Server, Server]) -> None:
    first, second = nodes
    at_first = cluster.register(first)
    at_second = at_first.at(second)

    assert use_nonce(at_second, at_first.nonce()).status == 200
    check_nonces([at_first, at_second], 10)


def test_a_key_has_one_account(cluster: Cluster, nodes: tuple[Server, Server]) -> None:
    for _ in range(5):
        client = NodeClient(nodes[0].directory, nodes[0].root)
        clients = [client.at(node) for node in nodes]
        race(*(each.register for each in clients))
        assert clients[0].account_url == clients[1].account_url != ""


def test_limits_count_at_both(cluster: Cluster, nodes: tuple[Server, Server]) -> None:
    for _ in range(6):
        at_first = cluster.register(nodes[0])
        clients = [at_first.at(node) for node in nodes * MAX_OPEN_ORDERS]
        orders = check_open_orders(clients, MAX_OPEN_ORDERS)
        challenges = [at_first.challenge(order.body["authorizations"][0], "dns-01")[0] for order in orders]
        asked = zip(prepared([at_first.at(node) for node in nodes * MAX_VALIDATIONS]), challenges, strict=True)
        results = race(*(lambda client=client, each=each: client.answer_challenge(each) for client, each in asked))
        assert Counter(problems(results)) == {"rateLimited": MAX_VALIDATIONS}
        for order in orders:
            at_first.post(order.body["authorizations"][0], {"status": "deactivated"})


def test_a_finalize_at_both_is_one_certificate(cluster: Cluster, nodes: tuple[Server, Server]) -> None:
    at_first = cluster.register(nodes[0])
    for _ in range(4):
        check_finalize(cluster, [at_first.at(node) for node in nodes * 2])


# --- Revocation, lists --------------------------------------------------------------------------------------------


def test_a_revocation_shows_at_the_other_at_once(cluster: Cluster, nodes: tuple[Server, Server]) -> None:
    at_first = cluster.register(nodes[0])
    before = [crl_number(node) for node in nodes]
    numbers = [set(before)]
    for _ in range(3):
        certificates = [cluster.obtain(at_first.at(node), new_host()) for node in nodes]
        # Each node is told of one, and answers for the other's.
        acts = [lambda n=n, c=c: at_first.at(n).revoke(c) for n, c in zip(nodes, certificates, strict=True)]
        assert problems(race(*acts)) == []
        for node in nodes:
            for certificate in certificates:
                assert ocsp_status(node, certificate) is ocsp.OCSPCertStatus.REVOKED
        with pytest.raises(Problem) as again:
            at_first.at(nodes[1]).revoke(certificates[0])
        assert again.value.type == "alreadyRevoked"
        until(lambda: all(is_listed(node, each) for node in nodes for each in certificates))  # noqa: B023
        numbers.append({crl_number(node) for node in nodes})
    assert all(max(earlier) < min(later) for earlier, later in pairwise(numbers))


def test_no_crl_number_is_used_twice(cluster: Cluster, nodes: tuple[Server, Server]) -> None:
    """Both nodes have published by now, and at the same moments."""
    published = cluster.events("type = 'crl.published' AND issuer = 'issuing'")
    assert {row.node for row in published} == set(NAMES)
    numbers = [int(re.search(rb'"number":"(\d+)"', row.leaf).group(1)) for row in published]
    assert len(set(numbers)) == len(numbers)
    until(lambda: len(cluster.events("type = 'crl.reserved' AND issuer = 'issuing'")) == cluster.drawn("issuing"))
    assert cluster.drawn("issuing") >= max(numbers)
    until(lambda: all(crl_number(node) >= max(numbers) for node in nodes))


# --- The log -------------------------------------------------------------------------------------------------------


def test_one_log_with_two_anchors(cluster: Cluster, nodes: tuple[Server, Server]) -> None:
    """One node sequences what both record; the anchor of each is there."""
    assert {row.node for row in cluster.events("true")} == set(NAMES)
    (sequencer,) = cluster.rows("SELECT holder FROM leases WHERE name = 'audit-sequencer'")
    assert sequencer.holder.partition("/")[0] in NAMES
    until(lambda: not cluster.rows("SELECT 1 FROM audit_pending"))
    leaves = cluster.rows("SELECT count(*) AS count, max(leaf_index) AS last FROM audit_leaves")[0]
    assert leaves.count == leaves.last + 1

    def both_anchor_the_last() -> bool:
        (last,) = cluster.rows("SELECT note FROM audit_checkpoints ORDER BY size DESC LIMIT 1")
        return all((node.home / "core" / "anchor").read_bytes() == last.note for node in nodes)

    until(both_anchor_the_last, "the anchor of a node does not follow the log")


# --- Deaths -------------------------------------------------------------------------------------------------------


def finalize_at_a_node_that_dies(client: NodeClient, order: Order, csr: bytes) -> None:
    with suppress(Problem, OSError):
        client.finalize(order, csr)


def test_what_a_killed_node_was_at_is_done_by_the_other(cluster: Cluster, nodes: tuple[Server, Server]) -> None:
    """A signed certificate, its order, a list, a validation, the log's tree; others are at work meanwhile."""
    first, second = nodes
    cluster.open_shop(2)
    at_first = cluster.register(first)
    validated = at_first.new_order(new_host())
    (authorization,) = validated.body["authorizations"]
    challenge, key_authorization = at_first.challenge(authorization, "dns-01")
    at_first.answer_challenge(challenge)
    revoked, number = cluster.obtain(at_first, new_host()), crl_number(second)
    name = new_host()
    csr, order = make_csr(name), cluster.ready_order(at_first, name)
    holding = cluster.note(order, csr)
    cluster.traps[0].hold("sign.after", LIST_SIGNED)
    at_first.revoke(revoked)
    threading.Thread(target=finalize_at_a_node_that_dies, args=(at_first, order, csr), daemon=True).start()
    until(lambda: cluster.intents_of(holding, "reserved"))
    until(lambda: cluster.drawn("issuing") > number)
    first.kill()
    cluster.traps[0].let_go()

    at_second = at_first.at(second)
    challenge_id = challenge["url"].partition("/acme/challenge/")[2]
    (left,) = cluster.rows(f"SELECT lease_holder FROM acme_challenges WHERE id = '{challenge_id}'")
    assert left.lease_holder.startswith("node1/")
    name_to_show = f"_acme-challenge.{validated.body['identifiers'][0]['value']}"
    cluster.enrollment(at_second).dns.add(name_to_show, at_second.dns_value(key_authorization))
    assert at_second.refresh(validated).status == "pending", "its lease has not run out"
    assert at_second.refresh(order).status == "processing"
    assert ocsp_status(second, revoked) is ocsp.OCSPCertStatus.REVOKED
    cluster.bury(first)

    assert at_second.wait_for_authorization(authorization)["status"] == "valid"
    certificate = cluster.collect(at_second, order, holding)
    assert [int(row.serial, 16) for row in cluster.intents_of(holding, "issued")] == [certificate.serial_number]
    assert {row.node for row in cluster.intents_of(holding, "issued")} == {"node2"}
    assert {row.node for row in cluster.intents_of(holding, "abandoned")} == {"node1"}
    assert {row.node for row in cluster.events("type = 'issuance.abandoned'")} == {"node2"}
    csr = make_csr(validated.body["identifiers"][0]["value"])
    holding = cluster.note(validated, csr)
    at_second.finalize(at_second.refresh(validated), csr)
    cluster.collect(at_second, validated, holding)
    until(lambda: is_listed(second, revoked), "no list shows what was revoked at the node that died")
    assert crl_number(second) > number + 1, "a number that was drawn was used again"
    (sequencer,) = cluster.rows("SELECT holder FROM leases WHERE name = 'audit-sequencer'")
    assert sequencer.holder.startswith("node2/")


def test_the_books_of_both_agree(
    cluster: Cluster, nodes: tuple[Server, Server], capsys: pytest.CaptureFixture[str]
) -> None:
    """No certificate was lost or issued twice, and the log is whole as either of them sees it."""
    cluster.close_shop()
    books = cluster.books(nodes[1])
    with capsys.disabled():
        print(f"\n{books}")  # noqa: T201
    assert books.differences == []
    assert books.held > 20
    assert "the log is whole" in nodes[0].cli("audit", "verify").stdout
    assert {row.node for row in cluster.rows("SELECT node FROM intents WHERE state = 'issued'")} == set(NAMES)


def test_the_anchor_that_saw_more_stops_its_node(cluster: Cluster, nodes: tuple[Server, Server]) -> None:
    """A roll-back to where the one anchor was, behind the other."""
    first, second = nodes
    assert first.stop() == 0
    earlier = anchored_size(first)
    cluster.register(second)
    until(lambda: anchored_size(second) > earlier)
    second.kill()
    run_apart(
        administer(
            cluster.database,
            "SET session_replication_role = replica",
            f"DELETE FROM audit_events WHERE id IN (SELECT event_id FROM audit_leaves WHERE leaf_index >= {earlier})",
            f"DELETE FROM audit_leaves WHERE leaf_index >= {earlier}",
            f"DELETE FROM audit_checkpoints WHERE size > {earlier}",
        )
    )
    told = second.start_read_only()
    assert "rolled back or truncated" in str(told["problems"])
    first.start()
    until(lambda: anchored_size(first) > earlier)
