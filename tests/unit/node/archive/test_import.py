"""A bucket is taken over by listing it: what it holds can be read at once, and is fetched when it is."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from amberblob.errors import (
    ArchiveDamaged,
    ArchiveDenied,
    ArchiveMissing,
    ArchiveUnavailable,
    BadRequest,
    ConfigError,
    QuorumUnavailable,
)
from amberblob.limits import MIB
from archive import importing as forms
from archive.targets.interface import Source
from archive.targets.memory import MemoryTarget
from node.archive import importing, patience, reads
from node.archive.importing import ImportWork
from tests.unit.node.archive.disaster_kit import (
    SECOND,
    SOURCE_URL,
    Exporters,
    Store,
    ground,
    picture,
    progress,
    recover,
    take_over,
    world,
)
from tests.unit.node.objects import kit


def theirs() -> Store:
    store = Store.new()
    for name, data in {
        "a.txt": b"alpha",
        "photos/b.jpg": kit.content(300_000),
        "photos/empty": b"",
        "photos/../c": b"dots",
        ".amber/x": b"reserved",
        "d" * 1025: b"long",
    }.items():
        store.source.store(name, data)
    return store


async def test_what_is_there_is_readable_at_once_and_fetched_when_read(tmp_path: Path) -> None:
    store = theirs()
    async with world(store, tmp_path) as cluster:
        told = await take_over(cluster, store, SOURCE_URL)
        assert told.status.counts == {"objects": 3, "object_bytes": 300_005}
        assert told.status.failures == 3 and all(SOURCE_URL in text for text in told.status.problems)
        assert not any(cluster.blobs().values())
        for node in (1, 2, 3):
            assert await kit.get(cluster[node], "a.txt") == b"alpha"
            assert await kit.get(cluster[node], "photos/b.jpg") == kit.content(300_000)
            assert await kit.get(cluster[node], "photos/empty") == b""
        view = await kit.look(cluster[1], "photos/b.jpg")
        part = await kit.read(cluster[2], view, 1000, 5)
        assert part == kit.content(300_000)[1000:1005]
        assert view.version.content_type == "image/jpeg" and view.version.etag.startswith("import-")
        assert view.version.created_at_ms <= store.source.objects["photos/b.jpg"].modified_ms
        assert await picture(cluster)  # the copies are alike


async def test_again_nothing_is_imported_twice_and_what_changed_is_told_or_renewed(tmp_path: Path) -> None:
    store = theirs()
    async with world(store, tmp_path) as cluster:
        await kit.put(cluster[1], "photos/empty", b"mine")
        await take_over(cluster, store, SOURCE_URL + "/")
        before = await picture(cluster)
        store.source.store("a.txt", b"beta!")
        store.source.store("photos/b.jpg", kit.content(300_000))  # the same again
        told = await take_over(cluster, store, SOURCE_URL, node=2)
        assert await picture(cluster) == before
        assert told.status.counts == {"objects_present": 1, "objects_changed": 1}
        assert any("changed=version" in text for text in told.status.problems)
        assert any("another object" in text for text in told.status.problems)
        told = await take_over(cluster, store, SOURCE_URL, options={"changed": "version"})
        assert told.status.counts["objects"] == 1
        view = await kit.look(cluster[3], "a.txt")
        assert view.version.version == 2 and await kit.read(cluster[3], view) == b"beta!"


async def test_paths_begin_as_it_is_asked_for(tmp_path: Path) -> None:
    store = theirs()
    async with world(store, tmp_path) as cluster:
        await take_over(cluster, store, SOURCE_URL + "/photos/", options={"to": "old/", "strip": "yes"})
        assert sorted(await picture(cluster)) == ["old/b.jpg", "old/empty"]
        assert await kit.get(cluster[1], "old/b.jpg") == kit.content(300_000)
        await take_over(cluster, store, SOURCE_URL, prefix="a")
        assert "a.txt" in await picture(cluster) and "photos/b.jpg" not in await picture(cluster)
        with pytest.raises(BadRequest, match="no option"):
            await take_over(cluster, store, SOURCE_URL, options={"too": "x"})


async def test_a_dry_run_tells_totals_and_bad_names(tmp_path: Path) -> None:
    store = theirs()
    async with world(store, tmp_path) as cluster:
        told = await take_over(cluster, store, SOURCE_URL, dry_run=True)
        assert told.status.counts == {"objects": 3, "object_bytes": 300_005} and told.status.failures == 3
        assert await picture(cluster) == {}


async def test_an_object_of_very_many_chunks_has_its_manifest_in_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "CHUNK_BYTES_DEFAULT", 1000)
    monkeypatch.setattr(forms, "CHUNK_BYTES_MAX", 4000)
    store, data = Store.new(), kit.content(MIB)
    store.source.store("large", data)
    async with world(store, tmp_path) as cluster:
        told = await take_over(cluster, store, SOURCE_URL)
        assert told.status.failures == 0, told.status.problems
        assert len(store.bucket.names("packs/")) == 1
        view = await kit.look(cluster[1], "large")
        assert view.version.manifest_id is not None and view.version.chunk_count == 263
        assert await kit.read(cluster[2], view) == data
        # And it comes back after a disaster, as long as its source is there.
        await Exporters(cluster).run()
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        told = await recover(second)
        assert told.status.failures == 0, told.status.problems
        assert await kit.get(second[1], "large") == data


async def test_an_import_that_stops_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "PAGE", 5)
    monkeypatch.setattr(importing, "AT_ONCE", 2)
    monkeypatch.setattr(patience, "PATIENCE_S", 0.0)
    store = Store.new()
    for number in range(20):
        store.source.store(f"k{number:02}", b"%d" % number)
    async with world(store, tmp_path) as cluster:
        store.source.fault("unavailable", "list", skip=2)
        told = progress("import", source=SOURCE_URL)
        work = ImportWork(ground(cluster[1]), store.sources)
        with pytest.raises(ArchiveUnavailable):
            await work(told.status.request, told)
        assert told.status.counts["objects"] == 10 and told.note("after") == "k09"
        store.source.heal()
        # The last note may be lost: what it says is done is found to be.
        told.set_note("after", "k04")
        store.source.fault(None, "list", name="*")
        await work(told.status.request, told)
        assert told.status.counts == {"objects": 20, "object_bytes": 30, "objects_present": 5}
        for number in range(20):
            assert await kit.get(cluster[1], f"k{number:02}") == b"%d" % number


async def test_without_a_quorum_it_fails_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.0)
    store = theirs()
    async with world(store, tmp_path) as cluster:
        cluster.net.down.update(("n2", "n3"))
        cluster.give_up_after(0.05)
        with pytest.raises(QuorumUnavailable):
            await take_over(cluster, store, SOURCE_URL)
        cluster.give_up_after(kit.PATIENCE_S)
        cluster.net.heal()
        await take_over(cluster, store, SOURCE_URL)
        assert await kit.get(cluster[1], "a.txt") == b"alpha"


async def test_a_source_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    store = theirs()
    async with world(store, tmp_path) as cluster:
        store.source.fault("denied", "list")
        with pytest.raises(ArchiveDenied, match=f"The source {SOURCE_URL}/photos/ cannot be listed: "):
            await take_over(cluster, store, SOURCE_URL + "/photos/")


async def test_the_archive_itself_is_not_imported(tmp_path: Path) -> None:
    store = Store.new()
    store.source.store("archive/packs/x", b"pack")
    store.source.store("mine", b"1")
    async with world(store, tmp_path) as cluster:
        on = ground(cluster[1])
        target = MemoryTarget(store.bucket, url=SOURCE_URL + "/archive")
        on = dataclasses.replace(on, means=dataclasses.replace(on.means, target=target))
        told = progress("import", source=SOURCE_URL)
        await ImportWork(on, store.sources)(told.status.request, told)
        assert sorted(await picture(cluster)) == ["mine"]


async def test_a_client_that_writes_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    store = Store.new()
    store.source.store("p", b"theirs")
    async with world(store, tmp_path) as cluster:
        rule = cluster.net.fault("Prepare", "hold", source="n1", when=lambda message: message.path == "p")
        task = asyncio.create_task(take_over(cluster, store, SOURCE_URL))
        await kit.until(lambda: rule.hits)
        await kit.put(cluster[2], "p", b"mine")
        cluster.net.heal()
        told = await task
        assert told.status.failures == 1 and "was written while it was imported" in told.status.problems[0]
        assert await kit.get(cluster[1], "p") == b"mine"


async def rows(cluster: kit.Cluster, path: str) -> set[int]:
    """The states of the archive rows that the copies have of a path's newest version."""
    view = await kit.look(cluster[1], path)
    blobs = [await node.store.archived(cluster.slot(path), view.version.blob_id) for node in cluster]
    return {row.state for blob in blobs if blob is not None for row in blob.chunks}


@pytest.mark.parametrize("how", ["gone", "overwritten"])
async def test_a_source_that_is_not_there_for_a_while_is_told_and_believed_again(tmp_path: Path, how: str) -> None:
    """It is somebody else's, and perhaps another endpoint altogether: nobody but its owner can say that it is lost."""
    store = theirs()
    async with world(store, tmp_path) as cluster:
        await take_over(cluster, store, SOURCE_URL)
        before, kept = await rows(cluster, "a.txt"), dict(store.source.objects)
        if how == "gone":
            store.source.objects.clear()
        else:
            store.source.store("a.txt", b"other")
        for node in (1, 2, 3):
            with pytest.raises(ArchiveMissing if how == "gone" else ArchiveDamaged):
                await kit.get(cluster[node], "a.txt")
        assert await rows(cluster, "a.txt") == before
        store.source.objects = kept
        assert await kit.get(cluster[2], "a.txt") == b"alpha"


async def test_a_node_that_cannot_open_the_source_says_so(tmp_path: Path) -> None:
    store = theirs()
    async with world(store, tmp_path) as cluster:
        await take_over(cluster, store, SOURCE_URL)

        def none(url: str) -> tuple[Source, str]:
            raise ConfigError("an archive in S3 needs boto3, which is not installed")

        parts = cluster[1].parts.archive
        assert parts is not None
        parts.reads._sources = none
        with pytest.raises(ArchiveDenied, match="boto3") as caught:
            await kit.get(cluster[1], "a.txt")
        assert caught.value.status == 503


async def test_an_archive_that_is_down_says_nothing_of_somebody_elses_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "DOWN_PATIENCE_S", 0.001)
    store = theirs()
    async with world(store, tmp_path) as cluster:
        await take_over(cluster, store, SOURCE_URL)
        parts = cluster[1].parts.archive
        assert parts is not None
        parts.reads._is_down = lambda: True
        store.source.fault(None, "get", delay_s=0.05)
        assert await kit.get(cluster[1], "a.txt") == b"alpha"
