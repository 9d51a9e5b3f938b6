"""Jobs: on one node, and on all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from amberblob.archivejobs import JobWanted
from amberblob.config import ArchiveJobRule
from amberblob.config.values import Duration
from amberblob.errors import BadRequest, DiskFull, JobConflict, NoArchive, NoSuchJob, NotReady, QuorumUnavailable
from node.archive.jobs import JobRequest, JobStatus, Progress
from node.archive.keeper import SETTLE_S
from node.archive.runner import KEPT_MAX, JobRunner
from node.archive.status import ArchiveNodeStatus, view_job, warnings_of
from registry.routes import Membership, NodeState
from tests.unit.node.archive.archive_kit import World, world
from tests.unit.node.objects.kit import content, put, until


class Notes:
    """Notes in a dict."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def jobs(self) -> dict[str, bytes]:
        return dict(self.kept)

    async def save_job(self, job: str, status: bytes) -> None:
        self.kept[job] = status


class Work:
    """Waits to be let go; notes how often it was begun."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun: list[str] = []
        self.error: Exception | None = None

    async def __call__(self, request: JobRequest, progress: Progress) -> None:
        self.begun.append(request.job)
        progress.add(steps=1)
        await self.gate.wait()
        if self.error is not None:
            raise self.error


def test_what_a_newer_node_tells_of_a_job_is_understood() -> None:
    wanted = JobWanted(kind="import", prefix="a/", dry_run=True, source="s3://b/", options={"x": "y"})
    request = JobRequest.taken(wanted, job="J", asked_at_ms=7)
    assert (request.job, request.asked_at_ms, request.source, request.options) == ("J", 7, "s3://b/", {"x": "y"})
    told = msgspec.json.encode({**msgspec.to_builtins(request), "urgent": True})
    assert msgspec.json.decode(told, type=JobRequest) == request


async def runner_of(notes: Notes, work: Work) -> JobRunner:
    runner = JobRunner("n1", notes, lambda: 7)
    runner.register("gc", work)
    runner.register("run", work)
    await runner.resume()
    return runner


def request(number: int, kind: Any = "gc", **more: Any) -> JobRequest:
    return JobRequest(job=f"{number:026d}", kind=kind, **more)


async def over(runner: JobRunner, job: JobRequest) -> JobStatus:
    await until(lambda: (status := runner.status(job.job)) is not None and status.state != "running")
    status = runner.status(job.job)
    assert status is not None
    return status


async def test_one_of_a_kind_at_a_time_and_asking_twice_is_once() -> None:
    work = Work()
    runner = await runner_of(Notes(), work)
    await runner.start(request(1))
    await runner.start(request(1))
    with pytest.raises(JobConflict) as caught:
        await runner.start(request(2))
    assert caught.value.extra == {"job": request(1).job}
    await runner.start(request(3, dry_run=True))
    await runner.start(request(4, "run"))
    with pytest.raises(NotReady):
        await runner.start(request(5, "verify"))
    work.gate.set()
    assert (await over(runner, request(1))).state == "done"
    await runner.start(request(2))
    assert (await over(runner, request(2))).counts == {"steps": 1}
    assert len(work.begun) == 4


async def test_a_failed_job_tells_why_and_an_error_of_ours_stays_its_own() -> None:
    work, notes = Work(), Notes()
    runner = await runner_of(notes, work)
    work.gate.set()
    work.error = NoArchive("somebody took it away")
    await runner.start(request(1))
    status = await over(runner, request(1))
    assert (status.state, status.detail, status.ended_ms) == ("failed", "somebody took it away", 7)
    work.error = ZeroDivisionError("oops")
    await runner.start(request(2))
    status = await over(runner, request(2))
    assert status.state == "failed" and "ZeroDivisionError" in status.detail
    await until(lambda: msgspec.json.decode(notes.kept[request(2).job])["state"] == "failed")


async def test_what_ran_goes_on_after_a_restart_and_what_was_stopped_does_not() -> None:
    work, notes = Work(), Notes()
    runner = await runner_of(notes, work)
    await runner.start(request(1))
    await runner.start(request(2, "run"))
    await until(lambda: len(work.begun) == 2)
    assert (await runner.stop(request(2).job)).state == "stopped"
    await runner.close()
    with pytest.raises(NotReady):
        await runner.start(request(3))
    again = await runner_of(notes, work)
    assert again.count("running") == 1
    work.gate.set()
    status = await over(again, request(1))
    assert status.state == "done" and status.counts == {"steps": 2}
    assert work.begun.count(request(2).job) == 1
    with pytest.raises(NoSuchJob):
        await again.stop(request(9).job)


async def test_the_last_ones_are_kept_and_failures_only_grow() -> None:
    work = Work()
    runner = await runner_of(Notes(), work)
    work.gate.set()
    for number in range(KEPT_MAX + 5):
        await runner.start(request(number))
        (await over(runner, request(number))).failures = 1
    assert len(runner.statuses()) == KEPT_MAX + 1
    assert runner.failures == KEPT_MAX + 5


async def test_progress_is_written_down_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.archive.runner.SAVE_EVERY_S", 0.01)
    work, notes = Work(), Notes()
    runner = await runner_of(notes, work)
    await runner.start(request(1))
    await until(lambda: msgspec.json.decode(notes.kept.get(request(1).job, b"{}")).get("counts") == {"steps": 1})
    work.gate.set()
    await over(runner, request(1))


def part(node: str, state: Any, *done: int, kind: str = "run", **more: Any) -> JobStatus:
    return JobStatus(
        request=request(1, kind), node=node, state=state, done_slots=list(done), slots_done=len(done), **more
    )


def test_a_job_is_done_when_every_slot_was_done_by_somebody() -> None:
    parts = [part("n2", "done", 1), part("n1", "done", 0, counts={"chunks": 2}, problems=["x"], failures=3)]
    view = view_job(parts, slot_count=3, silent=["n3"], slots=True)
    assert (view.state, view.unfinished_slots, view.silent_nodes) == ("waiting", (2,), ("n3",))
    assert (view.slots_done, view.slots_total, view.problems, view.failures) == (2, 3, ("n1: x",), 3)
    assert view_job([*parts, part("n3", "done", 2)], slot_count=3, slots=True).state == "done"
    assert view_job([*parts, part("n3", "failed", detail="why")], slot_count=3, slots=True).state == "failed"
    assert view_job([*parts, part("n3", "running")], slot_count=3, slots=True).state == "running"
    assert view_job([part("n1", "done", kind="gc")], slot_count=3, slots=True).unfinished_slots == ()


def test_what_a_node_has_seen_to_be_done_everywhere_stays_done_while_others_are_away() -> None:
    parts = [part("n1", "done", 0, all_done=True), part("n2", "done", 1)]
    view = view_job(parts, slot_count=3, silent=["n3"], slots=True)
    assert (view.state, view.unfinished_slots, view.slots_done, view.silent_nodes) == ("done", (), 3, ("n3",))


async def cluster_run(it: World, index: int = 1, **more: Any) -> str:
    return (await it.archive(index).cluster.start(JobWanted(kind="run", **more))).job


async def test_a_job_runs_on_all_nodes_and_any_node_tells_of_it(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        for index in range(8):
            await put(it[1], f"p/{index}", content(100 + index))
        await it.cluster.settle()
        job = await cluster_run(it, 2)
        await asyncio.gather(*(it.ended(index, job) for index in (1, 2, 3)))
        view = await it.archive(3).cluster.job(job)
        assert (view.state, view.slots_done, view.unfinished_slots) == ("done", 8, ())
        assert view.counts["chunks"] == 8 and [one.node for one in view.nodes] == ["n1", "n2", "n3"]
        assert not any(one.notes or one.done_slots for one in view.nodes)
        listed = await it.archive(1).cluster.jobs()
        assert [(one.job, one.state) for one in listed.jobs] == [(job, "done")]
        with pytest.raises(NoSuchJob):
            await it.archive(1).cluster.job("01ARZ3NDEKTSV4RRFFQ69G5FAV")
        with pytest.raises(BadRequest):
            await it.archive(1).cluster.job("x")


async def test_a_repeated_request_is_for_the_same_job(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        mine = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
        assert await cluster_run(it, 1, job=mine) == await cluster_run(it, 2, job=mine) == mine
        await asyncio.gather(*(it.ended(index, mine) for index in (1, 2, 3)))
        assert [one.job for one in (await it.archive(3).cluster.jobs()).jobs] == [mine]
        with pytest.raises(BadRequest):
            await cluster_run(it, 1, job="mine")


async def test_who_cannot_begin_is_told_of(tmp_path: Path) -> None:
    async with world(tmp_path, archives=2, count=4) as it:
        it.cluster.net.down.add("n2")
        started = await it.archive(1).cluster.start(JobWanted(kind="run"))
        assert started.nodes == ("n1",) and started.silent_nodes == ("n2",)
        assert set(started.refused) == {"n3", "n4"} and "archive" in started.refused["n3"]
        await it.ended(1, started.job)
        view = await it.archive(1).cluster.view()
        assert [node.node for node in view.nodes] == ["n1", "n3", "n4"] and view.silent_nodes == ("n2",)
        assert [node.code for node in view.nodes] == ["", "no-archive", "no-archive"]
        assert view.total.reached is False and view.warnings == (
            "n3, n4 without an archive: set [archive] target there as on the other nodes.",
        )
        other = warnings_of(
            [ArchiveNodeStatus(node="n1", target="s3://a"), ArchiveNodeStatus(node="n2", target="s3://b")]
        )
        assert len(other) == 1 and "n1: s3://a; n2: s3://b" in other[0]


async def test_one_that_failed_or_had_problems_is_taken_note_of_by_stopping_it() -> None:
    notes, work = Notes(), Work()
    work.gate.set()
    work.error = DiskFull("no room")
    runner = await runner_of(notes, work)
    await runner.start(request(1))
    assert (await over(runner, request(1))).state == "failed"
    assert (await runner.stop(request(1).job)).state == "stopped" and runner.count("failed") == 0

    async def with_problems(request: JobRequest, progress: Progress) -> None:
        progress.problem("left")

    runner.register("verify", with_problems)
    await runner.start(request(2, "verify"))
    assert (await over(runner, request(2))).state == "done"
    status = await runner.stop(request(2).job)
    assert (status.state, status.detail) == ("stopped", "1 problems (noted by the operator)")
    await runner.close()
    again = await runner_of(notes, Work())
    assert [one.state for one in again.statuses()] == ["stopped", "stopped"]
    assert "no room (noted" in again.statuses()[0].detail
    await again.close()


async def test_a_second_one_is_refused_while_it_runs_and_it_can_be_stopped(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await put(it[1], it.cluster.path(1), content(3000))
        await it.cluster.settle()
        hang = it.bucket.fault("hang", "put", "packs/*")
        job = await cluster_run(it)
        await until(lambda: hang.met)
        await asyncio.gather(it.ended(2, job), it.ended(3, job))
        with pytest.raises(JobConflict):
            await it.archive(1).runner.start(it.request())
        view = await it.archive(2).cluster.stop(job)
        assert view.state == "stopped"
        it.bucket.heal()
        for parts in it.archives():
            await parts.keeper.step()
        assert it.status(1, job).state == "stopped", "nobody takes it up again"


async def test_stopping_one_that_is_done_says_so_also_while_a_node_is_away(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        job = await cluster_run(it)
        await asyncio.gather(*(it.ended(index, job) for index in (1, 2, 3)))
        assert all(it.status(index, job).slots_done for index in (1, 2, 3)), "each has done a part that others have not"
        for parts in it.archives():
            await parts.keeper.step()
        it.cluster.net.down.add("n3")
        for view in (await it.archive(1).cluster.stop(job), await it.archive(2).cluster.job(job)):
            assert (view.state, view.unfinished_slots, view.silent_nodes) == ("done", (), ("n3",))


@pytest.mark.parametrize("left", ["running", "failed", "problems"])
async def test_what_a_node_has_left_when_all_slots_are_done_is_not_said_to_be_done_while_it_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """Its slots are done, and it still evicts and exports; or could not, which somebody has to hear of."""
    async with world(tmp_path) as it:
        reached, gate = asyncio.Event(), asyncio.Event()

        async def evict_all(prefix: str, progress: Progress) -> None:
            reached.set()
            if left == "running":
                await gate.wait()
            elif left == "failed":
                raise DiskFull("no room")
            else:
                progress.problem("one stays")

        monkeypatch.setattr(it.archive(3).evictor, "evict_all", evict_all)
        job = await cluster_run(it)
        await asyncio.gather(
            reached.wait(), *(it.ended(index, job) for index in ((1, 2) if left == "running" else (1, 2, 3)))
        )
        assert all(it.status(index, job).slots_done for index in (1, 2, 3))
        for index in (1, 2):
            await it.archive(index).keeper.step()
        it.cluster.net.down.add("n3")
        assert (await it.archive(2).cluster.job(job)).state == "waiting", "what it has left is not done"
        assert (await it.archive(1).cluster.stop(job)).state in ("waiting", "stopped")
        gate.set()


async def test_slots_of_a_node_that_died_are_done_by_another(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        path = it.cluster.path(1)
        await put(it[2], path, content(3000))
        await it.cluster.settle()
        hang = it.bucket.fault("hang", "put", "packs/*")
        job = await cluster_run(it, 2)
        await until(lambda: hang.met)
        await asyncio.gather(it.ended(2, job), it.ended(3, job))
        view = await it.archive(2).cluster.job(job)
        assert view.state == "running" and it.cluster.slot(path) in view.unfinished_slots
        it.cluster.net.down.add("n1")
        await it.archive(1).runner.close()
        it.bucket.heal()
        assert (await it.archive(2).cluster.job(job)).state == "waiting"
        for index in (2, 3):
            await it.archive(index).keeper.step()
            await it.ended(index, job)
        view = await it.archive(3).cluster.job(job)
        assert (view.state, view.unfinished_slots, view.silent_nodes) == ("done", (), ("n1",))
        assert it.rows(2, path) == 1
        runs = it.cluster.net.count("ArchiveJob")
        for index in (2, 3):
            await it.archive(index).keeper.step()
        for index in (2, 3):
            await it.archive(index).keeper.step()
        assert it.cluster.net.count("ArchiveJob") <= runs + 4, "what is complete is not asked about for ever"


async def test_a_node_that_was_away_when_its_job_was_stopped_stops_it(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await put(it[1], it.cluster.path(1), content(3000))
        await it.cluster.settle()
        hang = it.bucket.fault("hang", "put", "packs/*")
        job = await cluster_run(it)
        await until(lambda: hang.met)
        await it.archive(1).runner.close()
        it.cluster.net.down.add("n1")
        await it.archive(2).cluster.stop(job)
        it.cluster.net.down.clear()
        again = it.cluster.start("n1").parts.archive
        assert again is not None
        await again.keeper.step()
        assert it.status(1, job).state in ("stopped", "running")
        await again.keeper.step()
        assert it.status(1, job).state == "stopped"


async def test_some_jobs_are_for_one_node(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        done: list[str] = []
        for parts in it.archives():

            async def work(request: JobRequest, progress: Progress, node: str = parts.ground.node) -> None:
                done.append(node)

            parts.runner._works["recover"] = work
        it.cluster.net.down.add("n1")
        started = await it.archive(3).cluster.start(JobWanted(kind="recover"))
        assert started.nodes == ("n2",) and started.silent_nodes == ("n1",)
        await it.ended(2, started.job)
        assert done == ["n2"]


async def test_nobody_begins_what_nobody_can(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        for parts in it.archives():
            parts.runner._works.pop("verify", None)
        with pytest.raises(QuorumUnavailable, match="n1: "):
            await it.archive(1).cluster.start(JobWanted(kind="verify"))


async def test_scheduled_jobs_begin_by_themselves(tmp_path: Path) -> None:
    jobs = (ArchiveJobRule(job="run", every=Duration(3600)),)
    async with world(tmp_path, section={"jobs": jobs}) as it:
        await put(it[1], it.cluster.path(1), content(3000))
        await it.cluster.settle()
        keeper = it.archive(1).keeper
        await keeper.step()
        assert not it.archive(1).runner.statuses(), "not right after the start"
        it.cluster.clock.ahead_s += 3600
        await keeper.step()
        [status] = it.archive(1).runner.statuses()
        await it.ended(1, status.request.job)
        assert it.rows(1, it.cluster.path(1)) == 1
        view = await it.archive(2).cluster.job(status.request.job)
        assert view.state == "done", "every node has its own"
        await keeper.step()
        again = it.cluster.start("n1").parts.archive
        assert again is not None
        it.cluster.clock.ahead_s += 1000
        await again.keeper.step()
        assert len(again.runner.statuses()) == 1, "it is remembered when it began last"
        it.cluster.clock.ahead_s += 3600
        await again.keeper.step()
        assert len(again.runner.statuses()) == 2
        for status in again.runner.statuses():
            await it.ended(1, status.request.job)


async def test_after_a_start_jobs_go_on_once_the_others_can_be_reached_or_are_given_up(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.cluster.net.down.add("n3")
        again = it.cluster.start("n1").parts.archive
        assert again is not None
        await again.keeper.step()
        with pytest.raises(NotReady):
            await again.runner.start(it.request())
        it.cluster.clock.ahead_s += SETTLE_S
        await again.keeper.step()
        await again.runner.start(it.request())


async def test_how_a_job_ended_is_written_down_later_if_it_could_not_be_at_once() -> None:
    notes, work = Notes(), Work()
    runner = await runner_of(notes, work)
    await runner.start(request(1))
    save, fails = notes.save_job, True

    async def failing(job: str, status: bytes) -> None:
        if fails:
            raise DiskFull("full")
        await save(job, status)

    notes.save_job = failing  # type: ignore[method-assign]
    work.gate.set()
    await until(lambda: runner.count("done") == 1)
    fails = False
    await runner.close()
    assert [msgspec.json.decode(kept, type=JobStatus).state for kept in notes.kept.values()] == ["done"]


async def test_what_a_removed_node_condemned_is_let_go_before_it_is_forgotten(tmp_path: Path) -> None:
    name = f"packs/1970/01/01/{1:026d}.pack"
    async with world(tmp_path, count=4) as it:
        table = it.cluster.table
        assert table is not None
        condemned = it.archive(1).condemned
        assert (await condemned.condemn([name], "n4/run"))[0] == () and condemned.bars(name)
        await it.archive(1).keeper.step()
        assert condemned.bars(name)
        left = {node: info for node, info in table.nodes.items() if node != "n4"}
        removed = Membership(generation=1, nodes={"n4": NodeState.REMOVED})
        it.cluster.table = replace(table, nodes=left, membership=removed)
        await it.archive(1).keeper.step()
        it.cluster.table = replace(table, nodes=left, membership=Membership(generation=2, nodes={}))
        assert not condemned.bars(name) and len(condemned) == 0
