"""Large bodies over one plain socket, and the nodes' memory meanwhile."""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import procfs
from bench.cluster import Cluster
from bench.environment import HOST

_PART_BYTES = 2**20
_TIMEOUT_S = 300.0
NONE: Mapping[str, str] = {}


def put(
    port: int, target: str, size_bytes: int, part: bytes, *, headers: Mapping[str, str] = NONE, host: str = HOST
) -> float:
    """PUT ``size_bytes`` made of ``part`` over and over; seconds until the answer. Raises RuntimeError."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        began = time.monotonic()
        connection.putrequest("PUT", target, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(size_bytes))
        connection.endheaders()
        view, left = memoryview(part), size_bytes
        while left:
            count = min(left, len(part))
            connection.sock.sendall(view[:count])
            left -= count
        answer = connection.getresponse()
        text = answer.read()
        seconds = time.monotonic() - began
        if answer.status not in (200, 201):
            raise RuntimeError(f"PUT {target} of {size_bytes} bytes: {answer.status} {text[:300]!r}")
        return seconds
    finally:
        connection.close()


def get(port: int, target: str, size_bytes: int, *, headers: Mapping[str, str] = NONE, host: str = HOST) -> float:
    """GET the object; seconds until its last byte. Raises RuntimeError when it is not that long."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    buffer = bytearray(_PART_BYTES)
    try:
        began = time.monotonic()
        connection.request("GET", target, headers=dict(headers))
        answer = connection.getresponse()
        seen = 0
        while count := answer.readinto(buffer):
            seen += count
        seconds = time.monotonic() - began
        if answer.status != 200 or seen != size_bytes:
            raise RuntimeError(f"GET {target}: {answer.status}, {seen} of {size_bytes} bytes")
        return seconds
    finally:
        connection.close()


def list_page(port: int, query: str) -> tuple[float, bytes]:
    """GET a page of a listing: seconds and its body. Raises RuntimeError."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_TIMEOUT_S)
    try:
        connection.connect()
        began = time.monotonic()
        connection.request("GET", f"/objects?{query}")
        answer = connection.getresponse()
        text = answer.read()
        seconds = time.monotonic() - began
        if answer.status != 200:
            raise RuntimeError(f"LIST {query}: {answer.status} {text[:300]!r}")
        return seconds, text
    finally:
        connection.close()


@dataclass(slots=True)
class PeakMemory:
    """The most memory that each node takes above what it had before; the kernel keeps the peak."""

    pids: Sequence[int]
    before: list[int]

    @classmethod
    def watch(cls, cluster: Cluster) -> PeakMemory:
        """Begin."""
        for pid in cluster.pids:
            procfs.reset_peak(pid)
        return cls(cluster.pids, [procfs.rss_bytes(pid) for pid in cluster.pids])

    def above_bytes(self) -> int:
        """Of the node that took most."""
        pairs = zip(self.pids, self.before, strict=True)
        return max(0, *(procfs.peak_rss_bytes(pid) - before for pid, before in pairs))
