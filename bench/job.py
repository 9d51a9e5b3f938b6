"""What the load generator is told to do, and what it tells of it. Pure; knows no server in particular.

A request is a template: ``target`` and ``headers`` of an :class:`Operation` may hold

``{client}``  the client's number, over all processes
``{turn}``    0, 1, ... ``paths - 1``, 0, ... for each client and operation; without end if ``paths`` is 0
``{round}``   how often the client had been through its ``paths`` before this request
``{unique}``  24 hexadecimal digits that were never used

so that any HTTP/1.1 server that answers on kept connections can be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

OBJECTS = "/objects/"
"""Where AmberBlob keeps them."""

WRITE_ID = "X-Amber-Write-Id: {unique}\r\n"
"""Lets AmberBlob apply a repeated PUT once."""

Arrivals = Literal["even", "poisson"]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of request.

    Attributes:
        method: PUT and POST carry the job's body.
        target: path and query, a template.
        headers: further lines, each ended by CRLF, a template.
        ok: the statuses that count as done.
        share: how often it is chosen, beside the other operations of the job.
        paths: after how many requests of a client ``{turn}`` begins again; 0: never.
        name: under which its latencies are told; the method if empty.
    """

    method: str
    target: str
    headers: str = ""
    ok: tuple[int, ...] = (200, 201, 204)
    share: float = 1.0
    paths: int = 0
    name: str = ""

    @property
    def title(self) -> str:
        """Its name, or else its method."""
        return self.name or self.method

    @property
    def has_body(self) -> bool:
        """Whether it sends the job's body."""
        return self.method in ("PUT", "POST")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the clients of one process do.

    Attributes:
        ports: where; client number i begins at the i-th, and moves on when an attempt fails.
        clients: connections, each with one request under way at most.
        operations: chosen at random by their shares.
        host: of all ports.
        first_client: number of the first client, over all processes.
        body_bytes: of every PUT and POST.
        own_bodies: each begins with the request's target, so that no two paths get the same. Else all of a process are equal.
        rate_per_s: 0: closed loop, a client's next request follows its last answer. Else open loop: requests are
            due at this rate whatever the answers do, the next free client sends the oldest one that is due, and
            its latency counts from when it was due.
        arrivals: of the open loop.
        requests_each: a client stops after so many; 0: at the end of the window.
        repeat: statuses after which the request is sent again, within the deadline.
        deadline_s: how long a request is repeated before it counts as an error; 0: no repeating.
        attempt_timeout_s: how long an answer may take before the request is repeated, if it is.
    """

    ports: tuple[int, ...]
    clients: int
    operations: tuple[Operation, ...]
    host: str = "127.0.0.1"
    first_client: int = 0
    body_bytes: int = 0
    own_bodies: bool = False
    rate_per_s: float = 0.0
    arrivals: Arrivals = "poisson"
    requests_each: int = 0
    repeat: tuple[int, ...] = (429, 500, 502, 503, 504)
    deadline_s: float = 0.0
    attempt_timeout_s: float = 5.0


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What they found in the window.

    Attributes:
        latencies_us: of the requests that were done in the window (open loop: due in it), by operation.
        ends_s: when they ended, after the beginning of the window.
        statuses: of all answers of the window, done or not.
        errors: requests given up, by what was seen.
        retries: attempts beyond the first.
        unsent: requests of an open loop that were due in the window and that no client was free for until its end.
        cpu_s: of this process in the window.
    """

    latencies_us: dict[str, tuple[float, ...]]
    ends_s: tuple[float, ...]
    statuses: dict[int, int]
    errors: dict[str, int]
    retries: int
    unsent: int
    cpu_s: float


def put(prefix: str, *, paths: int = 0, headers: str = "", share: float = 1.0, base: str = OBJECTS) -> Operation:
    """PUT to paths of each client's own; every one is new if ``paths`` is 0."""
    target = f"{base}{prefix}/{{client}}/{{turn}}"
    return Operation(method="PUT", target=target, headers=headers, ok=(200, 201, 204), share=share, paths=paths)


def get(
    prefix: str, *, paths: int, headers: str = "", share: float = 1.0, method: str = "GET", base: str = OBJECTS
) -> Operation:
    """GET (or HEAD) of the paths that :func:`put` wrote with as many ``paths``."""
    target = f"{base}{prefix}/{{client}}/{{turn}}"
    return Operation(method=method, target=target, headers=headers, ok=(200,), share=share, paths=paths)


def shares(job: Job, processes_max: int, clients_per_process: int) -> list[Job]:
    """The job cut into one for each process: clients as equal as can be, the rate by their number."""
    count = min(processes_max, -(-job.clients // clients_per_process))
    first, cut = job.first_client, []
    for index in range(count):
        clients = job.clients // count + (index < job.clients % count)
        rate = job.rate_per_s * clients / job.clients
        cut.append(msgspec.structs.replace(job, clients=clients, first_client=first, rate_per_s=rate))
        first += clients
    return cut


def mixed(operations: Sequence[Operation]) -> tuple[tuple[float, Operation], ...]:
    """Each operation with the sum of the shares up to it, of 1: the first above a random number is chosen."""
    total = sum(operation.share for operation in operations)
    sums, at = [], 0.0
    for operation in operations:
        at += operation.share / total
        sums.append((at, operation))
    return tuple(sums)
