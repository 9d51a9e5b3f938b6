"""A folder that is full, read-only, not mounted, or tampered with."""

import asyncio
import contextlib
import errno
import os
import threading
import time
from pathlib import Path

import pytest

from amberblob.clock import SystemClock
from amberblob.errors import ArchiveDenied, ArchiveError, ArchiveMissing, ArchiveUnavailable
from archive.targets import folderfiles, folderopen, strands
from archive.targets.folder import MARKER, TEMPORARY, FolderTarget, prepare_folder
from archive.traffic import Traffic
from chunkstore import fileops
from chunkstore.fileops import FileOps
from tests.archive_parts import collect, names_of, parts_of


class Ops(FileOps):
    """Notes what is made durable, and fails where it is told to."""

    def __init__(self):
        self.done: list[str] = []
        self.fail: dict[str, int] = {}

    def _note(self, what, path=""):
        self.done.append(f"{what} {path}".strip())
        if what in self.fail:
            number = self.fail[what]
            raise OSError(number, os.strerror(number))

    def write_at(self, fd, buffers, offset):
        self._note("write")
        return super().write_at(fd, buffers, offset)

    def fsync(self, fd):
        self._note("sync", Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        super().fsync(fd)

    def rename(self, source, target):
        self._note("rename", target.name)
        super().rename(source, target)

    def unlink(self, path):
        self._note("unlink", path.name)
        super().unlink(path)


@pytest.fixture
def folder(tmp_path):
    prepare_folder(tmp_path / "archive")
    return tmp_path / "archive"


@pytest.fixture
def ops():
    return Ops()


@pytest.fixture
async def target(folder, ops):
    opened = FolderTarget(folder, Traffic(SystemClock()), ops=ops)
    yield opened
    await opened.close()


async def test_an_object_is_durable_before_it_has_its_name(target, ops):
    await target.put("packs/2026/p", parts_of(b"content"))
    kinds = [each.split()[0] for each in ops.done]
    at = kinds.index("rename")
    assert kinds[at - 4 : at] == ["write", "sync", "sync", "sync"]  # the file, and the two new folders' parents
    assert ops.done[at:] == ["rename p", "sync 2026"]


async def test_a_folder_that_is_not_mounted_is_not_an_empty_archive(target, folder):
    await target.put("packs/p", parts_of(b"content"))
    folder.rename(folder.with_name("elsewhere"))
    folder.mkdir()
    for asking in (
        target.head("packs/p"),
        collect(target.read("packs/p")),
        target.page("", "", 10),
        target.put("packs/q", parts_of(b"x")),
        target.delete(["packs/p"]),
        target.sweep(2**53),
        target.probe(),
    ):
        with pytest.raises(ArchiveUnavailable, match=rf"has no {MARKER}.*not mounted.*touch"):
            await asking
    assert os.listdir(folder) == []
    folder.rmdir()
    with pytest.raises(ArchiveUnavailable, match="there is no folder"):
        await target.head("packs/p")
    folder.with_name("elsewhere").rename(folder)
    assert await collect(target.read("packs/p")) == b"content"


@pytest.mark.parametrize("step", ["write", "sync", "rename"])
@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (errno.ENOSPC, ArchiveUnavailable, "is full; make room"),
        (errno.EDQUOT, ArchiveUnavailable, "is full; make room"),
        (errno.EROFS, ArchiveDenied, "may not write"),
        (errno.EACCES, ArchiveDenied, "may not write"),
        (errno.ESTALE, ArchiveUnavailable, "look at that file system"),
        (errno.EIO, ArchiveUnavailable, "look at that file system"),
    ],
)
async def test_a_put_that_fails_leaves_nothing(target, ops, folder, step, number, kind, text):
    await target.put("packs/before", parts_of(b"before"))
    ops.fail[step] = number
    with pytest.raises(kind, match=text):
        await target.put("packs/p", parts_of(b"content"))
    ops.fail.clear()
    assert names_of(await target.page("", "", 10)) == ["packs/before"]
    assert os.listdir(folder / TEMPORARY) == []
    await target.put("packs/p", parts_of(b"content"))
    assert await collect(target.read("packs/p")) == b"content"


async def test_what_cannot_be_deleted_is_named(target, ops):
    await target.put("packs/p", parts_of(b"content"))
    ops.fail["unlink"] = errno.EROFS
    with pytest.raises(ArchiveDenied, match=r"1 of 1 were not deleted \(packs/p\)"):
        await target.delete(["packs/p"])
    ops.fail.clear()
    assert names_of(await target.page("", "", 10)) == ["packs/p"]


async def test_what_a_crash_left_is_swept_when_it_is_old(target, folder):
    await target.probe()
    left = folder / TEMPORARY / "left"
    left.write_bytes(b"half")
    os.utime(left, (1000, 1000))
    assert await target.page("", "", 10) == []
    assert await target.sweep(999_000) == 0
    assert await target.sweep(1_001_000) == 1
    assert not left.exists()


async def test_folders_of_which_nothing_is_left_go(target, folder):
    await target.put("packs/2026/11/21/p", parts_of(b"x"))
    await target.put("packs/2026/q", parts_of(b"x"))
    await target.delete(["packs/2026/11/21/p"])
    assert sorted(os.listdir(folder / "packs" / "2026")) == ["q"]
    await target.delete(["packs/2026/q"])
    assert sorted(os.listdir(folder)) == [MARKER, TEMPORARY]


async def test_a_put_whose_folder_is_just_pruned_makes_it_again(target, folder, ops):
    class Pruned(Ops):
        times = 2

        def rename(self, source, target):
            if self.times:
                self.times -= 1
                target.parent.rmdir()
            super().rename(source, target)

    racing = FolderTarget(folder, Traffic(SystemClock()), ops=Pruned())
    await racing.put("packs/p", parts_of(b"x"))
    assert names_of(await target.page("", "", 10)) == ["packs/p"]
    await racing.close()


async def test_what_somebody_wrote_over_has_another_etag(target, folder):
    stored = await target.put("packs/p", parts_of(b"content"))
    (folder / "packs" / "p").write_bytes(b"tampere")
    os.utime(folder / "packs" / "p", ns=(1, 1))
    with pytest.raises(ArchiveError, match="overwritten"):
        await collect(target.read("packs/p", etag=stored.etag))


async def test_links_and_odd_files_are_no_way_out(target, folder, tmp_path):
    (folder / "packs").mkdir()
    os.mkfifo(folder / "packs" / "pipe")
    (folder / "packs" / ".hidden").write_bytes(b"x")
    (folder / os.fsdecode(b"packs/\xff")).write_bytes(b"x")
    (folder / "packs" / "link").symlink_to("/etc/passwd")
    (folder / "packs" / "loop").symlink_to(folder)
    assert await target.page("", "", 10) == []
    for name in ("packs/pipe", "packs/link", "packs"):
        with pytest.raises(ArchiveMissing):
            await target.head(name)
        with pytest.raises(ArchiveMissing):
            await collect(target.read(name))


# ---- a mount that hangs: calls do not return


HANGS_S = 100.0
"""Longer than any test here."""

DEADLINE_S = 30.0


class HangingOs:
    """``os``, of which every function waits while the mount hangs."""

    def __init__(self, up):
        self._up = up
        self.held_up = []

    def __getattr__(self, name):
        real = getattr(os, name)
        if not callable(real) or name in ("geteuid", "fspath"):
            return real

        def call(*args, **more):
            if threading.current_thread() is threading.main_thread():
                self.held_up.append(name)
            self._up.wait(HANGS_S)
            return real(*args, **more)

        return call


class Mount(FileOps):
    def __init__(self):
        self.up = threading.Event()
        self.up.set()
        self.os = HangingOs(self.up)

    def hang(self):
        self.target._strands.timeout_s = 0.05  # only now: this machine may be slow as well
        self.up.clear()

    def back(self):
        self.target._strands.timeout_s = DEADLINE_S
        self.up.set()

    def fsync(self, fd):
        self.up.wait(HANGS_S)
        super().fsync(fd)


@pytest.fixture
async def mount(monkeypatch, folder):
    monkeypatch.setattr(strands, "CANCELLED_S", 0.05)
    made = Mount()
    for module in (folderfiles, folderopen, fileops):
        monkeypatch.setattr(module, "os", made.os)
    made.target = FolderTarget(folder, Traffic(SystemClock()), ops=made, timeout_s=DEADLINE_S)
    yield made
    made.up.set()
    await made.target.close()
    assert not made.os.held_up, "called where everything else waits for it"


async def gone(folder, mount):
    """Nothing is left that was begun, and no thread."""
    async with asyncio.timeout(DEADLINE_S):
        while mount.target._strands.unfinished or any((folder / TEMPORARY).iterdir()):
            await asyncio.sleep(0.005)


async def test_a_mount_that_hangs_is_an_archive_that_is_not_reached_and_holds_up_nobody(mount, folder):
    await mount.target.put("packs/p", parts_of(b"content"))
    reading = mount.target.read("packs/p")
    assert await anext(reading) == b"content"
    mount.hang()
    began_s = time.monotonic()
    for asking in (
        mount.target.head("packs/p"),
        collect(mount.target.read("packs/p")),
        mount.target.put("packs/q", parts_of(b"content")),
    ):
        with pytest.raises(ArchiveUnavailable, match=r"did not answer within 0\.05 s: its mount hangs"):
            await asking
    await reading.aclose()  # closes a descriptor, which may hang as well
    for _ in range(20):
        with contextlib.suppress(ArchiveUnavailable):
            await mount.target.head("packs/p")
    with pytest.raises(ArchiveUnavailable, match="does not answer"):
        await asyncio.wait_for(mount.target.head("packs/p"), DEADLINE_S)
    assert time.monotonic() - began_s < HANGS_S
    mount.back()
    await gone(folder, mount)
    assert names_of(await mount.target.page("", "", 10)) == ["packs/p"]
    assert await collect(mount.target.read("packs/p")) == b"content"


async def test_who_is_cancelled_while_it_hangs_is_let_go_of_and_what_was_written_is_put_away(mount, folder):
    async def parts():
        yield b"content"
        mount.hang()

    putting = asyncio.ensure_future(mount.target.put("packs/p", parts()))
    async with asyncio.timeout(DEADLINE_S):
        while mount.up.is_set():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        putting.cancel()
        with pytest.raises((asyncio.CancelledError, ArchiveUnavailable)):
            await putting
    mount.back()
    await gone(folder, mount)
    open_files = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)}
    assert not [name for name in open_files if str(folder) in name]


def _is_open(fd):
    with contextlib.suppress(OSError):
        return bool(os.readlink(f"/proc/self/fd/{fd}"))
    return False


async def test_what_came_to_its_name_late_keeps_it(mount, folder, monkeypatch):
    """Somebody may have stored the same again since."""
    placed = folderopen.Placing.place

    def late(self):
        facts = placed(self)
        mount.up.clear()
        mount.up.wait(HANGS_S)
        return facts

    async def parts():
        yield b"content"
        mount.target._strands.timeout_s = 3.0  # what comes next is the placing

    monkeypatch.setattr(folderopen.Placing, "place", late)
    with pytest.raises(ArchiveUnavailable):
        await mount.target.put("packs/p", parts())
    mount.back()
    await gone(folder, mount)
    assert (folder / "packs/p").read_bytes() == b"content"


async def test_nobody_takes_away_what_another_stored_under_the_name(folder, target):
    """Two nodes tell the same: the one fails after it has the name, or is cancelled, and the other was told that it is there."""

    class Second(Ops):
        def fsync_dir(self, path):
            if path.name == "packs" and (path / "p").exists():
                (folder / "other").write_bytes(b"content")
                os.rename(folder / "other", path / "p")
                raise OSError(errno.EIO, "no sync")
            super().fsync_dir(path)

    failing = FolderTarget(folder, Traffic(SystemClock()), ops=Second())
    with pytest.raises(ArchiveUnavailable):
        await failing.put("packs/p", parts_of(b"content"))
    await failing.close()
    assert await collect(target.read("packs/p")) == b"content"

    put = folderopen.Placing(target._files, "token", "packs/q")
    put.create()
    put.place()
    (folder / "other").write_bytes(b"content")
    os.rename(folder / "other", folder / "packs/q")
    put.undo()
    assert await collect(target.read("packs/q")) == b"content"


async def test_what_was_given_up_before_it_had_its_name_does_not_get_it(mount, folder):
    async def parts():
        yield b"content"
        mount.hang()

    with pytest.raises(ArchiveUnavailable):
        await mount.target.put("packs/p", parts())
    assert not await asyncio.to_thread((folder / "packs/p").exists)
    mount.back()
    await gone(folder, mount)
    assert not (folder / "packs/p").exists()


async def test_who_is_cancelled_while_a_failed_put_is_undone_is_cancelled(folder):
    class Slow(Ops):
        undoing, up = threading.Event(), threading.Event()

        def unlink(self, path):
            self.undoing.set()
            self.up.wait(HANGS_S)
            super().unlink(path)

    ops = Slow()
    ops.fail["write"] = errno.EIO
    slow = FolderTarget(folder, Traffic(SystemClock()), ops=ops)
    putting = asyncio.ensure_future(slow.put("packs/p", parts_of(b"content")))
    assert await asyncio.to_thread(ops.undoing.wait, DEADLINE_S)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(putting), DEADLINE_S)
    ops.up.set()
    await slow.close()


async def test_while_all_calls_hang_nothing_piles_up_and_what_is_open_is_closed_later(mount, folder):
    began, more = asyncio.Event(), asyncio.Event()

    async def parts():
        yield b"content"
        began.set()
        await more.wait()
        yield b"content"

    putting = asyncio.ensure_future(mount.target.put("packs/p", parts()))
    await began.wait()
    mount.hang()
    for _ in range(2):
        heads = (mount.target.head("packs/p") for _ in range(16))
        assert {type(each) for each in await asyncio.gather(*heads, return_exceptions=True)} == {ArchiveUnavailable}
    before = mount.target._strands.unfinished
    for _ in range(20):
        with pytest.raises(ArchiveUnavailable, match="does not answer"):
            await collect(mount.target.read("packs/p"))
    assert mount.target._strands.unfinished == before
    more.set()
    with pytest.raises(ArchiveUnavailable):
        await putting
    mount.back()
    await gone(folder, mount)
    open_files = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
    assert not [name for name in open_files if str(folder) in name]
