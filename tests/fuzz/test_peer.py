"""The peer port: strangers who know nothing, and peers who know the secret and have gone mad.

Whatever they send, the connection is answered, refused or closed in bounded time, and the node serves on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amberblob import wire
from amberblob.ballot import Ballot
from amberblob.clock import HybridClock, SystemClock, SystemRandomness
from amberblob.ids import UlidMint
from amberblob.limits import FRAME_BYTES_MAX, PEER_REQUESTS_MAX, STREAM_WINDOW_BYTES
from amberblob.message import Message
from amberblob.wire import (
    Commit,
    Discard,
    Failed,
    Learn,
    Prepare,
    QueryHistory,
    QueryScan,
    ReadChunk,
    StageClose,
    StageOpen,
)
from chunkstore.identity import read_identity
from node.transport.frames import HEADER, HEADER_BYTES, Kind, pack_request
from node.transport.handshake import DiallerHandshake, Established, Hello, Identity, Send
from node.transport.server import HANDSHAKES_MAX
from tests.cluster.harness import MIB, SECRET, until_sync
from tests.fuzz.hurried import HANDSHAKE_S, PING_INTERVAL_S
from tests.fuzz.kit import ANSWER_S, EXAMPLES, Report, Victim, connect, fuzzed, reset, victim
from tests.fuzz.messages import BLOB, CHUNK, requests, spoilt_bytes, spoilt_values

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600 + EXAMPLES * 3)]


@pytest.fixture(scope="module")
def module_node() -> Iterator[Victim]:
    """With short times for handshakes and silence."""
    with victim(hurried=True) as made:
        yield made


LATE_S = 30.0
"""How much later than it should the node may act: the machine is shared."""

SILENT_S = 2 * PING_INTERVAL_S
"""Who was silent for so long may be taken for dead, which this machine may make of us."""

TRIES_MAX = 5
"""So often a test begins again because of that."""


def frame(kind: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return HEADER.pack(len(payload) if length is None else length, kind, stream) + payload


class Peer:
    """A connection to the peer port that says what it is told to."""

    def __init__(self, node: Victim) -> None:
        self.sock = connect(node.peer)
        self._buffer = b""
        self._sent_s = time.monotonic()
        self.silent_s = 0.0
        """The longest time that passed until it had sent something."""

    def send(self, data: bytes) -> bool:
        """False when the other side has closed already."""
        try:
            self.sock.sendall(data)
        except ConnectionError:
            return False
        finally:
            now_s = time.monotonic()
            self.silent_s = max(self.silent_s, now_s - self._sent_s)
            self._sent_s = now_s
        return True

    @property
    def may_be_lost(self) -> bool:
        """Whether it was silent for so long that the node may have taken it for dead."""
        return self.silent_s >= SILENT_S

    def receive(self, limit_s: float = ANSWER_S) -> tuple[int, int, bytes] | None:
        """The next frame; None at the end. Raises AssertionError when neither comes: it hangs."""
        end = time.monotonic() + limit_s
        while True:
            if len(self._buffer) >= HEADER_BYTES:
                length, kind, stream = HEADER.unpack_from(self._buffer)
                if len(self._buffer) >= HEADER_BYTES + length:
                    payload = self._buffer[HEADER_BYTES : HEADER_BYTES + length]
                    self._buffer = self._buffer[HEADER_BYTES + length :]
                    return kind, stream, payload
            if not select.select([self.sock], [], [], max(0.0, end - time.monotonic()))[0]:
                raise AssertionError(f"no frame and no end within {limit_s} s")
            try:
                got = self.sock.recv(256 * 1024)
            except ConnectionError:
                return None
            if not got:
                return None
            self._buffer += got

    def rest(self, limit_s: float = ANSWER_S) -> list[tuple[int, int, bytes]]:
        """Every frame until the other side closes."""
        frames = []
        while (got := self.receive(limit_s)) is not None:
            frames.append(got)
        return frames

    def close(self) -> None:
        reset(self.sock)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def identity(node: Victim, **other: Any) -> Identity:
    """A peer of the node that knows everything a peer knows, but for what is given otherwise."""
    known: dict[str, Any] = {
        "cluster_id": read_identity(node.cluster.nodes[0].disk).cluster_id,
        "node_id": "node-9",
        "secret": SECRET.encode(),
        "clock": HybridClock(SystemClock().wall_ms),
    }
    return Identity(**(known | other))


def hello(node: Victim, **other: Any) -> bytes:
    """The payload of a HELLO, in order but for what is given otherwise."""
    known: dict[str, Any] = {
        "wire_version": wire.WIRE_VERSIONS.oldest,
        "cluster_id": read_identity(node.cluster.nodes[0].disk).cluster_id,
        "node_id": "node-9",
        "expects": "node-1",
        "lane": "control",
        "nonce": os.urandom(32),
        "now_ms": SystemClock().wall_ms(),
    }
    return msgspec.msgpack.encode(Hello(**(known | other)))


def shaken(node: Victim, *, lane: Any = "control", **other: Any) -> Peer:
    """A connection whose handshake is complete. Begun again when it was not in time, as this machine may be slow."""
    for _ in range(TRIES_MAX):
        begun_s = time.monotonic()
        try:
            return _shaken(node, lane=lane, **other)
        except AssertionError:
            if time.monotonic() - begun_s < HANDSHAKE_S:
                raise
    raise AssertionError("the handshake was never in time")


def _shaken(node: Victim, *, lane: Any, **other: Any) -> Peer:
    peer = Peer(node)
    handshake = DiallerHandshake(identity(node, **other), expects="node-1", lane=lane, nonce=os.urandom(32))
    actions = handshake.begin()
    while True:
        for action in actions:
            match action:
                case Send():
                    peer.send(frame(action.kind, 0, action.payload))
                case Established():
                    return peer
                case _:
                    raise AssertionError(action)
        got = peer.receive()
        assert got is not None, "the handshake was refused"
        actions = handshake.receive(got[0], got[2])


def alive(peer: Peer, replies: Counter[str] | None = None) -> bool:
    """Whether the connection still answers; what else comes is counted by kind."""
    if not peer.send(frame(Kind.PING, 0, struct.pack("!Q", SystemClock().wall_ms()))):
        return False
    while (got := peer.receive()) is not None:
        if got[0] == Kind.PONG:
            return True
        if replies is not None:
            replies[Kind(got[0]).name] += 1
    return False


def is_served(node: Victim) -> bool:
    """Whether a new connection answers. Begun again when it was silent for long, as this machine may make us be."""
    for _ in range(TRIES_MAX):
        with shaken(node) as peer:
            if alive(peer):
                return True
        if not peer.may_be_lost:
            break
    return False


def replied(peer: Peer) -> tuple[int, int, bytes] | None:
    """The reply, whatever else comes before it: a node that was slow asks whether we are there. None at the end."""
    got = peer.receive()
    while got is not None and got[0] != Kind.REPLY:
        got = peer.receive()
    return got


# -- strangers


def strangers_words(node: Victim) -> dict[str, bytes]:
    good = hello(node)
    return {
        "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600),
        "zeros": bytes(2000),
        "ones": b"\xff" * 2000,
        "length 2^31": frame(Kind.HELLO, 0, good, 2**31),
        "length 2^32 - 1": frame(Kind.HELLO, 0, good, 2**32 - 1),
        "length just too much": frame(Kind.HELLO, 0, bytes(1016)),
        "empty hello": frame(Kind.HELLO, 0),
        "wrong tag": frame(Kind.HELLO, 0, good.replace(b"amber-hello", b"amber-hallo")),
        "not utf-8": frame(Kind.HELLO, 0, good.replace(b"node-9", b"\xff\xfe\xff\xfe\xff\xfe")),
        "nested": frame(Kind.HELLO, 0, b"\x91" * 1000),
        "hello twice": frame(Kind.HELLO, 0, good) * 2,
        "proof first": frame(Kind.PROOF, 0, bytes(32)),
        "welcome first": frame(Kind.WELCOME, 0, bytes(32)),
        "request first": frame(Kind.REQUEST, 1, pack_request("", wire.encode(requests()[3]))),
        "ping first": frame(Kind.PING, 0, bytes(8)),
        "a refusal": frame(Kind.REFUSAL, 0, b"\xff"),
        "unknown kind": frame(200, 7, b"x"),
        "version": frame(Kind.HELLO, 0, hello(node, wire_version=2**63)),
        "version -1": frame(Kind.HELLO, 0, hello(node, wire_version=-1)),
        "cluster": frame(Kind.HELLO, 0, hello(node, cluster_id="x" * 500)),
        "a path for a name": frame(Kind.HELLO, 0, hello(node, node_id="../../x")),
        "log forgery": frame(Kind.HELLO, 0, hello(node, node_id='x\n{"event":"forged"}')),
        "the node itself": frame(Kind.HELLO, 0, hello(node, node_id="node-1")),
        "other node": frame(Kind.HELLO, 0, hello(node, expects="node-2")),
        "lane": frame(Kind.HELLO, 0, hello(node, lane="fast")),
        "nonce": frame(Kind.HELLO, 0, hello(node, nonce=b"")),
        "empty proof": frame(Kind.HELLO, 0, good) + frame(Kind.PROOF, 0),
        "wrong proof": frame(Kind.HELLO, 0, good) + frame(Kind.PROOF, 0, hashlib.sha256(good).digest()),
        "long proof": frame(Kind.HELLO, 0, good) + frame(Kind.PROOF, 0, bytes(500)),
        "year 10^9": frame(Kind.HELLO, 0, hello(node, now_ms=2**63)) + frame(Kind.PROOF, 0, bytes(32)),
    }


def stays_out(frames: list[tuple[int, int, bytes]]) -> None:
    """Nothing that was made with the secret, and no answer to anything."""
    kinds = [kind for kind, _, _ in frames]
    assert set(kinds) <= {Kind.CHALLENGE, Kind.REFUSAL} and len(kinds) <= 2, frames


def test_strangers(node: Victim) -> None:
    report = Report("strangers")
    for what, words in strangers_words(node).items():
        for pieces in ([words], [words[:1], words[1:]], [words[: HEADER_BYTES + 3], words[HEADER_BYTES + 3 :]]):
            with Peer(node) as stranger:
                for piece in pieces:
                    stranger.send(piece)
                    time.sleep(0.001)
                start = time.monotonic()
                stays_out(stranger.rest())
                took_s = time.monotonic() - start
                assert took_s < HANDSHAKE_S + LATE_S, what
                node.counts["closed at once" if took_s < HANDSHAKE_S / 2 else "closed in time"] += 1
    with pytest.raises(AssertionError, match="refused"):
        shaken(node, secret=b"another secret")
    report.say(str(dict(node.counts)))
    assert node.counts["closed at once"] > 60
    assert is_served(node)
    assert '\n{"event":"forged"}' not in node.log()


def test_strangers_who_make_it_up(node: Victim) -> None:
    report = Report("strangers, made up")
    original = frame(Kind.HELLO, 0, hello(node))
    handshakes: Counter[str] = Counter()

    @fuzzed(250)
    @given(st.one_of(st.binary(max_size=1200), spoilt_bytes([original, original + frame(Kind.PROOF, 0, bytes(32))])))
    def attack(words: bytes) -> None:
        with Peer(node) as stranger:
            stranger.send(words)
            with contextlib.suppress(OSError):
                stranger.sock.shutdown(socket.SHUT_WR)
            frames = stranger.rest()
            stays_out(frames)
            for kind, _, _ in frames:
                handshakes[Kind(kind).name] += 1
            node.counts["tries"] += 1

    attack()
    report.say(f"{node.counts['tries']} tries, told {dict(handshakes)}")
    assert node.counts["tries"] >= 200 and handshakes["REFUSAL"] > 10


def test_strangers_who_stay(node: Victim) -> None:
    """More than may wait for their handshake, some sending a byte now and then: all are gone in time."""
    report = Report("strangers who stay")
    count = HANDSHAKES_MAX + 200
    words = frame(Kind.HELLO, 0, hello(node))
    start = time.monotonic()
    socks = [connect(node.peer) for _ in range(count)]
    try:
        left = list(socks)
        at = 0
        while left and time.monotonic() - start < HANDSHAKE_S + LATE_S:
            for sock in left[::3]:
                with contextlib.suppress(OSError):
                    sock.send(words[at % 40 : at % 40 + 1])
            at += 1
            readable = select.select(left, [], [], 0.05)[0]
            for sock in readable:
                try:
                    ended = not sock.recv(4096)
                except ConnectionError:
                    ended = True
                if ended:
                    left.remove(sock)
                    node.counts["at once" if time.monotonic() - start < HANDSHAKE_S / 2 else "in time"] += 1
        report.say(f"{dict(node.counts)} after {time.monotonic() - start:.1f} s")
        assert not left, f"{len(left)} connections stay open"
        assert node.counts["in time"] and node.counts.total() == count
    finally:
        for sock in socks:
            reset(sock)
    assert is_served(node)


# -- peers who know the secret

REAL = [wire.encode(message) for message in requests()]
STREAMS = st.integers(1, 5)
CLOSE = wire.encode(StageClose(chunks=(), manifest_id=None))
ORDERLY = st.one_of(
    st.tuples(
        st.just(int(Kind.REQUEST)), STREAMS, st.sampled_from(REAL).map(lambda message: pack_request("r", message))
    ),
    st.tuples(st.sampled_from([int(Kind.DATA), int(Kind.END), int(Kind.CANCEL)]), STREAMS, st.just(b"x")),
    st.tuples(st.just(int(Kind.CLOSE)), STREAMS, st.just(CLOSE)),
    st.tuples(st.just(int(Kind.PONG)), st.just(0), st.just(bytes(8))),
)
WILD = st.tuples(
    st.one_of(st.sampled_from([int(kind) for kind in Kind]), st.integers(0, 255)),
    st.one_of(STREAMS, st.sampled_from([0, 2**31, 2**32 - 1])),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [b"", bytes(4), b"\xff" * 4, b"\xff" * 8, b"\x80" + bytes(200), b"\xff" + bytes(300), bytes(300_000)]
        ),
    ),
)


def test_frames_in_no_order(node: Victim) -> None:
    report = Report("frames")
    replies: Counter[str] = Counter()

    @fuzzed(300)
    @given(st.lists(ORDERLY, max_size=8), st.lists(WILD, max_size=1), st.sampled_from(["control", "bulk"]))
    def attack(frames: list[tuple[int, int, bytes]], wild: list[tuple[int, int, bytes]], lane: str) -> None:
        with shaken(node, lane=lane) as peer:
            for kind, stream, payload in [*frames, *wild]:
                node.counts["frames"] += 1
                if not peer.send(frame(kind, stream, payload)):
                    break
            node.counts["still there" if alive(peer, replies) else "closed"] += 1

    attack()
    report.say(f"{dict(node.counts)}, told {dict(replies)}")
    assert node.counts["still there"] > 20 and node.counts["closed"] > 20 and replies["REPLY"] > 20


def test_lengths_that_lie(node: Victim) -> None:
    for length in (FRAME_BYTES_MAX + 1, 2**31 - 1, 2**31, 2**32 - 1):
        for kind in (Kind.REQUEST, Kind.DATA, Kind.PING, 99):
            with shaken(node) as peer:
                peer.send(frame(kind, 1, b"x" * 100, length))
                assert not alive(peer), "more than a frame may hold ends the connection"
                node.counts["too long"] += 1
    halves = [shaken(node) for _ in range(3)]
    start = time.monotonic()
    for peer, length in zip(halves, (1, 100, FRAME_BYTES_MAX), strict=True):
        peer.send(frame(Kind.DATA, 1, b"", length))
    for peer in halves:
        peer.rest()
        peer.close()
        node.counts["half a frame"] += 1
    assert time.monotonic() - start < PING_INTERVAL_S * 3 + LATE_S, "half a frame and then silence"
    assert node.counts["too long"] == 16 and node.counts["half a frame"] == 3


NUMBER_MAX = 2**62


def is_bearable(message: bytes) -> bool:
    """Whether every number in it is one that the node bears; see :func:`test_numbers_beyond_all_bounds`."""
    try:
        request = wire.decode_request(message)
        # A record is kept as it comes, and the puller stumbles over a blob id that is none: finding 6.
        return not isinstance(request, Commit | Learn) and _is_bearable(msgspec.to_builtins(request))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return True


def _is_bearable(value: Any) -> bool:
    match value:
        case bool():
            return True
        case int():
            return 0 <= value <= NUMBER_MAX
        case list() | tuple():
            return all(_is_bearable(item) for item in value)
        case dict():
            return all(_is_bearable(item) for item in value.values())
        case _:
            return True


BALLOT_BEYOND = Ballot(1, 2**64 - 1, "node-9", BLOB)
BEYOND: dict[str, Message] = {
    "a slot of -1, read": ReadChunk(slot=-1, blob_id=BLOB, chunk=CHUNK),
    "a slot of -1, discard": Discard(slot=-1, blob_id=BLOB),
    "a version of 2^64 - 1": QueryHistory(slot=1, path="beyond", epoch=1, version=2**64 - 1),
    "a limit of 2^63": QueryScan(prefix="", start="", delimiter="", limit=2**63),
    "a ballot of 2^64 - 1": Prepare(slot=1, path="beyond", epoch=1, ballot=BALLOT_BEYOND),
}


@pytest.mark.parametrize("what", list(BEYOND))
def test_numbers_beyond_all_bounds(what: str) -> None:
    """One message of a peer with a number that no node ever sends. It is refused, and the node serves on."""
    with victim(hurried=True) as made:
        made.mark()
        for _ in range(TRIES_MAX):
            begun_s = time.monotonic()
            with shaken(made) as peer:
                peer.send(frame(Kind.REQUEST, 1, pack_request("", wire.encode(BEYOND[what]))))
                got = replied(peer)
            if got is not None or time.monotonic() - begun_s < SILENT_S:
                break
        assert got is not None
        reply = wire.decode_reply(got[2])
        assert not (isinstance(reply, Failed) and reply.code == "internal-error"), reply
        made.check()


def test_messages_that_are_spoilt(node: Victim) -> None:
    """Real requests with flipped bytes, or with fields that hold what they never should. Each is answered."""
    report = Report("messages")
    told: Counter[str] = Counter()
    mint = UlidMint(HybridClock(SystemClock().wall_ms), SystemRandomness())

    @fuzzed(500)
    @given(st.integers(0, 7), st.data())
    def attack(slot: int, data: st.DataObject) -> None:
        real = requests(slot, f"spoilt/{slot}")
        message = data.draw(st.one_of(spoilt_values(real), spoilt_bytes([wire.encode(m) for m in real])))
        if not is_bearable(message):
            told["not sent"] += 1
            return
        lane: Any = data.draw(st.sampled_from(["control", "bulk"]))
        with shaken(node, lane=lane) as peer:
            begun_s = time.monotonic()
            peer.send(frame(Kind.REQUEST, 1, pack_request(mint.mint(), message)))
            try:
                is_stage = isinstance(wire.decode_request(message), StageOpen)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                is_stage = False
            if is_stage:
                peer.send(
                    frame(Kind.CLOSE, 1, wire.encode(StageClose(chunks=(), manifest_id=None))) + frame(Kind.END, 1)
                )
            got = replied(peer)
            if got is None:
                told["closed"] += 1
                return
            reply = wire.decode_reply(got[2])
            told[reply.code if isinstance(reply, Failed) else type(reply).__name__] += 1
            assert not (isinstance(reply, Failed) and reply.code == "internal-error"), (message, reply)
            is_there = alive(peer) or time.monotonic() - begun_s >= SILENT_S
            assert is_there, "a request that is refused does not end the connection"

    attack()
    report.say(str(dict(told)))
    assert told["wire-error"] > 50 and len(told) > 8


# -- floods


def test_stages_without_data(node: Victim) -> None:
    """As many blobs begun as a connection may have and more, none continued: bounded, and all is given back."""
    report = Report("stages")
    mint = UlidMint(HybridClock(SystemClock().wall_ms), SystemRandomness())
    count = PEER_REQUESTS_MAX + 100
    before = node.cluster.rss(0)
    for _ in range(TRIES_MAX):
        replies: Counter[str] = Counter()
        with shaken(node, lane="bulk") as peer:
            for stream in range(1, count + 1):
                message = StageOpen(
                    slot=stream % 8, epoch=1, blob_id=mint.mint(), chunk_bytes=65536, size=2**40 if stream % 2 else None
                )
                peer.send(frame(Kind.REQUEST, stream, pack_request("", wire.encode(message))))
            for stream in range(1, 33):
                for _ in range(STREAM_WINDOW_BYTES // 65536):
                    peer.send(frame(Kind.DATA, stream, b"x" * 65536))
            is_there = alive(peer, replies)
            if is_there:
                staged = len(node.cluster.staged())
                grown = node.cluster.rss(0) - before
                report.say(f"{count} begun, {staged} in staging, told {dict(replies)}, +{grown / MIB:.0f} MiB")
                assert replies["REPLY"] >= 100, "those beyond the bound are refused"
                assert grown < 96 * MIB
                node.serves()
        until_sync(lambda: not node.cluster.staged(), "staging is empty again", deadline_s=60)
        if is_there or not peer.may_be_lost:
            break
    assert is_there, "what is too much is refused, and does not end the connection"
    node.check(grown_bytes=96 * MIB)  # which is kept, and used again
    node.mark()


def test_requests_without_reading(node: Victim) -> None:
    """Thousands of requests whose answers nobody takes."""
    report = Report("answers that nobody takes")
    before = node.cluster.rss(0)
    node.cluster.reset_peak(0)
    message = pack_request("", wire.encode(requests(0, "still-serves/100")[5]))
    for _ in range(TRIES_MAX):
        sent = 0
        with shaken(node) as peer:
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with contextlib.suppress(TimeoutError):
                while sent < 100_000:
                    peer.sock.settimeout(ANSWER_S if sent < 4000 else 3.0)
                    if not peer.send(b"".join(frame(Kind.REQUEST, sent + n, message) for n in range(1, 501))):
                        break
                    sent += 500
            node.serves()
        if sent >= 4000 or not peer.may_be_lost:
            break
    grown = node.cluster.peak_rss(0) - before
    report.say(f"{sent} requests, peak +{grown / MIB:.0f} MiB")
    assert sent >= 4000
    assert grown < 128 * MIB


def test_many_connections_of_one_peer(node: Victim) -> None:
    report = Report("connections")
    before = node.cluster.rss(0)
    peers = []
    try:
        for number in range(200):
            peers.append(shaken(node, lane="bulk" if number % 2 else "control"))
        grown = node.cluster.rss(0) - before
        report.say(f"{len(peers)} connections, +{grown / MIB:.1f} MiB")
        assert is_served(node), "one more"
        assert grown < 300 * MIB
    finally:
        for peer in peers:
            peer.close()


def test_peers_that_fall_silent(node: Victim) -> None:
    """Established, and then nothing, or a byte now and then that never makes a frame."""
    with shaken(node) as silent:
        start = time.monotonic()
        assert {kind for kind, _, _ in silent.rest()} <= {Kind.PING}
        assert time.monotonic() - start < PING_INTERVAL_S * 3 + LATE_S
    slow = shaken(node, lane="bulk")
    slow.send(frame(Kind.DATA, 1, b"", 1000))
    for _ in range(5):
        if not slow.send(b"x"):
            break  # this machine was slower
        time.sleep(0.1)
    start = time.monotonic()
    slow.rest()
    slow.close()
    assert time.monotonic() - start < PING_INTERVAL_S * 3 + LATE_S
