"""Slow-loris: clients that send, or read, as slowly as they can. The node has short timeouts here (hurried.py);
that the real ones are what is documented is checked too."""

from __future__ import annotations

import contextlib
import inspect
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from node.http.app import build_app
from node.http.connection import Timeouts
from node.transport.connection import PING_INTERVAL_S
from node.transport.handshake import HANDSHAKE_TIMEOUT_S
from tests.cluster.harness import MIB, content, until_sync
from tests.fuzz import hurried
from tests.fuzz.kit import Report, Said, Victim, ask, connect, converse, parse_answers, request, victim

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

PACE_S = 0.05
LONGEST_S = max(hurried.HEAD_S, hurried.IDLE_S, hurried.BODY_STALL_S, hurried.UNREAD_BODY_S, hurried.WRITE_STALL_S)
READERS = 10
LATE_S = 30.0
"""How much later than it should the node may act: the machine is shared."""


@pytest.fixture(scope="module")
def module_node() -> Iterator[Victim]:
    with victim(hurried=True) as made:
        yield made


def test_the_real_timeouts() -> None:
    timeouts = Timeouts()
    assert (timeouts.head_s, timeouts.idle_s, timeouts.write_stall_s, timeouts.unread_body_s) == (20, 75, 60, 5)
    assert inspect.signature(build_app).parameters["body_stall_s"].default == 60
    assert (HANDSHAKE_TIMEOUT_S, PING_INTERVAL_S) == (5, 2)


def dribble(node: Victim, first: bytes, each: bytes, pace_s: float = PACE_S, *, limit_s: float = 2 * LATE_S) -> Said:
    """Send ``first``, then ``each`` byte by byte over and over, one per ``pace_s``, until the node ends it."""
    start = time.monotonic()
    said = Said()
    sock = connect(node.http, timeout_s=pace_s)
    with sock:
        sock.sendall(first)
        at = 0
        while time.monotonic() - start < limit_s:
            try:
                if each:
                    with contextlib.suppress(ConnectionError):  # what the node said before can be read all the same
                        sock.send(each[at % len(each) : at % len(each) + 1])
                at += 1
                got = sock.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                said.ended = "reset"
                break
            if not got:
                said.ended = "closed"
                break
            said.data += got
    said.seconds = time.monotonic() - start
    return said


HEAD = b"PUT /objects/slow HTTP/1.1\r\nHost: x\r\n"
CASES: dict[str, tuple[bytes, bytes, float, set[int]]] = {
    # first, then byte by byte, ended after (s), told
    "a request line": (b"", b"GET /objects/" + 900 * b"a", hurried.HEAD_S, {408}),
    "a header": (b"GET / HTTP/1.1\r\nA: ", b"x", hurried.HEAD_S, {408}),
    "headers": (b"GET / HTTP/1.1\r\n", b"A: b\r\n", hurried.HEAD_S, {408}),
    "nothing": (b"", b"", hurried.HEAD_S, set()),
    "blank lines": (b"", b"\r\n", hurried.HEAD_S, {408}),
    "a body that stops": (HEAD + b"Content-Length: 100\r\n\r\nhello", b"", hurried.BODY_STALL_S, {408}),
    "chunks that stop": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"", hurried.BODY_STALL_S, {408}),
    "a chunk size": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"0", hurried.BODY_STALL_S, {408}),
    "an extension": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;", b"x", hurried.BODY_STALL_S, {408}),
    "trailers": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n", hurried.BODY_STALL_S, {408}),
    "a body that is promised": (
        HEAD + b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n", b"", hurried.BODY_STALL_S, {408}
    ),
    "a refused body": (
        b"PUT /objects/.. HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", b"x", hurried.UNREAD_BODY_S, {400}
    ),
    "the body of a GET": (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", b"x", hurried.UNREAD_BODY_S, {200}
    ),
    "a second head": (request("GET", "/healthz"), b"GET /objects/" + 900 * b"a", hurried.HEAD_S, {200, 408}),
    "nothing more": (request("GET", "/healthz"), b"", hurried.IDLE_S, {200}),
}  # fmt: skip


def test_slow_senders(node: Victim) -> None:
    from concurrent.futures import ThreadPoolExecutor

    report = Report("slow senders")
    with ThreadPoolExecutor(2 * len(CASES)) as pool:
        work: dict[str, list[Callable[[], Said]]] = {}
        for what, (first, each, _, _) in CASES.items():
            work[what] = [pool.submit(dribble, node, first, each).result for _ in range(2)]
        for what, (_, _, after_s, told) in CASES.items():
            for result in work[what]:
                said = result()
                for _ in range(4):
                    if not {answer.status for answer in parse_answers(said.data)[0]} < told:
                        break
                    # The node or we stood still for as long as it waits: it had heard less than we said.
                    first, each, _, _ = CASES[what]
                    said = dribble(node, first, each)
                answers, rest = parse_answers(said.data)
                report.say(f"{what}: {said.ended} after {said.seconds:.1f} s, {[answer.status for answer in answers]}")
                assert said.ended != "open", f"{what}: not ended within {said.seconds:.1f} s"
                assert after_s - 0.3 <= said.seconds <= after_s + LATE_S, (what, said.seconds)
                assert {answer.status for answer in answers} == told and not rest, what
                node.counts[what] += 1
    assert all(node.counts[what] == 2 for what in CASES)
    assert ask(node.http, "GET", "/objects/slow").status == 404, "none of it was stored"


def test_a_slow_body_that_goes_on_is_taken(node: Victim) -> None:
    """One byte at a time, longer than any of the timeouts, but never silent for so long: that is a slow client."""
    body = b"slowly but surely " * 2

    def pieces() -> Iterator[bytes]:
        yield HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        for at in range(len(body)):
            time.sleep(1.2 * LONGEST_S / len(body))
            yield body[at : at + 1]

    for _ in range(5):
        said = converse(node.http, pieces(), half_close=False)
        told = [answer.status for answer in parse_answers(said.data)[0]]
        if told == [201]:
            break
        assert told in ([408], []), said  # this machine may have been slower than we were, or the head not read in time
    assert told == [201]
    assert ask(node.http, "GET", "/objects/slow").body == body
    assert ask(node.http, "DELETE", "/objects/slow").status == 204


def all_gone(node: Victim, before: int) -> bool:
    return node.sockets <= before


def asking(node: Victim, *, listens: bool) -> socket.socket:
    """A client that has asked for the large object, and has heard a little of it if it ``listens``."""
    for _ in range(5):
        sock = connect(node.http, receive_bytes=4096)
        with contextlib.suppress(ConnectionError):  # it took us longer to ask than the node waits
            sock.sendall(request("GET", "/objects/unread"))
            if not listens or sock.recv(1000):
                return sock
        sock.close()
    raise AssertionError("the node does not answer")


def test_clients_that_do_not_read(node: Victim) -> None:
    """A large answer, and one client that reads nothing, one that reads a little and stops."""
    report = Report("slow readers")
    data = content("unread", 40 * MIB)
    assert ask(node.http, "PUT", "/objects/unread", body=data).status == 201
    after: list[int] = []
    for wave in range(2):
        before, before_sockets = node.usage, node.sockets
        start = time.monotonic()
        socks = [asking(node, listens=number % 2 == 1) for number in range(READERS)]
        grown = 0
        while node.sockets > before_sockets + 4 and time.monotonic() - start < 2 * hurried.WRITE_STALL_S + LATE_S:
            grown = max(grown, node.usage.rss_bytes - before.rss_bytes)
            time.sleep(0.05)
        took_s = time.monotonic() - start
        for sock in socks:
            sock.close()
        until_sync(partial(all_gone, node, before_sockets), "all are gone")
        after.append(node.usage.rss_bytes)
        report.say(f"wave {wave}: given up after {took_s:.1f} s; +{grown / MIB / READERS:.1f} MiB for each")
        assert hurried.WRITE_STALL_S - 0.3 <= took_s <= 2 * hurried.WRITE_STALL_S + LATE_S
        assert grown < READERS * 20 * MIB, "a chunk or two of the object, not the whole"
        assert ask(node.http, "GET", "/objects/unread").body == data
    report.say(f"afterwards {[round((rss - node.before.rss_bytes) / MIB) for rss in after]} MiB more than before")
    assert after[-1] <= node.before.rss_bytes + READERS * 20 * MIB, "no more than a chunk or two of each"
    node.check(grown_bytes=READERS * 20 * MIB)
    node.mark()
