"""What the fuzz tests share: a node to attack, sockets without manners, and what must hold afterwards.

Every example is the same in each run (``derandomize``). ``AMBERBLOB_TEST_EXAMPLES=2000`` tries that many per test,
other ones each time; Hypothesis prints what to paste (``@reproduce_failure``) when one fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from multidict import CIMultiDict

from tests.cluster.harness import HOST, KIB, MIB, Answer, Cluster, check_answer, content, until_sync

EXAMPLES = int(os.environ.get("AMBERBLOB_TEST_EXAMPLES", "0"))

ANSWER_S = 60.0
"""A node that does not answer, or end the connection, for so long hangs. (The machine is shared.)"""

STATUSES = frozenset((200, 201, 204, 206, 304, 400, 401, 403, 404, 405, 408, 409, 412, 416, 417, 422, 431))
"""What a request may be answered with on a healthy node."""

REFUSALS_5XX = {503: {"quorum-unavailable", "not-ready", "shutting-down", "overloaded"}, 504: {"outcome-unknown"}}
REFUSALS_5XX[507] = {"insufficient-storage"}
"""The documented ones."""

LOG_POISON = (
    "Traceback",
    "never retrieved",
    "never awaited",
    "request_failed",
    "connection_failed",
    "answer_broken_off",
)


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """Hypothesis' settings: so many examples, the same each time, unless more are asked for."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )


# -- the node


@dataclass(frozen=True)
class Usage:
    """What a process holds."""

    rss_bytes: int
    open_files: int


class Victim:
    """A cluster of one node, and what it was before the attack."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.counts: Counter[str] = Counter()
        self.before = Usage(0, 0)
        self._log_from = 0
        self._checks = 0

    @property
    def http(self) -> int:
        return self.cluster.nodes[0].http_port

    @property
    def peer(self) -> int:
        return self.cluster.nodes[0].peer_port

    @property
    def usage(self) -> Usage:
        return Usage(self.cluster.rss(0), len(os.listdir(f"/proc/{self.cluster.nodes[0].pid}/fd")))

    @property
    def sockets(self) -> int:
        """How many the node has open; its databases, which it opens when it likes, do not count."""
        count, folder = 0, f"/proc/{self.cluster.nodes[0].pid}/fd"
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                count += os.readlink(f"{folder}/{name}").startswith("socket:")
        return count

    def start(self) -> None:
        """Start it, give it something to serve, and remember what it holds."""
        self.cluster.start(0)
        until_sync(lambda: self._ready(), "the node is ready", deadline_s=2 * ANSWER_S)
        for number in range(64):
            assert ask(self.http, "PUT", f"/objects/opens-a-slot/{number}", body=b"x").status == 201
        for _ in range(3):
            self.serves()
        self.before = self.usage

    def _ready(self) -> bool:
        assert self.cluster.nodes[0].running, "the node ended"
        with contextlib.suppress(OSError):
            return ask(self.http, "GET", "/readyz").status == 200
        return False

    def mark(self) -> None:
        """Begin a test: the log and the memory count from here."""
        self._log_from = len(self.cluster.log_text(0))
        self.before = self.usage
        self.counts = Counter()

    def log(self) -> str:
        """What the node logged since :meth:`mark`."""
        return self.cluster.log_text(0)[self._log_from :]

    def serves(self) -> None:
        """It still takes and gives small objects and large ones."""
        assert self.cluster.nodes[0].running, f"the node ended with {self.cluster.nodes[0].process}"
        self._checks += 1
        for size in (100, 300 * KIB):
            data = content(f"{self._checks}-{size}", size)
            path = f"/objects/still-serves/{size}"
            put = ask(self.http, "PUT", path, body=data)
            assert put.status == 201, put
            got = ask(self.http, "GET", path)
            assert (got.status, got.body) == (200, data)

    def check(self, *, grown_bytes: int = 48 * MIB, open_files: int = 64) -> None:
        """What must hold after an attack."""
        self.serves()
        log = self.log()
        for poison in LOG_POISON:
            if poison in log:
                lines = [line for line in log.splitlines() if poison in line]
                raise AssertionError(f"{poison!r} in the node's log: {lines[0][:6000]}")
        until_sync(lambda: not self.cluster.staged(), "nothing is left in staging")
        until_sync(
            lambda: self.usage.open_files <= self.before.open_files + open_files,
            f"open files are back at {self.before.open_files} (+{open_files} databases), not {self.usage.open_files}",
        )
        grown = self.usage.rss_bytes - self.before.rss_bytes
        assert grown <= grown_bytes, f"the node grew by {grown / MIB:.1f} MiB, more than {grown_bytes / MIB:.0f}"
        assert self.cluster.nodes[0].running


@contextlib.contextmanager
def victim(**options: Any) -> Iterator[Victim]:
    """A cluster of one node that runs."""
    cluster = HurriedCluster(nodes=1, slot_count=8) if options.pop("hurried", False) else Cluster(nodes=1, slot_count=8)
    try:
        made = Victim(cluster)
        made.start()
        yield made
    finally:
        cluster.close()


class HurriedCluster(Cluster):
    """Its nodes have the timeouts of :mod:`tests.fuzz.hurried`, and are the real ones otherwise."""

    def start(self, index: int) -> None:
        import subprocess

        from tests.cluster.harness import ROOT, _die_with_parent, environment

        node = self.nodes[index]
        with open(node.log, "ab") as log:
            node.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("hurried.py")), "serve", "--config", str(node.config)],
                cwd=ROOT,
                env=environment() | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
            )
        node.paused = False


# -- sockets


def connect(port: int, *, timeout_s: float = ANSWER_S, source: str = "", receive_bytes: int = 0) -> socket.socket:
    """A connection to a port of this machine."""
    sock = socket.socket()
    sock.settimeout(timeout_s)
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    if source:
        sock.bind((source, 0))
    sock.connect((HOST, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def reset(sock: socket.socket) -> None:
    """Close with a RST."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@dataclass
class Said:
    """Everything that came back on a connection, and how it ended."""

    data: bytes = b""
    ended: str = "open"
    seconds: float = 0.0
    sent_all: bool = True


def converse(
    port: int,
    pieces: Iterable[bytes],
    *,
    half_close: bool = True,
    enough: Callable[[bytes], bool] | None = None,
    limit_s: float = ANSWER_S,
) -> Said:
    """Send the pieces while reading whatever comes, until the other side closes, or it is ``enough``.

    Raises:
        AssertionError: neither within ``limit_s``: it hangs.
    """
    said = Said()
    parts: list[bytes] = []
    start = time.monotonic()
    sock = connect(port)
    sock.setblocking(False)
    source = iter(pieces)
    piece: memoryview | None = memoryview(next(source, b""))
    with contextlib.closing(sock), selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while True:
            left_s = limit_s - (time.monotonic() - start)
            if left_s <= 0:
                raise AssertionError(f"no end and no answer within {limit_s} s; so far: {b''.join(parts)[:500]!r}")
            for _, events in selector.select(left_s):
                if events & selectors.EVENT_READ:
                    try:
                        got = sock.recv(256 * KIB)
                    except BlockingIOError:
                        continue
                    except ConnectionError:
                        got, said.ended = b"", "reset"
                    if not got:
                        said.ended = "reset" if said.ended == "reset" else "closed"
                        said.data = b"".join(parts)
                        said.seconds = time.monotonic() - start
                        said.sent_all = piece is None
                        return said
                    parts.append(got)
                    if enough is not None and enough(b"".join(parts)):
                        said.data = b"".join(parts)
                        said.seconds = time.monotonic() - start
                        return said
                if events & selectors.EVENT_WRITE and piece is not None:
                    try:
                        piece = piece[sock.send(piece) :] if piece else piece
                        while piece is not None and not piece:
                            following = next(source, None)
                            piece = None if following is None else memoryview(following)
                    except BlockingIOError:
                        continue
                    except ConnectionError:
                        piece = None  # what was said before the end can still be read, or not
                        said.sent_all = False
                    if piece is None:
                        selector.modify(sock, selectors.EVENT_READ)
                        if half_close:
                            with contextlib.suppress(OSError):
                                sock.shutdown(socket.SHUT_WR)


# -- HTTP

# aiohttp answers in the version that was spoken, and with 1.0 what cannot be parsed.
_STATUS_LINE = re.compile(rb"\AHTTP/1\.[01] ([1-5][0-9][0-9])( [^\r\n]*)\Z")
_HEADER = re.compile(rb"\A([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*\Z")


def parse_answers(data: bytes, *, heads: Callable[[int], bool] = lambda index: False) -> tuple[list[Answer], bytes]:
    """The answers that are complete, each checked, and what is left; ``heads(i)``: request i was a HEAD.

    Raises:
        AssertionError: that is no HTTP/1.1.
    """
    answers: list[Answer] = []
    finals = 0
    while data:
        head, separator, rest = data.partition(b"\r\n\r\n")
        if not separator:
            return answers, data
        first, *lines = head.split(b"\r\n")
        line = _STATUS_LINE.match(first)
        assert line is not None, f"no status line: {first[:200]!r}"
        status = int(line[1])
        headers: CIMultiDict[str] = CIMultiDict()
        for text in lines:
            match = _HEADER.match(text)
            assert match is not None, f"no header: {text[:200]!r}"
            headers.add(match[1].decode(), match[2].decode("utf-8", "surrogateescape"))
        if status < 200:
            assert status == 100 and not lines
            data = rest
            continue
        assert "Transfer-Encoding" not in headers, "the node never sends chunks"
        assert len(headers.getall("Content-Length", [])) <= 1
        if status in (204, 304):
            length = 0
        else:
            length = int(headers["Content-Length"])
            if heads(finals) and (not rest or rest.startswith(b"HTTP/")):
                length = 0
        if len(rest) < length:
            return answers, data
        finals += 1
        body, data = rest[:length], rest[length:]
        answers.append(judge(Answer(status, headers, body), head=not body))
    return answers, b""


def judge(answer: Answer, *, head: bool = False) -> Answer:
    """Whether api.md has such an answer."""
    if answer.status >= 500:
        codes = REFUSALS_5XX.get(answer.status)
        assert codes is not None, f"a {answer.status}: {answer.headers} {answer.body[:500]!r}"
        assert head or json.loads(answer.body)["type"] in codes, answer
    else:
        assert answer.status in STATUSES, f"an undocumented status: {answer}"
    return check_answer(answer, head=head)


def request(method: str, target: str, *headers: str, body: bytes = b"") -> bytes:
    """The bytes of a request that is in order."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}", *headers]
    if body or method in ("PUT", "POST"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


def ask(port: int, method: str, target: str, *headers: str, body: bytes = b"", limit_s: float = ANSWER_S) -> Answer:
    """One polite request; its answer. Begun again when the node took us for slow, as this machine may be."""
    for _ in range(5):
        said = converse(
            port, [request(method, target, "Connection: close", *headers, body=body)], half_close=False, limit_s=limit_s
        )
        answers, rest = parse_answers(said.data, heads=lambda _: method == "HEAD")
        if answers and answers[0].status != 408:
            break
    assert len(answers) == 1 and not rest, said
    return answers[0]


@dataclass
class Report:
    """What a test did, shown with ``-s`` and when it fails."""

    title: str
    lines: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.lines.append(text)
        print(f"[fuzz] {self.title}: {text}")
