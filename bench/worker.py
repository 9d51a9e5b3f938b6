"""One process of the load generator: clients on kept connections, each with one request under way (closed loop).

No coroutine per request and no general HTTP parser: an answer's head is searched for its status and length, and
the next request goes out from the same callback, so that little of the machine goes to the generator.
``python -m bench.worker`` reads a :class:`Job` from its standard input, says ``up`` once its clients are connected,
reads when to begin and end, and writes a :class:`Findings`.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import secrets
import sys
import time
from typing import cast

import msgspec
import uvloop

_HOST = "127.0.0.1"
_PAUSE_S = 0.05
_ATTEMPT_TIMEOUT_S = 5.0
_DONE = frozenset({200, 201})
_REPEAT = frozenset({429, 500, 502, 503, 504})


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the clients of one process do.

    Attributes:
        ports: where; client number i begins at the i-th, and moves on when it fails.
        first_client: number of the first client, over all processes.
        read_share: of the requests; the rest are PUTs.
        paths: how many paths each client has of its own under ``prefix``; PUTs and GETs go over them in turn.
        fresh: every PUT goes to a path that was never written.
        headers: further lines of every GET.
        deadline_s: how long a request is repeated (PUTs with the same write id) before it counts as an error;
            0: no repeating.
    """

    ports: tuple[int, ...]
    clients: int
    first_client: int
    prefix: str
    body_bytes: int
    read_share: float = 0.0
    paths: int = 100
    fresh: bool = False
    headers: str = ""
    deadline_s: float = 0.0


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What they found in the window.

    Attributes:
        latencies_us: of the requests that ended in the window.
        ends_s: when they ended, after the beginning of the window.
        errors: requests given up, by what was seen.
        retries: attempts beyond the first.
        cpu_s: of this process in the window.
    """

    latencies_us: tuple[float, ...]
    ends_s: tuple[float, ...]
    errors: dict[str, int]
    retries: int
    cpu_s: float


class _Load:
    """What the clients of this process share."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.body = random.Random(job.first_client).randbytes(job.body_bytes)
        self.begin = self.end = float("inf")
        self.latencies_us: list[float] = []
        self.ends_s: list[float] = []
        self.errors: dict[str, int] = {}
        self.retries = 0

    def done(self, began: float) -> None:
        now = time.monotonic()
        if self.begin <= now < self.end:
            self.latencies_us.append(round((now - began) * 1e6, 1))
            self.ends_s.append(round(now - self.begin, 6))

    def error(self, what: str) -> None:
        self.errors[what] = self.errors.get(what, 0) + 1


class _Client(asyncio.Protocol):
    """One client: a connection at a time, a request at a time."""

    def __init__(self, load: _Load, number: int) -> None:
        self._load = load
        self._number = number
        self._random = random.Random(number)
        self._loop = asyncio.get_running_loop()
        self._port = number % len(load.job.ports)
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._awaited = 0
        self._count = 0
        self._request = b""
        self._began = 0.0
        self._attempt_timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._stopped = False
        self.connected = asyncio.Event()

    # -- connection

    def connect(self) -> None:
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        port = self._load.job.ports[self._port]
        try:
            async with asyncio.timeout(_ATTEMPT_TIMEOUT_S):
                await self._loop.create_connection(lambda: self, _HOST, port)
        except OSError as error:
            self._failed(type(error).__name__)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.connected.set()
        if self._request:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None and not self._stopped:
            self._transport = None
            self._failed("connection lost")

    # -- requests

    def next(self) -> None:
        """Begin the next request, unless the window is over."""
        load = self._load
        self._began = time.monotonic()
        if self._began >= load.end:
            self.stop()
            return
        job = load.job
        self._count += 1
        reads = job.read_share >= 1 or (job.read_share > 0 and self._random.random() < job.read_share)
        turn = self._count if job.fresh and not reads else self._count % job.paths
        path = f"{job.prefix}/{self._number}/{turn}"
        if reads:
            self._request = f"GET /objects/{path} HTTP/1.1\r\nHost: bench\r\n{job.headers}\r\n".encode()
        else:
            write_id = f"X-Amber-Write-Id: {secrets.token_hex(12)}\r\n" if job.deadline_s else ""
            head = f"PUT /objects/{path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {job.body_bytes}\r\n{write_id}\r\n"
            self._request = head.encode() + load.body
        self._send()

    def _send(self) -> None:
        if self._transport is None:
            self.connect()
            return
        self._buffer.clear()
        self._awaited = 0
        if self._load.job.deadline_s:
            self._attempt_timer = self._loop.call_later(_ATTEMPT_TIMEOUT_S, self._late)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._awaited:
            head_end = buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            start = buffer.lower().find(b"\r\ncontent-length:", 0, head_end + 2)
            length = int(buffer[start + 17 : buffer.index(b"\r\n", start + 17)]) if start >= 0 else 0
            self._awaited = head_end + 4 + length
        if len(buffer) < self._awaited:
            return
        self._cancel_timer()
        status = int(buffer[9:12])
        if status in _DONE:
            self._load.done(self._began)
            self.next()
        elif status in _REPEAT:
            self._failed(f"status {status}")
        else:
            self._give_up(f"status {status}")

    # -- failures

    def _late(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._failed("no answer")

    def _cancel_timer(self) -> None:
        if self._attempt_timer is not None:
            self._attempt_timer.cancel()
            self._attempt_timer = None

    def _failed(self, what: str) -> None:
        """An attempt failed: the next node, the same request, within the deadline."""
        self._cancel_timer()
        if self._stopped or not self._request:
            return
        if time.monotonic() - self._began >= self._load.job.deadline_s:
            self._give_up(what)
            return
        self._load.retries += 1
        self._port = (self._port + 1) % len(self._load.job.ports)
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._loop.call_later(_PAUSE_S, self.connect)

    def _give_up(self, what: str) -> None:
        self._load.error(what)
        self._loop.call_later(_PAUSE_S, self.next)

    def stop(self) -> None:
        self._stopped = True
        self._cancel_timer()
        if self._transport is not None:
            self._transport.close()

    @property
    def stopped(self) -> bool:
        """Whether its last request has ended."""
        return self._stopped


async def _run(job: Job) -> Findings:
    loop = asyncio.get_running_loop()
    load = _Load(job)
    clients = [_Client(load, number) for number in range(job.first_client, job.first_client + job.clients)]
    for client in clients:
        client.connect()
    await asyncio.wait_for(asyncio.gather(*(client.connected.wait() for client in clients)), 30)
    print("up", flush=True)
    begin, end = map(float, (await loop.run_in_executor(None, sys.stdin.readline)).split())
    load.begin, load.end = begin, end
    for client in clients:
        client.next()
    await asyncio.sleep(max(0.0, begin - time.monotonic()))
    before = resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.sleep(max(0.0, end - time.monotonic()))
    after = resource.getrusage(resource.RUSAGE_SELF)
    patience = time.monotonic() + max(job.deadline_s, 10.0)
    while not all(client.stopped for client in clients):
        if time.monotonic() > patience:
            load.error("no answer at the end")
            break
        await asyncio.sleep(0.01)
    return Findings(
        latencies_us=tuple(load.latencies_us),
        ends_s=tuple(load.ends_s),
        errors=load.errors,
        retries=load.retries,
        cpu_s=(after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime),
    )


def main() -> None:
    """Run the job of the first line of standard input."""
    job = msgspec.json.decode(sys.stdin.readline().encode(), type=Job)
    found = uvloop.run(_run(job))
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
    sys.stdout.flush()
    os._exit(0)  # a reader thread may still wait on standard input


if __name__ == "__main__":
    main()
