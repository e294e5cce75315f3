"""Two histories of one log: a backup that was put back, and a copy that went on by itself under the log's own key."""

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from databases import administer, new_name, of_database
from sqlalchemy import make_url
from victims import MemoryKey, Victim, found, make_victim

from ca_server.core.audit import EventFactory, check_anchor, verify
from ca_server.core.notes import NoteKey, NoteSignature, TreeHead, checkpoint_text, encode_note
from ca_server.domain.audit import EventType
from ca_server.domain.certificates import RevocationReason
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.store.anchor import FileAnchor
from ca_server.store.audit import SqlAuditStore
from ca_server.store.database import Database

pytestmark = pytest.mark.alters_schema


@dataclass
class Histories:
    """`live` went on from 24 leaves to 32; `old` is a backup at 24, under the same anchor."""

    live: Victim
    old: Victim

    async def fork(self, leaves: int) -> FileAnchor:
        """Let the backup go on by itself, under an anchor of its own."""
        other = EventFactory(node="node", process="core", software="test", configuration="0", instance="2")
        await self.old.store.append([other.make(EventType.SERVER_START) for _ in range(leaves)])
        elsewhere = FileAnchor(self.old.anchor.path.with_name("elsewhere"))
        assert await self.old.sequencer(anchor=elsewhere).run_once() == leaves
        return elsewhere

    async def check(self, which: Victim) -> str:
        return str(await check_anchor(which.store, which.anchor, which.key.spki_der))


@pytest.fixture
async def histories(
    url: str, request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Histories]:
    database = await Database.open(url)
    victim = await make_victim(database, tmp_path)
    await database.close()
    backup, drop = new_name(), ""
    if url.startswith("sqlite"):
        file = tmp_path_factory.mktemp("backup") / "ca.db"
        shutil.copy(url.removeprefix("sqlite:///"), file)
        backup_url = f"sqlite:///{file}"
    else:
        server = request.getfixturevalue("postgresql")
        await administer(server, f"CREATE DATABASE {backup} TEMPLATE {make_url(url).database}")
        backup_url, drop = of_database(url, backup), f"DROP DATABASE {backup} WITH (FORCE)"
    databases = [await Database.open(each) for each in (url, backup_url)]
    live, old = (replace(victim, database=each, store=SqlAuditStore(each)) for each in databases)
    await live.issue("0d")
    await live.revoke("0a", RevocationReason.KEY_COMPROMISE)
    await live.fill(8)
    yield Histories(live, old)
    for each in databases:
        await each.close()
    if drop:
        await administer(request.getfixturevalue("postgresql"), drop)


async def newest(victim: Victim) -> bytes:
    latest = await victim.store.latest_checkpoint()
    assert latest is not None
    return latest[0].note


async def test_a_backup_that_was_put_back_is_behind_its_anchor(histories: Histories) -> None:
    assert await histories.check(histories.live) == "None"
    assert "has seen 32 leaves, the database has 24: it was rolled back" in await histories.check(histories.old)
    report = await histories.old.verify()
    assert found(report) == {("truncated", "leaves 24..31")}
    assert "rolled back" in report.findings[0].text
    assert (await histories.old.verify(anchor=None)).ok, "the backup alone can't tell"


async def test_no_checkpoint_is_signed_over_a_backup(histories: Histories) -> None:
    anchored = await histories.live.anchor.read()
    await histories.old.store.append([histories.old.events[0].make(EventType.SERVER_START)])
    with pytest.raises(CaError) as refused:
        await histories.old.sequencer().run_once()
    assert refused.value.kind is ErrorKind.INTERNAL
    assert "rolled back" in refused.value.detail
    assert (await histories.old.store.latest_checkpoint())[0].size == 24
    assert await histories.live.anchor.read() == anchored


@pytest.mark.parametrize("leaves", [8, 20], ids=["as long", "longer"])
async def test_a_fork_is_found_by_the_anchor_and_by_verification(histories: Histories, leaves: int) -> None:
    elsewhere = await histories.fork(leaves)
    assert "at 32 leaves: it was forked" in await histories.check(histories.old)
    report = await histories.old.verify()
    assert found(report) == {("anchor-mismatch", "checkpoint 32")}
    assert "forked" in report.findings[0].text
    # Each history is whole by itself, signed by the log's own key.
    assert (await histories.old.verify(anchor=elsewhere)).ok
    assert (await histories.live.verify()).ok


async def test_a_fork_that_is_shorter_is_behind(histories: Histories) -> None:
    await histories.fork(4)
    assert "has seen 32 leaves, the database has 28" in await histories.check(histories.old)
    assert found(await histories.old.verify()) == {("truncated", "leaves 28..31")}


async def test_a_checkpoint_kept_elsewhere_must_be_extended(histories: Histories) -> None:
    """What a colleague has from syslog or by mail tells, where the anchor is the attacker's."""
    before, after = await newest(histories.old), await newest(histories.live)
    report = await histories.live.verify(checkpoints=[("mail", before), ("syslog", after)])
    assert report.ok
    behind = await histories.old.verify(anchor=None, checkpoints=[("syslog", after)])
    assert found(behind) == {("truncated", "leaves 24..31")}
    assert "syslog has seen 32 leaves" in behind.findings[0].text
    elsewhere = await histories.fork(12)
    forked = await histories.old.verify(anchor=elsewhere, checkpoints=[("mail", before), ("syslog", after)])
    assert found(forked) == {("anchor-mismatch", "checkpoint 32")}
    assert "syslog has seen: forked" in forked.findings[0].text
    # And the other way round: the fork's checkpoint, held against the log that is anchored.
    stray = await newest(histories.old)
    assert found(await histories.live.verify(checkpoints=[("mail", stray)])) == {("truncated", "leaves 32..35")}


async def test_a_checkpoint_kept_elsewhere_that_was_deleted_here(histories: Histories) -> None:
    live, kept = histories.live, await newest(histories.old)
    await live.disarm()
    await live.attack("DELETE FROM audit_checkpoints WHERE size = 24")
    report = await live.verify(checkpoints=[("mail", kept)])
    assert found(report) == {("deleted", "checkpoint 24")}


@pytest.mark.parametrize(("origin", "own", "finding"), [("other", True, "this is"), ("log.example.test", False, "key")])
async def test_a_checkpoint_of_another_log_or_key(victim: Victim, origin: str, own: bool, finding: str) -> None:
    signer = victim.key if own else MemoryKey()
    text = checkpoint_text(TreeHead(origin, 24, bytes(32)))
    signature = NoteSignature(origin, NoteKey(origin, signer.spki_der).key_id, await signer.sign(text.encode()))
    report = await victim.verify(checkpoints=[("mail", encode_note(text, [signature]))])
    assert {finding.kind.value for finding in report.findings} == {"anchor-mismatch"}
    assert finding in report.findings[0].text


async def test_verification_without_any_anchor_says_only_what_the_rows_say(histories: Histories) -> None:
    report = await verify(histories.old.store, [histories.old.key.spki_der], grace=timedelta(0))
    assert report.ok
    assert report.anchored_size is None
