"""Bodies on their way to the replicas: hung nodes, wrong bodies, clients that go away, full and failed disks."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from blake3 import blake3

from amberblob.client.bodies import PIECE_BYTES
from amberblob.client.http import Timeouts
from amberblob.config.sections import LimitsSection
from amberblob.errors import BadRequest, DigestMismatch, InsufficientStorage, NotReady, QuorumUnavailable
from amberblob.limits import MIB
from amberblob.wire import Prepare
from node.objects import upload as upload_module
from node.objects.put import LARGE_BYTES_MIN, LARGE_STAGING_S
from node.protocol.operations import Conditions
from node.service import PutOptions
from tests.folders import files_below
from tests.unit.node.objects.kit import CHUNK, PATIENCE_S, STAGED, Cluster, cluster, content, get, look, put, until

BIG = 3 * MIB


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(upload_module, "STALL_S", 0.1)
    monkeypatch.setattr(upload_module, "LAGGARD_GRACE_S", 0.1)


@pytest.fixture
async def made():
    async with cluster() as running:
        yield running


async def nothing_left(made: Cluster, path: str = "p") -> None:
    await made.settle()
    assert made.staged() == {}
    assert not any(made.blobs().values())
    assert all(node.register(path).accepted is None for node in made)
    for node in made:
        assert all(slot.bodies == {} for slot in node.store._slots.values())


@pytest.mark.parametrize("phase", ["StageOpen", "Data", "StageClose"])
@pytest.mark.parametrize("to", ["n1", "n2", "n3"])
async def test_a_hung_replica_is_dropped_and_the_write_succeeds(made, phase, to, monkeypatch):
    for patience in ("OPEN_S", "STUCK_S", "CLOSE_S"):
        monkeypatch.setattr(upload_module, patience, 600.0)  # it is not what ends the waiting
    rule = made.net.fault(phase, "hold", to=to)
    data = content(BIG)
    await put(made[1], "p", data)
    assert rule.hits == 1, "it is not tried again with every piece"
    made.net.heal()
    await made.settle()
    for node in made:
        assert await get(node, "p") == data


async def test_a_replica_that_hangs_in_the_middle_is_dropped(made):
    rule = made.net.fault("Data", "hold", to="n2", skip=1)
    data = content(BIG)
    await put(made[1], "p", data)
    assert rule.hits == 1
    made.net.heal()
    assert await get(made[2], "p") == data


async def test_two_hung_replicas_are_an_error_and_nothing_stays(made, monkeypatch):
    monkeypatch.setattr(upload_module, "STUCK_S", 0.2)
    for to in ("n2", "n3"):
        made.net.fault("Data", "hold", to=to, skip=1)
    with pytest.raises(QuorumUnavailable):
        await put(made[1], "p", content(BIG))
    made.net.heal()
    await nothing_left(made)


async def test_a_machine_that_stands_still_for_some_seconds_ends_no_upload(made, monkeypatch):
    held = [made.net.fault("Data", "hold", to=to, skip=1) for to in ("n2", "n3")]
    data = content(BIG)
    putting = asyncio.create_task(put(made[1], "p", data))
    await until(lambda: all(rule.hits for rule in held))
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + upload_module.OPEN_S + 1.0)
    for _ in range(5):  # its timers ring before what the others say is read
        await asyncio.sleep(0)
    made.net.heal()
    await putting
    assert await get(made[2], "p") == data


@pytest.mark.parametrize(
    ("size", "took_s", "begun"),
    [(STAGED, PATIENCE_S, False), (BIG, PATIENCE_S, True), (BIG, PATIENCE_S + LARGE_STAGING_S, False)],
)
async def test_a_write_with_a_condition_is_not_begun_when_a_repeat_may_have_been_refused_elsewhere(
    made, monkeypatch, size, took_s, begun
):
    """Found by the simulation: 412 through another node, and then the first try came to its round and was applied."""
    monkeypatch.setattr(upload_module, "CLOSE_S", 600.0)
    for to in ("n2", "n3"):
        made.net.fault("StageClose", "hold", to=to)
    absent = Conditions(absent=True)
    first = asyncio.create_task(put(made[1], "p", content(size), write_id="once", conditions=absent))
    plain = asyncio.create_task(put(made[1], "q", content(size), write_id="plain"))
    nobodys = asyncio.create_task(put(made[1], "r", content(size), conditions=absent))
    await until(lambda: sum(rule.hits for rule in made.net.rules) == 6)
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + took_s)  # the process stands still
    made.net.heal()
    assert (await plain).version.version == 1, "no refusal of it could have been followed by this"
    assert (await nobodys).version.version == 1, "nobody repeats it"
    if begun:
        assert (await first).version.version == 1
        return
    with pytest.raises(NotReady) as caught:
        await first
    assert caught.value.code == "too-slow" and caught.value.status == 503
    assert {message.path for _, _, message in made.net.messages if isinstance(message, Prepare)} == {"q", "r"}
    await made.settle()
    assert made.staged() == {}


def test_the_client_waits_longer_for_its_answer_than_a_write_with_a_condition_may_take():
    timeouts, limits = Timeouts(), LimitsSection()
    assert limits.request_timeout_s < timeouts.answer_s
    assert LARGE_STAGING_S + limits.request_timeout_s < timeouts.answer_large_s
    assert LARGE_BYTES_MIN > PIECE_BYTES, "what the client takes for small is small here"


async def test_a_replica_that_lags_at_the_close_gets_the_bytes_or_gives_them_up(made):
    rule = made.net.fault("StageClose", "hold", to="n3")
    data = content(BIG)
    await put(made[1], "p", data)
    rule.released.set()
    await made.settle()
    await made[3].pull()
    made.net.down.add("n1")
    assert await get(made[3], "p") == data
    made.net.down = {"n1", "n2"}
    assert await get(made[3], "p", consistency="local") == data


@pytest.mark.parametrize("size", [5, STAGED, BIG])
@pytest.mark.parametrize("told", [-1, 1])
async def test_a_body_of_another_size_than_announced(made, size, told):
    with pytest.raises(BadRequest) as caught:
        await put(made[1], "p", content(size), size=size + told)
    assert caught.value.code == "incomplete-body"
    await nothing_left(made)


@pytest.mark.parametrize("size", [0, 5, STAGED, BIG])
@pytest.mark.parametrize("algorithm", ["blake3", "sha-256", "sha-512"])
async def test_digests_are_checked(made, size, algorithm):
    data = content(size) if size else b""
    right = {
        "blake3": blake3(data).digest(),
        "sha-256": hashlib.sha256(data).digest(),
        "sha-512": hashlib.sha512(data).digest(),
    }
    wrong = bytes(len(right[algorithm]))
    with pytest.raises(DigestMismatch):
        await put(made[1], "p", data, digests=(("blake3", right["blake3"]), (algorithm, wrong)))
    await nothing_left(made)
    await put(made[1], "p", data, digests=tuple(right.items()))
    assert await get(made[2], "p") == data


class BodyBroke(Exception):
    pass


def options(**changes) -> PutOptions:
    return PutOptions(size=None, content_type="a/b", meta={}, **changes)


@pytest.mark.parametrize("size", [0, 5, STAGED, BIG])
async def test_an_exception_of_the_body_passes_through(made, size):
    async def body():
        if size:
            yield content(size)
        raise BodyBroke

    with pytest.raises(BodyBroke):
        await made[1].objects.put("p", body(), options())
    await nothing_left(made)


@pytest.mark.parametrize("size", [5, STAGED, BIG])
async def test_a_client_that_goes_away_in_mid_upload(made, size):
    waiting = asyncio.Event()

    async def body():
        yield content(size)
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(made[1].objects.put("p", body(), options()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await nothing_left(made)


@pytest.mark.parametrize("phase", ["StageOpen", "Data", "StageClose"])
@pytest.mark.parametrize("held", [("n2",), ("n2", "n3")])
async def test_a_client_that_goes_away_while_replicas_are_slow(made, phase, held):
    rules = [made.net.fault(phase, "hold", to=to) for to in held]
    task = asyncio.create_task(put(made[1], "p", content(BIG)))
    await until(lambda: all(rule.hits for rule in rules))
    if phase == "StageClose":
        await until(lambda: len(made.staged()) == 3 - len(held), "the bytes are durable on the others")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    made.net.heal()
    await nothing_left(made)


async def test_the_pieces_of_a_body_do_not_matter(made):
    data = content(2 * MIB + 12_345)

    async def body():
        at = 0
        for size in (0, 1, 0, CHUNK - 1, CHUNK, CHUNK + 1, MIB, 7):
            yield data[at : at + size]
            at += size
        yield data[at:]
        yield b""

    view = await made[1].objects.put("p", body(), options())
    assert view.version.size == len(data) and view.version.etag == blake3(data).hexdigest()
    assert [chunk.len for chunk in view.version.chunks] == [CHUNK] * (len(data) // CHUNK) + [len(data) % CHUNK]
    assert await get(made[3], "p") == data


@pytest.mark.parametrize("size", [5, STAGED, BIG])
async def test_one_full_disk_does_not_hinder_a_write(made, size):
    made[2].store.full = True
    data = content(size)
    await put(made[1], "p", data)
    await made.settle()
    for node in made:
        assert await get(node, "p") == data


@pytest.mark.parametrize(
    "size,full", [(s, f) for s in (STAGED, BIG) for f in ((2, 3), (1, 2), (1, 2, 3))] + [(5, (1, 2, 3))]
)
async def test_too_many_full_disks_are_told_as_such(made, size, full):
    for number in full:
        made[number].store.full = True
    with pytest.raises(InsufficientStorage):
        await put(made[1], "p", content(size))
    await made.settle()
    for number in full:
        made[number].store.full = False
    await made.resolve(rounds=2)
    assert made.staged() == {}


@pytest.mark.parametrize("size", [STAGED, BIG])
async def test_a_disk_that_becomes_full_in_mid_upload(made, size):
    gate = asyncio.Event()

    async def body():
        yield content(size)
        await gate.wait()
        yield content(size, 1)

    task = asyncio.create_task(made[1].objects.put("p", body(), options()))
    await until(lambda: made.net.count("Data") >= 3 or size == STAGED)
    for number in (2, 3):
        made[number].store.full = True
    gate.set()
    with pytest.raises(InsufficientStorage):
        await task
    for node in made:
        node.store.full = False
    await nothing_left(made)


@pytest.mark.parametrize("size", [5, STAGED, BIG])
@pytest.mark.parametrize("failed", [1, 2])
async def test_one_failed_disk_does_not_hinder_a_write(made, size, failed):
    made[failed].store.fail("broken")
    data = content(size)
    await put(made[1], "p", data)
    for number in {1, 2, 3} - {failed}:
        assert await get(made[number], "p") == data
    assert (await look(made[failed], "p")).version.size == size


def size_of(file: Path) -> int:
    """In bytes; -1: it is gone."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return -1


async def test_aborted_uploads_leave_nothing_on_real_disks(tmp_path):
    async with cluster(folder=tmp_path) as made:

        async def body():
            yield content(BIG)
            raise BodyBroke

        with pytest.raises(BodyBroke):
            await made[1].objects.put("p", body(), options())
        with pytest.raises(BadRequest):
            await put(made[1], "p", content(BIG), size=BIG + 1)
        await made.settle()
        await until(
            lambda: not {CHUNK, CHUNK + 1} & {size_of(file) for file in files_below(tmp_path)}, "nothing is left"
        )
        await put(made[1], "p", content(BIG))
        assert await get(made[2], "p") == content(BIG)
