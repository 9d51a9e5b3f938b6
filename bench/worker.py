"""One process of the load generator: clients on kept connections, each with one request under way.

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
from collections import Counter, deque
from typing import cast

import msgspec
import uvloop

from bench.job import Findings, Job, Operation, mixed
from bench.openloop import ExactTimer, due_times

_PAUSE_S = 0.05
_CONNECT_TIMEOUT_S = 30.0
_LAST_ANSWER_S = 30.0
_THROUGH_MAX_S = 300.0
_NO_BODY = frozenset({204, 304})
_LAST_CHUNK = b"0\r\n\r\n"


class _Load:
    """What the clients of this process share."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.body = random.Random(job.first_client).randbytes(job.body_bytes)
        self.mixed = mixed(job.operations)
        self.begin = self.end = float("inf")
        self.latencies_us: dict[str, list[float]] = {operation.title: [] for operation in job.operations}
        self.ends_s: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.retries = 0

    def done(self, operation: Operation, began: float) -> None:
        now = time.monotonic()
        # Of an open loop what was due in the window counts, however late it ended: the late ones are what matters.
        if self.begin <= (began if self.job.rate_per_s else now) < self.end:
            self.latencies_us[operation.title].append(round((now - began) * 1e6, 1))
            self.ends_s.append(round(now - self.begin, 6))

    def status(self, status: int) -> None:
        if self.begin <= time.monotonic() < self.end:
            self.statuses[status] += 1


class _Arrivals:
    """Hands the requests of an open loop to its clients: the oldest that is due to whoever is free."""

    def __init__(self, load: _Load, started: float) -> None:
        job = load.job
        self._load = load
        self._dues = due_times(job.rate_per_s, job.arrivals, job.first_client)
        self._started = started
        self._waiting: deque[tuple[float, _Client]] = deque()
        self._timer = ExactTimer()
        asyncio.get_running_loop().add_reader(self._timer.descriptor, self._fire)

    def take(self, client: _Client) -> None:
        """Have the client send the next request, when it is due."""
        due = self._started + next(self._dues)
        if due >= self._load.end:
            client.stop()
        elif due <= time.monotonic():
            client.send(due)
        else:
            # Whoever waits took a later request than all who wait already: the first is always the next.
            self._waiting.append((due, client))
            if len(self._waiting) == 1:
                self._timer.set(due)

    def _fire(self) -> None:
        self._timer.clear()
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            due, client = self._waiting.popleft()
            client.send(due)
        if self._waiting:
            self._timer.set(self._waiting[0][0])

    def unsent(self) -> int:
        """How many were due before the end and are with no client. Ends the handing out."""
        count = 0
        while self._started + next(self._dues) < self._load.end:
            count += 1
        return count


class _Client(asyncio.Protocol):
    """One client: a connection at a time, a request at a time."""

    def __init__(self, load: _Load, number: int) -> None:
        self._load = load
        self._job = load.job
        self._number = number
        self._random = random.Random(number)
        self._loop = asyncio.get_running_loop()
        self._port = number % len(load.job.ports)
        self._transport: asyncio.Transport | None = None
        self._counts = dict.fromkeys((operation.title for operation in load.job.operations), 0)
        self._count = 0
        self._operation = load.job.operations[0]
        self._head = b""
        self._began = 0.0
        # Of the answer under way: what is read of its head; then its status, and the body's bytes that are missing
        # (None: chunked, and the end of what was read so far).
        self._buffer = bytearray()
        self._status = 0
        self._missing: int | None = 0
        self._keep = True
        self._attempt_timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._stopped = False
        self.arrivals: _Arrivals | None = None
        self.connected = asyncio.Event()

    # -- connection

    def connect(self) -> None:
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        port = self._job.ports[self._port]
        try:
            async with asyncio.timeout(self._job.attempt_timeout_s):
                await self._loop.create_connection(lambda: self, self._job.host, port)
        except OSError as error:
            self._failed(type(error).__name__)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.connected.set()
        if self._head:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None and not self._stopped:
            self._transport = None
            if self._head:
                self._failed("connection lost")

    # -- requests

    def next(self) -> None:
        """Begin the next request, unless the window is over."""
        self._head = b""
        if self._job.requests_each and self._count >= self._job.requests_each:
            self.stop()
        elif self.arrivals is not None:
            self.arrivals.take(self)
        elif (now := time.monotonic()) >= self._load.end:
            self.stop()
        else:
            self.send(now)

    def send(self, began: float) -> None:
        """Send the next request; its latency counts from ``began``."""
        self._began = began
        self._count += 1
        operation = self._operation = self._choose()
        count = self._counts[operation.title]
        self._counts[operation.title] = count + 1
        round_, turn = divmod(count, operation.paths) if operation.paths else (0, count)
        names = {"client": self._number, "turn": turn, "round": round_, "unique": ""}
        if "{unique}" in operation.headers or "{unique}" in operation.target:
            names["unique"] = secrets.token_hex(12)
        length = f"Content-Length: {self._job.body_bytes}\r\n" if operation.has_body else ""
        headers = operation.headers.format_map(names) if operation.headers else ""
        target = operation.target.format_map(names)
        self._body = self._load.body
        if self._job.own_bodies:
            # With an end that no target has: else "…/32" is the beginning of "…/324", and their bodies may be equal.
            own = f"{target}\n".encode()[: len(self._body)]
            self._body = own + self._body[len(own) :]
        self._head = f"{operation.method} {target} HTTP/1.1\r\nHost: bench\r\n{length}{headers}\r\n".encode()
        self._send()

    def _choose(self) -> Operation:
        choices = self._load.mixed
        if len(choices) > 1:
            number = self._random.random()
            for limit, operation in choices:
                if number < limit:
                    return operation
        return choices[-1][1]

    def _send(self) -> None:
        if self._transport is None:
            self.connect()
            return
        self._buffer.clear()
        self._status = 0
        if self._job.deadline_s:
            self._attempt_timer = self._loop.call_later(self._job.attempt_timeout_s, self._late)
        if self._operation.has_body:
            # Not joined: a large body is not copied for each request.
            self._transport.writelines([self._head, self._body])
        else:
            self._transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        if not self._status:
            self._buffer += data
            head_end = self._buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            self._read_head(head_end)
            data = bytes(self._buffer[head_end + 4 :])
        if self._missing is None:
            self._buffer = self._buffer[-len(_LAST_CHUNK) :] + data
            if not self._buffer.endswith(_LAST_CHUNK):
                return
        else:
            self._missing -= len(data)
            if self._missing > 0:
                return
        self._answered()

    def _read_head(self, head_end: int) -> None:
        head = bytes(self._buffer[: head_end + 2]).lower()
        self._status = int(head[9:12])
        start = head.find(b"\r\ncontent-length:")
        if self._operation.method == "HEAD" or self._status in _NO_BODY:
            self._missing = 0
        elif start >= 0:
            self._missing = int(head[start + 17 : head.index(b"\r\n", start + 17)])
        else:
            self._missing = None if b"\r\ntransfer-encoding: chunked" in head else 0
        self._keep = b"\r\nconnection: close" not in head

    def _answered(self) -> None:
        self._cancel_timer()
        status = self._status
        self._load.status(status)
        if not self._keep:
            self._drop()
        if status in self._operation.ok:
            self._load.done(self._operation, self._began)
            self.next()
        elif status in self._job.repeat:
            self._failed(f"status {status}")
        else:
            self._give_up(f"status {status}")

    # -- failures

    def _late(self) -> None:
        self._drop()
        self._failed("no answer")

    def _drop(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def _cancel_timer(self) -> None:
        if self._attempt_timer is not None:
            self._attempt_timer.cancel()
            self._attempt_timer = None

    def _failed(self, what: str) -> None:
        """An attempt failed: the next node, the same request, within the deadline."""
        self._cancel_timer()
        if self._stopped or not self._head:
            return
        if time.monotonic() - self._began >= self._job.deadline_s:
            self._give_up(what)
            return
        self._load.retries += 1
        self._port = (self._port + 1) % len(self._job.ports)
        self._drop()
        self._loop.call_later(_PAUSE_S, self.connect)

    def _give_up(self, what: str) -> None:
        self._load.errors[what] += 1
        self._head = b""
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
    await asyncio.wait_for(asyncio.gather(*(client.connected.wait() for client in clients)), _CONNECT_TIMEOUT_S)
    print("up", flush=True)
    start, begin, end = map(float, (await loop.run_in_executor(None, sys.stdin.readline)).split())
    load.begin, load.end = begin, end
    arrivals = _Arrivals(load, start) if job.rate_per_s else None
    for client in clients:
        client.arrivals = arrivals
        client.next()
    await asyncio.sleep(max(0.0, begin - time.monotonic()))
    before = _own_cpu_s()
    windowed = end < float("inf")
    if windowed:
        await asyncio.sleep(max(0.0, end - time.monotonic()))
    after = _own_cpu_s()
    unsent = arrivals.unsent() if arrivals is not None else 0
    patience = end + max(job.deadline_s, _LAST_ANSWER_S) if windowed else begin + _THROUGH_MAX_S
    while not all(client.stopped for client in clients):
        if time.monotonic() > patience:
            load.errors["no answer at the end"] += 1
            break
        await asyncio.sleep(0.005)
    if not windowed:
        after = _own_cpu_s()
    return Findings(
        latencies_us={name: tuple(values) for name, values in load.latencies_us.items()},
        ends_s=tuple(load.ends_s),
        statuses=dict(load.statuses),
        errors=dict(load.errors),
        retries=load.retries,
        unsent=unsent,
        cpu_s=after - before,
    )


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Run the job of the first line of standard input."""
    job = msgspec.json.decode(sys.stdin.readline().encode(), type=Job)
    found = uvloop.run(_run(job))
    sys.stdout.flush()
    left = memoryview(msgspec.json.encode(found) + b"\n")
    while left:
        left = left[os.write(sys.stdout.fileno(), left) :]
    os._exit(0)  # a reader thread may still wait on standard input


if __name__ == "__main__":
    main()
