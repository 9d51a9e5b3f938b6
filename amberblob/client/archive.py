"""What clients ask of the archive: ``client.archive``. The answers are the documents of ``GET /archive…``, as plain values."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

import msgspec
from ulid import ULID

from amberblob.archivejobs import JobWanted
from amberblob.client.bodies import BytesBody
from amberblob.client.http import Answer, Request
from amberblob.client.targets import ARCHIVE_JOBS_TARGET, ARCHIVE_TARGET, archive_job_target
from amberblob.errors import WireError


class Fetch(Protocol):
    """Sends a request until it is answered."""

    def __call__(self, request: Request) -> Awaitable[Answer]: ...


class ArchiveCalls:
    """The archive of a cluster, through any of its nodes. All raise NoArchive where none is configured, and PeerError."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    async def status(self) -> Mapping[str, Any]:
        """Target, and per node: whether it is reached, what is archived and evicted, the cache, the traffic, the last jobs."""
        return await self._ask("GET", ARCHIVE_TARGET)

    async def start(self, wanted: JobWanted) -> Mapping[str, Any]:
        """Start a job on every node; returns ``{job, nodes, silent_nodes, refused, warnings}`` before anything is done.

        One that has no id of the caller's is given one, so that a request that is repeated does not begin a second job.

        Raises:
            JobConflict: one of the kind is running (``extra["job"]``). BadRequest: it makes no sense.
        """
        named = msgspec.structs.replace(wanted, job=wanted.job or str(ULID()))
        return await self._ask("POST", ARCHIVE_JOBS_TARGET, msgspec.json.encode(named))

    async def jobs(self) -> Mapping[str, Any]:
        """``{jobs, silent_nodes}``: those that the nodes remember, newest first."""
        return await self._ask("GET", ARCHIVE_JOBS_TARGET)

    async def job(self, job: str) -> Mapping[str, Any]:
        """How far a job is: sums, and each node's part. Raises: NoSuchJob."""
        return await self._ask("GET", archive_job_target(job))

    async def stop(self, job: str) -> Mapping[str, Any]:
        """End a job where it is; what it did stays. The job afterwards. Raises: NoSuchJob."""
        return await self._ask("DELETE", archive_job_target(job))

    async def _ask(self, method: str, target: str, document: bytes | None = None) -> Mapping[str, Any]:
        if document is None:
            request = Request(method=method, target=target)
        else:
            headers = {"Content-Type": "application/json"}
            request = Request(method=method, target=target, headers=headers, body=BytesBody(document))
        answer = (await self._fetch(request)).json()
        if not isinstance(answer, Mapping):
            raise WireError("The answer is not what was asked for: is the endpoint an AmberBlob node?")
        return answer


class BlockingArchiveCalls:
    """:class:`ArchiveCalls` for code without asyncio."""

    def __init__(
        self, calls: ArchiveCalls, run: Callable[[Coroutine[Any, Any, Mapping[str, Any]]], Mapping[str, Any]]
    ) -> None:
        self._calls = calls
        self._run = run

    def status(self) -> Mapping[str, Any]:
        """Target, and per node: whether it is reached, what is archived and evicted, the cache, the traffic, the last jobs."""
        return self._run(self._calls.status())

    def start(self, wanted: JobWanted) -> Mapping[str, Any]:
        """Start a job on every node: see :meth:`ArchiveCalls.start`."""
        return self._run(self._calls.start(wanted))

    def jobs(self) -> Mapping[str, Any]:
        """``{jobs, silent_nodes}``: those that the nodes remember, newest first."""
        return self._run(self._calls.jobs())

    def job(self, job: str) -> Mapping[str, Any]:
        """How far a job is."""
        return self._run(self._calls.job(job))

    def stop(self, job: str) -> Mapping[str, Any]:
        """End a job where it is."""
        return self._run(self._calls.stop(job))
