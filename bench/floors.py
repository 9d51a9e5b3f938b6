"""What this machine does of the same kind with nothing of ours in between."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import uvloop

from bench.environment import ENVIRONMENT, HOST, end_with_parent

_PART_BYTES = 2**20
_COPIES = 3


def group_commit_per_s(folder: Path, size_bytes: int, waiters: int, seconds: float) -> float:
    """Appends per second to one file when each fdatasync serves ``waiters`` appends of ``size_bytes``."""
    group = os.urandom(size_bytes * waiters)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="floor-") as file:
        descriptor, rounds, began = file.fileno(), 0, time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            os.write(descriptor, group)
            os.fdatasync(descriptor)
            rounds += 1
    return rounds * waiters / elapsed


def three_copies_s(folder: Path, body: bytes) -> float:
    """Seconds to write the body into three files and fsync each, from one process."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="floor-") as inside:
        view, began = memoryview(body), time.monotonic()
        files = [os.open(Path(inside) / str(copy), os.O_WRONLY | os.O_CREAT) for copy in range(_COPIES)]
        try:
            for start in range(0, len(body), _PART_BYTES):
                for file in files:
                    os.write(file, view[start : start + _PART_BYTES])
            for file in files:
                os.fsync(file)
        finally:
            for file in files:
                os.close(file)
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


def _loopback_s(size_bytes: int, send: Callable[[socket.socket], None]) -> float:
    with socket.create_server((HOST, 0)) as server:

        def read() -> None:
            buffer = bytearray(_PART_BYTES)
            connection, _ = server.accept()
            with connection:
                left = size_bytes
                while left and (count := connection.recv_into(buffer)):
                    left -= count

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
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.floors", str(answer_bytes)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread runs while it starts
    )
    assert process.stdout is not None, "it was opened with a pipe"
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


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


if __name__ == "__main__":
    uvloop.run(_serve_null(int(sys.argv[1])))
