"""Ten thousand connections that say nothing, or next to nothing: others are served, and all of it is given back."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.cluster.harness import HOST, KIB, MIB, found, until_sync
from tests.fuzz.hurried import HEAD_S, IDLE_S
from tests.fuzz.kit import Report, Victim, ask, parse_answers, request, reset, victim

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

CONNECTIONS = 10_000
SPARE_FILES = 1000
SPARE_OF_FEW = 50
"""So many of few the node keeps for itself, whatever clients do."""

SLOTS = 8
"""Of a victim. All have something to store soon after its start."""

SOURCES = 4
"""Addresses 127.0.0.2 and on: no address need give out more than a few thousand ports."""

BYTES_PER_CONNECTION_MAX = 32 * KIB


@pytest.fixture(scope="module", autouse=True)
def many_files() -> Iterator[None]:
    """As many open files as are needed, for this process and the node that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this machine allows {hard} open files, and {wanted} are needed")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_many(port: int, count: int, first: bytes) -> list[socket.socket]:
    """So many connections, each of which has sent ``first``."""
    made: list[socket.socket] = []
    for number in range(count):
        sock = socket.socket()
        sock.settimeout(60)
        sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: choose the port at connect
        sock.bind((f"127.0.0.{2 + number % SOURCES}", 0))
        sock.connect((HOST, port))
        with contextlib.suppress(ConnectionError):  # we were so slow that the node has closed it
            sock.sendall(first)
        made.append(sock)
    return made


def slowest_s(node: Victim, rounds: int) -> float:
    """The slowest of some requests on new connections."""
    slowest = 0.0
    for _ in range(rounds):
        start = time.monotonic()
        node.serves()
        slowest = max(slowest, time.monotonic() - start)
    return slowest


SORTS = {
    "silent": b"",
    "answered once": request("GET", "/healthz"),
    "half a head": b"GET /objects/a HTTP/1.1\r\nHost: x\r\nX-Slow: ",
}


def test_ten_thousand_idle_connections() -> None:
    """A third of them never spoke, a third was answered once, a third is in the middle of a head."""
    report = Report("idle")
    with victim() as node:
        before, before_sockets = node.before, node.sockets
        start = time.monotonic()
        socks: list[socket.socket] = []
        try:
            for sort in SORTS:  # those first whose time is the longest: a head has 20 s
                socks += open_many(node.http, CONNECTIONS // len(SORTS), SORTS[sort])
            opened_s = time.monotonic() - start
            # On a slow machine the first are closed again before the last are open.
            until_sync(
                lambda: node.sockets - before_sockets >= len(socks) or opened_s > 15,
                "the node has accepted them",
            )
            full = node.usage
            held = node.sockets - before_sockets
            per_connection = (full.rss_bytes - before.rss_bytes) / max(1, held)
            slowest = slowest_s(node, 5)
            report.say(
                f"{held} of {len(socks)} held after {opened_s:.1f} s, {per_connection / KIB:.1f} KiB each "
                f"({(full.rss_bytes - before.rss_bytes) / MIB:.0f} MiB), another client's slowest round {slowest:.2f} s"
            )
            assert held >= len(socks) // 2
            assert KIB <= per_connection <= BYTES_PER_CONNECTION_MAX
            assert slowest < 60
            used = socks[len(socks) // 2]
            answers, rest = parse_answers(used.recv(4096))
            assert answers[0].status == 200 and not rest
            used.sendall(SORTS["answered once"])
            assert parse_answers(used.recv(4096))[0][0].status == 200, "an idle connection is still good"
        finally:
            for sock in socks:
                sock.close()
        until_sync(lambda: node.sockets <= before_sockets + 16, "the connections are gone")
        # Python keeps the memory for the next ones, and does not take more for them.
        first_wave = node.usage.rss_bytes - before.rss_bytes
        socks = open_many(node.http, CONNECTIONS // 4, SORTS["answered once"])
        second_wave = node.usage.rss_bytes - before.rss_bytes
        for sock in socks:
            reset(sock)
        report.say(f"afterwards +{first_wave / MIB:.0f} MiB, and +{second_wave / MIB:.0f} MiB with a second wave")
        assert second_wave <= full.rss_bytes - before.rss_bytes + 8 * MIB
        node.check(grown_bytes=CONNECTIONS * BYTES_PER_CONNECTION_MAX)


def test_connections_beyond_the_open_files() -> None:
    """More connections than the node may open files: those it has are served on, its disk lacks no file, and then there is room."""
    report = Report("beyond the open files")
    allowed = 300
    with victim() as made:
        made.mark()
        process = made.cluster.nodes[0].pid
        databases = partial(found, made.cluster.nodes[0].disk, "slots/*/meta.sqlite3")
        _, hard = resource.prlimit(process, resource.RLIMIT_NOFILE)
        resource.prlimit(process, resource.RLIMIT_NOFILE, (allowed, hard))
        kept = open_many(made.http, 1, b"")[0]
        kept.sendall(request("GET", "/healthz"))
        assert parse_answers(kept.recv(4096))[0][0].status == 200
        socks = open_many(made.http, 2 * allowed, b"")
        try:
            until_sync(lambda: "connections_refused" in made.log(), "it says that it takes no more")
            # What the beginning wrote is put into the databases some seconds later, and they need files.
            until_sync(lambda: len(databases()) == SLOTS, "the databases are there")
            used_s = cpu_s(process)
            time.sleep(1)
            used_s = cpu_s(process) - used_s
            assert made.cluster.nodes[0].running
            for number in range(3):
                kept.sendall(request("PUT", f"/objects/beyond/{number}", body=b"x"))
                assert parse_answers(kept.recv(4096))[0][0].status == 201, "who is connected is served on"
            log_bytes = len(made.log())
            report.say(
                f"{made.usage.open_files} files open, {used_s:.2f} s of CPU per second, {log_bytes} bytes of log"
            )
            assert made.usage.open_files < allowed - SPARE_OF_FEW and log_bytes < MIB
        finally:
            for sock in socks:
                sock.close()
        kept.close()
        until_sync(lambda: answers(made), "it accepts again")
        made.serves()
        assert "Traceback" not in made.log()


def answers(node: Victim) -> bool:
    with contextlib.suppress(OSError, AssertionError):
        return ask(node.http, "GET", "/healthz", limit_s=5).status == 200
    return False


def cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_idle_connections_are_given_up() -> None:
    """With hurried timeouts: silent ones after the time for a head, those that were answered after the idle time."""
    report = Report("given up")
    with victim(hurried=True) as made:
        made.mark()
        before_sockets = made.sockets
        count = 500
        for _ in range(5):
            socks = open_many(made.http, count, b"") + open_many(made.http, count, request("GET", "/healthz"))
            start = time.monotonic()
            half = open_many(made.http, count, b"GET /")
            try:
                until_sync(lambda: made.sockets <= before_sockets + 16, "all are closed")
                took_s = time.monotonic() - start
                report.say(f"{3 * count} connections closed {took_s:.1f} s after the last third was begun with")
                assert took_s > min(HEAD_S, IDLE_S) - 0.1
                told = [answer.status for sock in half for answer in parse_answers(last_words(sock))[0]]
                assert set(told) <= {408}
                # One whose word the node had not yet looked at when the time was over counts for silent.
                if len(told) > count * 0.9:
                    break
            finally:
                for sock in [*socks, *half]:
                    sock.close()
        else:
            raise AssertionError("who had begun to speak is told")
        made.check()


def last_words(sock: socket.socket) -> bytes:
    """What came before the end; nothing, if what we had said was not read and the end is a reset."""
    with contextlib.suppress(ConnectionError):
        return sock.recv(4096)
    return b""
