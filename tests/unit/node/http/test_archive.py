"""``/archive``: what is asked for, and how errors look. What the answers hold is tried with whole clusters (node/archive)."""

from __future__ import annotations

from typing import Any

import pytest

from amberblob.archivejobs import JobWanted
from amberblob.errors import JobConflict, NoSuchJob
from node.archive.jobs import JobRequest, JobStatus
from node.archive.status import (
    ArchiveNodeStatus,
    ArchiveView,
    JobStarted,
    JobsView,
    JobView,
    total_of,
    view_job,
)
from tests.unit.node.http.conftest import serving

JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


class FakeArchive:
    """One job, of which everything is remembered."""

    def __init__(self) -> None:
        self.wanted: list[JobWanted] = []
        self.stopped: list[str] = []

    async def view(self) -> ArchiveView:
        node = ArchiveNodeStatus(node="n1", target="memory://x", reached=True)
        return ArchiveView(
            target="memory://x", warnings=(), nodes=(node,), silent_nodes=("n2",), total=total_of([node])
        )

    async def start(self, wanted: JobWanted) -> JobStarted:
        if self.wanted:
            raise JobConflict("one runs", extra={"job": JOB})
        self.wanted.append(wanted)
        return JobStarted(job=JOB, nodes=("n1",), silent_nodes=(), refused={})

    async def jobs(self) -> JobsView:
        return JobsView(jobs=(await self.job(JOB),), silent_nodes=())

    async def job(self, job: str) -> JobView:
        if job != JOB:
            raise NoSuchJob("there is none")
        part = JobStatus(request=JobRequest(job=JOB, kind="run"), node="n1", state="done", done_slots=[0])
        return view_job([part], slot_count=1, slots=True)

    async def stop(self, job: str) -> JobView:
        self.stopped.append(job)
        return await self.job(job)


async def test_all_of_it() -> None:
    fake = FakeArchive()
    async with serving(archive=fake) as world:
        async with world.request("GET", "/archive") as answer:
            shown = await answer.json()
            assert answer.status == 200 and shown["total"]["reached"] is True and shown["silent_nodes"] == ["n2"]
        async with world.request("GET", "/archive/jobs") as answer:
            assert [job["job"] for job in (await answer.json())["jobs"]] == [JOB]
        async with world.request("GET", f"/archive/jobs/{JOB}") as answer:
            assert (await answer.json())["state"] == "done"
        body = {"kind": "run", "prefix": "a/", "dry_run": True, "bytes_per_s": 5, "options": {"x": "y"}}
        async with world.request("POST", "/archive/jobs", json=body) as answer:
            assert answer.status == 202 and (await answer.json())["nodes"] == ["n1"]
        assert fake.wanted == [JobWanted(kind="run", prefix="a/", dry_run=True, bytes_per_s=5, options={"x": "y"})]
        async with world.request("POST", "/archive/jobs", json=body) as answer:
            problem = await answer.json()
            assert (answer.status, problem["job"]) == (409, JOB) and answer.content_type == "application/problem+json"
        async with world.request("DELETE", f"/archive/jobs/{JOB}") as answer:
            assert answer.status == 202 and fake.stopped == [JOB]
        async with world.request("GET", "/archive/jobs/nothing") as answer:
            assert answer.status == 404 and "no-such-job" in await answer.text()
        async with world.request("PUT", "/archive/jobs") as answer:
            assert answer.status == 405 and answer.headers["Allow"] == "GET, POST"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"kind": "dance"}',
        b'{"kind": "run", "prefex": "a"}',
        b'{"kind": "run", "bytes_per_s": -1}',
        b'{"kind": "run", "requests_per_s": -0.5}',
        b'{"kind": "run", "prefix": "' + b"x" * 5000 + b'"}',
        b'{"kind": "import", "source": "' + b"x" * 5000 + b'"}',
        b'{"kind": "run", "prefix": "' + b"x" * 70_000 + b'"}',
        b'{"kind": "\xff"}',
    ],
)
async def test_a_body_that_is_none_is_refused(body: bytes) -> None:
    fake = FakeArchive()
    async with serving(archive=fake) as world:
        async with world.request("POST", "/archive/jobs", data=body) as answer:
            assert answer.status == 400 and not fake.wanted
            assert "bad-request" in await answer.text()


@pytest.mark.parametrize(
    ("method", "target", "options"),
    [
        ("GET", "/archive", {}),
        ("GET", "/archive/jobs", {}),
        ("POST", "/archive/jobs", {"json": {"kind": "run"}}),
        ("GET", f"/archive/jobs/{JOB}", {}),
        ("DELETE", f"/archive/jobs/{JOB}", {}),
    ],
)
async def test_without_an_archive_the_answer_says_what_to_do(method: str, target: str, options: dict[str, Any]) -> None:
    async with serving() as world, world.request(method, target, **options) as answer:
        problem = await answer.json()
        assert answer.status == 409 and "[archive] target" in problem["detail"] and "no-archive" in problem["type"]


async def test_the_token_is_asked_for() -> None:
    async with serving(archive=FakeArchive(), token="secret") as world:
        async with world.request("GET", "/archive") as answer:
            assert answer.status == 401
        async with world.request("GET", "/archive", headers={"Authorization": "Bearer secret"}) as answer:
            assert answer.status == 200
