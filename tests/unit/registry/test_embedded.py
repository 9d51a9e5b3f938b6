import asyncio
import multiprocessing
import sqlite3
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from amberblob.errors import ConfigError, RegistryUnavailable
from registry import open_registry
from registry.embedded import EmbeddedRegistry, path_of_url
from registry.interface import Change, CompareAndSet, Delete
from registry.memory import MemoryRegistry


@pytest.fixture
async def registry(tmp_path: Path):
    registry = EmbeddedRegistry(str(tmp_path / "registry.sqlite3"), poll_s=0.01)
    yield registry
    await registry.close()


async def test_the_file_is_not_in_wal_mode(registry, tmp_path):
    await registry.compare_and_set("a", 0, b"")
    with sqlite3.connect(tmp_path / "registry.sqlite3") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT key FROM entries").fetchall() == [("a",)]


async def test_a_file_that_disappears_is_an_outage_and_not_replaced(registry, tmp_path):
    path = tmp_path / "registry.sqlite3"
    await registry.compare_and_set("a", 0, b"")
    path.unlink()
    for _ in range(2):
        with pytest.raises(RegistryUnavailable, match=r"registry\.sqlite3"):
            await registry.compare_and_set("b", 0, b"")
    assert not path.exists()


async def test_a_known_cluster_makes_no_file(tmp_path):
    path = tmp_path / "registry.sqlite3"
    registry = open_registry(f"embedded://{path}", create=False)
    with pytest.raises(RegistryUnavailable):
        await registry.get("a")
    await registry.close()
    assert not path.exists()


async def test_what_is_no_database_is_an_outage(tmp_path):
    path = tmp_path / "registry.sqlite3"
    path.write_bytes(b"this is no database " * 100)
    registry = EmbeddedRegistry(str(path))
    with pytest.raises(RegistryUnavailable):
        await registry.get("a")
    await registry.close()


async def test_a_newer_schema_is_refused(registry, tmp_path):
    await registry.get("a")
    with sqlite3.connect(tmp_path / "registry.sqlite3") as db:
        db.execute("PRAGMA user_version = 99")
    other = EmbeddedRegistry(str(tmp_path / "registry.sqlite3"))
    with pytest.raises(RegistryUnavailable, match="schema version 99"):
        await other.get("a")
    await other.close()


async def test_a_lock_held_by_another_process_is_waited_for_and_then_an_outage(registry, tmp_path):
    await registry.compare_and_set("a", 0, b"")
    holder = sqlite3.connect(tmp_path / "registry.sqlite3", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    hasty = EmbeddedRegistry(str(tmp_path / "registry.sqlite3"), busy_timeout_s=0.05)
    with pytest.raises(RegistryUnavailable, match="locked"):
        await hasty.compare_and_set("b", 0, b"")
    task = asyncio.create_task(registry.compare_and_set("b", 0, b""))
    assert await hasty.get("b") is None
    holder.execute("ROLLBACK")
    holder.close()
    assert await asyncio.wait_for(task, 30) is not None
    await hasty.close()


async def test_a_lease_that_runs_out_is_seen_without_anybody_writing(registry, tmp_path):
    looker = EmbeddedRegistry(str(tmp_path / "registry.sqlite3"), poll_s=0.01)
    revision = None
    while revision is None:  # it ran out before it was used
        lease = await registry.lease(1.0)
        revision = await registry.compare_and_set("a", 0, b"", lease_id=lease.id)
    async with asyncio.timeout(30), aclosing(looker.watch("", revision + 1)) as changes:
        seen = await anext(changes)
    assert isinstance(seen, Change) and seen.events == (Delete("a"),)
    await looker.close()


def test_urls(tmp_path):
    assert path_of_url("embedded:///var/lib/a%20b/registry.sqlite3") == "/var/lib/a b/registry.sqlite3"
    for wrong in ("embedded://relative/file", "embedded:///", "embedded:///a/", "embedded:///a?x=1"):
        with pytest.raises(ConfigError, match="three slashes"):
            path_of_url(wrong)


async def test_open_registry():
    first, second = open_registry("memory://shared-by-name"), open_registry("memory://shared-by-name")
    assert isinstance(first, MemoryRegistry)
    await first.compare_and_set("a", 0, b"")
    assert await second.get("a") is not None
    with pytest.raises(
        ConfigError, match=r"embedded://, etcd://, memory://, redis://, rediss://\. Did you mean embedded://\?"
    ):
        open_registry("embeded:///a")
    with pytest.raises(ConfigError, match="no such kind"):
        open_registry("/just/a/path")


def _count_for_ever(path: str) -> None:
    async def run() -> None:
        registry = EmbeddedRegistry(path)
        while True:
            entry = await registry.get("n")
            pair = [
                CompareAndSet(key=key, expected_revision=entry.revision if entry else 0, value=b"x" * 5000)
                for key in ("n", "twin")
            ]
            await registry.transact(pair)

    asyncio.run(run())


async def test_a_process_killed_while_it_writes_leaves_whole_transactions(registry, tmp_path):
    context = multiprocessing.get_context("spawn")
    path = str(tmp_path / "registry.sqlite3")
    last = 0
    for _ in range(3):
        process = context.Process(target=_count_for_ever, args=(path,), daemon=True)
        process.start()
        async with asyncio.timeout(60):
            while (await registry.range("")).revision < last + 10:
                await asyncio.sleep(0.001)
        process.kill()
        process.join()
        snapshot = await registry.range("")
        assert {entry.revision for entry in snapshot.entries} == {snapshot.revision}
        assert len(snapshot.entries) == 2
        last = await registry.compare_and_set("mine", 0, b"")
        assert await registry.delete("mine", last) is not None
        twins = (await registry.range("")).entries
        assert twins == snapshot.entries
        last += 1


_NOT_CLOSED = """
import asyncio, sys
from registry.embedded import EmbeddedRegistry
registry = EmbeddedRegistry(sys.argv[1])
asyncio.run(registry.compare_and_set("a", 0, b""))
raise SystemExit(3)
"""


def test_a_process_that_does_not_close_it_ends_all_the_same(tmp_path):
    command = [sys.executable, "-c", _NOT_CLOSED, str(tmp_path / "registry.sqlite3")]
    assert subprocess.run(command, timeout=60, check=False).returncode == 3
