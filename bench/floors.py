"""What this machine does of the same kind with nothing of ours in between."""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import uvloop
from blake3 import blake3

from bench.environment import ENVIRONMENT, HOST, end_with_parent

_PART_BYTES = 2**20
_COPIES = 3
_ENTRY_BYTES_MIN = 128


def group_commit_per_s(folder: Path, size_bytes: int, waiters: int, seconds: float) -> float:
    """Appends per second to one file when each fdatasync serves ``waiters`` appends of ``size_bytes``."""
    # An entry that carries nothing still takes room.
    group = os.urandom(max(_ENTRY_BYTES_MIN, size_bytes) * waiters)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="floor-") as file:
        descriptor, rounds, began = file.fileno(), 0, time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            os.write(descriptor, group)
            os.fdatasync(descriptor)
            rounds += 1
    return rounds * waiters / elapsed


def three_group_commits_per_s(folder: Path, size_bytes: int, waiters: int, seconds: float) -> float:
    """As :func:`group_commit_per_s` while two other processes do the same: the rate of the one in the middle.

    All replicas of our clusters share this machine's disk and cores, and two of three make a majority.
    """
    command = [sys.executable, "-m", "bench.floors", "group", str(folder), str(size_bytes), str(waiters), str(seconds)]
    with ExitStack() as stack:
        writers = [stack.enter_context(_child(command)) for _ in range(_COPIES)]
        for writer in writers:
            _hear(writer)
        for writer in writers:
            assert writer.stdin is not None, "it was opened with a pipe"
            writer.stdin.write(b"go\n")
            writer.stdin.flush()
        return statistics.median(float(_hear(writer)) for writer in writers)


def three_copies_s(folder: Path, body: bytes, *, over_loopback: bool = False) -> float:
    """Seconds to hash the body and to write it into three files with an fsync each, all at the same time.

    Args:
        over_loopback: the body comes from another thread through a socket first, as a PUT's does; what has come is
            written and hashed while the rest is on its way.
    """
    arrived = _Arrived(len(body))
    with tempfile.TemporaryDirectory(dir=folder, prefix="floor-") as inside:
        # Written once before, so that the kernel gives no pages within the time that is measured.
        view = memoryview(bytearray(b"\1" * len(body)) if over_loopback else body)

        def hash_it() -> None:
            digest, at = blake3(), 0
            while part := arrived.after(at):
                digest.update(view[at : at + part])
                at += part

        def write(copy: int) -> None:
            file = os.open(Path(inside) / str(copy), os.O_WRONLY | os.O_CREAT)
            try:
                at = 0
                while part := arrived.after(at):
                    at += os.write(file, view[at : at + part])
                os.fsync(file)
            finally:
                os.close(file)

        threads = [threading.Thread(target=hash_it)]
        threads += [threading.Thread(target=write, args=(copy,)) for copy in range(_COPIES)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        if over_loopback:
            _loopback_s(len(body), lambda connection: connection.sendall(body), view, arrived)
        else:
            arrived.add(len(body))
        for thread in threads:
            thread.join()
        return time.monotonic() - began


class _Arrived:
    """How much of a body is there, for threads that follow it."""

    def __init__(self, size_bytes: int) -> None:
        self._size = size_bytes
        self._count = 0
        self._changed = threading.Condition()

    def add(self, count: int) -> None:
        with self._changed:
            self._count += count
            self._changed.notify_all()

    def after(self, at: int) -> int:
        """How many bytes there are at ``at``: a whole part unless the body ends before; 0 at its end."""
        wanted = min(self._size, at + _PART_BYTES)
        with self._changed:
            self._changed.wait_for(lambda: self._count >= wanted)
        return wanted - at


def write_s(folder: Path, size_bytes: int) -> float:
    """Seconds to write one new file of that size, and to sync it."""
    part = os.urandom(_PART_BYTES)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="floor-", buffering=0) as file:
        began = time.monotonic()
        for _ in range(size_bytes // _PART_BYTES):
            file.write(part)
        os.fsync(file.fileno())
        return time.monotonic() - began


def sendfile_s(folder: Path, body: bytes) -> float:
    """Seconds to send a cached file over the loopback with sendfile to a thread that reads it."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(body)
        file.flush()

        def send(connection: socket.socket) -> None:
            sent = 0
            while sent < len(body):
                sent += os.sendfile(connection.fileno(), file.fileno(), sent, len(body) - sent)

        return _loopback_s(len(body), send)


def loopback_s(body: bytes) -> float:
    """Seconds to send the body from memory over the loopback to a thread that reads it."""
    return _loopback_s(len(body), lambda connection: connection.sendall(body))


def _loopback_s(
    size_bytes: int,
    send: Callable[[socket.socket], None],
    into: memoryview | None = None,
    arrived: _Arrived | None = None,
) -> float:
    """``into`` and ``arrived``: where the bytes go and who is told; else they are read into one buffer again and again."""
    with socket.create_server((HOST, 0)) as server:

        def read() -> None:
            buffer = memoryview(bytearray(_PART_BYTES))
            connection, _ = server.accept()
            with connection:
                at = 0
                while at < size_bytes:
                    count = connection.recv_into(buffer if into is None else into[at : at + _PART_BYTES])
                    if not count:
                        return
                    at += count
                    if arrived is not None:
                        arrived.add(count)

        reader = threading.Thread(target=read)
        reader.start()
        with socket.create_connection(server.getsockname()) as connection:
            began = time.monotonic()
            send(connection)
            reader.join()
            return time.monotonic() - began


@contextmanager
def null_server(answer_bytes: int) -> Iterator[tuple[int, int]]:
    """A process that answers every request from memory without looking at it; (port, pid).

    What the load generator reaches against it is the most that it could ever find, and the floor of a small GET.
    """
    with _child([sys.executable, "-m", "bench.floors", "null", str(answer_bytes)]) as process:
        yield int(_hear(process)), process.pid


@contextmanager
def _child(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread runs while it starts
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _hear(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None, "it was opened with a pipe"
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a floor's process ended with status {process.wait()}")
    return line


class _Null(asyncio.Protocol):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None, "data comes on a connection"
        self._transport.write(self._answer)


async def _serve_null(answer_bytes: int) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % answer_bytes + bytes(answer_bytes)
    server = await asyncio.get_running_loop().create_server(lambda: _Null(answer), HOST, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def _group(folder: str, size_bytes: str, waiters: str, seconds: str) -> None:
    print("up", flush=True)
    sys.stdin.readline()
    print(group_commit_per_s(Path(folder), int(size_bytes), int(waiters), float(seconds)), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "group":
        _group(*sys.argv[2:])
    else:
        uvloop.run(_serve_null(int(sys.argv[2])))
