"""What is told before a job begins, and whether it is true."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from amberblob.archivejobs import JobWanted
from amberblob.config import ArchiveRule, ArchiveSection
from amberblob.config.values import Duration, SizeBytes
from archive.policy import Disk, Policy, Why
from node.archive.forewarned import warnings_for
from tests.unit.node.archive.archive_kit import EVICT, KEEP_BYTES, World, world
from tests.unit.node.archive.disaster_kit import SECOND, Exporters, Store, archive, recover
from tests.unit.node.archive.disaster_kit import world as built_again
from tests.unit.node.objects.kit import content, get, put

UNREAD = ArchiveRule(prefix="p/", action="archive-and-evict", not_read_for=Duration(3600))
WHEN_FULL = ArchiveRule(prefix="p/", action="archive-and-evict", evict_above=50)


def told(wanted: JobWanted, *rules: ArchiveRule) -> str:
    return " ".join(warnings_for(wanted, Policy.of(ArchiveSection(target="s3://b", rules=rules))))


def of(prefix: str) -> ArchiveRule:
    return ArchiveRule(prefix=prefix, action="archive-and-evict")


@pytest.mark.parametrize(
    ("prefix", "rules", "named"),
    [
        ("logs/2025/", [of("logs/"), of("photos/"), of("")], "the rule for 'logs/' will"),
        ("logs/", [of("logs/2024/"), of("logs/2025/"), of("photos/")], "the rules for 'logs/2024/', 'logs/2025/' will"),
        ("", [of(letter) for letter in "abcde"], "the rules for 'a', 'b', 'c' and 2 more will"),
        ("x/", [of("")], "the rule for all paths will"),
        ("logs/", [ArchiveRule(prefix="logs/", action="keep"), of("")], ""),
        ("logs/", [WHEN_FULL, KEEP_BYTES, of("photos/")], ""),
        ("p/", [WHEN_FULL], ""),
        ("", [], ""),
    ],
)
def test_a_restore_is_told_of_the_rules_that_undo_it(prefix: str, rules: list[ArchiveRule], named: str) -> None:
    text = told(JobWanted(kind="restore", prefix=prefix), *rules)
    assert (named in text and "evict_above" in text) if named else not text
    assert not told(JobWanted(kind="run", prefix=prefix), *rules)


@pytest.mark.parametrize(
    "rule",
    [
        ArchiveRule(action="archive-and-evict", versions="old"),
        ArchiveRule(action="archive-and-evict", larger_than=SizeBytes(10**9)),
        ArchiveRule(action="archive-and-evict", older_than=Duration(86_400)),
    ],
)
async def test_a_rule_that_leaves_some_alone_is_not_said_to_undo_all_of_it(tmp_path: Path, rule: ArchiveRule) -> None:
    """What an earlier rule evicted it may leave where it is."""
    async with world(tmp_path) as it:
        assert "as far as age, size and version" in told(JobWanted(kind="restore", prefix="p/"), rule)
        await put(it[1], "p/1", content(3000))
        await it.cluster.settle()
        slot = it.cluster.slot("p/1")
        page, _ = await it[1].store.archive_page(slot, ("", 0), 10, prefix="p/")
        view = replace(page[0], uploaded=page[0].chunk_count, verified=page[0].chunk_count)
        now_ms = it.archive(1).ground.now_ms()
        judgement = Policy.of(ArchiveSection(target="s3://b", rules=(rule,))).judge(view, now_ms, now_ms)
        assert judgement.evict is not Why.DUE


def test_a_recover_is_told_of_all_rules_that_count() -> None:
    text = told(JobWanted(kind="recover"), of("logs/"), KEEP_BYTES)
    assert "the rules for all paths, 'logs/' will count" in text and "the rule for 'logs/' will take them off" in text
    text = told(JobWanted(kind="recover"), KEEP_BYTES)
    assert "the rule for all paths will count" in text and "off the disks" not in text
    assert not told(JobWanted(kind="recover"))


async def filled(it: World) -> None:
    """Four objects on three nodes, archived and evicted."""
    for index in range(4):
        await put(it[1], f"p/{index}", content(3000, index))
    await it.cluster.settle()
    it.cluster.clock.ahead_s += 7200
    await it.run()
    await it.follow()
    await it.evict()
    assert evicted(it) == 12


async def restored(it: World) -> tuple[str, ...]:
    """All comes back; what was told before."""
    started = await it.archive(2).cluster.start(JobWanted(kind="restore", prefix="p/"))
    for index in (1, 2, 3):
        await it.ended(index, started.job)
    assert evicted(it) == 0
    assert (await it.archive(3).cluster.job(started.job)).warnings == started.warnings
    return started.warnings


def evicted(it: World) -> int:
    return sum(map(it.evicted, (1, 2, 3)))


@pytest.mark.parametrize("rule", [EVICT, UNREAD])
async def test_the_rule_does_undo_it_also_one_that_waits_until_nobody_reads(tmp_path: Path, rule: ArchiveRule) -> None:
    async with world(tmp_path, rule) as it:
        await filled(it)
        assert await restored(it)
        await it.evict()
        assert evicted(it) == 12


async def test_one_that_waits_for_a_full_disk_leaves_it_as_long_as_there_is_room(tmp_path: Path) -> None:
    async with world(tmp_path, WHEN_FULL) as it:
        it.disks.of = {f"n{index}": Disk(used=10**9 - 1, total=10**9) for index in (1, 2, 3)}
        await filled(it)
        it.disks.of.clear()
        assert not await restored(it)
        await it.evict()
        assert evicted(it) == 0


async def test_what_is_recovered_stays_in_the_archive_whatever_the_rules(tmp_path: Path) -> None:
    store = Store.new()
    async with built_again(store, tmp_path / "a") as first:
        for index in range(4):
            await put(first[1], f"p/{index}", content(3000, index))
        await first.settle()
        await archive(first)
        await Exporters(first).run()
    rules = (ArchiveRule(action="archive"), ArchiveRule(prefix="p/1", action="keep"), of("p/2"))
    section = ArchiveSection(target="file:///nowhere", rules=rules)
    async with built_again(store, tmp_path / "b", cluster_id=SECOND, section=section) as second:
        await recover(second)
        for node in second:
            parts = node.parts.archive
            assert parts is not None
            await parts.reach.step()
            while (await parts.evictor.step()).value == "work":
                pass
            assert sum(node.store.tally(slot).evicted for slot in node.store.slots()) == 4
        assert not any(second.blobs().values())
        for index in range(4):
            assert await get(second[2], f"p/{index}") == content(3000, index)
