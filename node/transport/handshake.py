"""Who may talk to whom: a mutual challenge and response under the cluster's secret. Pure.

::

    dialler                                         listener
      Hello {versions, cluster, ids, lane, nonce, time}  →
                    ←  Challenge {versions, cluster, id, lane, nonce, time}
      Proof  HMAC(secret, "dialler"  · Hello · Challenge)  →
                    ←  Welcome  HMAC(secret, "listener" · Hello · Challenge)

Both proofs cover both messages byte for byte, so they bind the nonces, node ids, cluster id, wire versions,
lane and time of both sides, and the label binds the role. The dialler proves first: a stranger who merely
connects learns nothing that was made with the secret.

Each side tells the range of wire versions that it speaks, and both conclude the same: the newest that they have in
common (rfc/0015). Nobody on the way can talk them down to an older one, because the proofs cover the ranges.

What differs openly (versions, cluster, node id) is told to the peer. A wrong secret is not: the connection is
closed without a word, and the dialler, whose proof got no answer, concludes it. A peer's time moves our hybrid
clock only after it proved the secret.

This keeps out strangers and nodes of another cluster. It does not encrypt: nodes talk over a network that
others cannot write to.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from amberblob.clock import HybridClock
from amberblob.ids import valid_node_id
from amberblob.limits import CLOCK_AHEAD_MAX_S, KIB
from amberblob.wire import WIRE_VERSIONS, WireVersions
from node.transport.frames import Kind

UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError)
"""What msgspec raises for bytes that are no message; for a text that is no UTF-8 not an error of its own tree."""

HANDSHAKE_BYTES_MAX = KIB
HANDSHAKE_TIMEOUT_S = 5.0
NONCE_BYTES = 32
CLOCK_AHEAD_MAX_MS = int(CLOCK_AHEAD_MAX_S * 1000)

_CONTEXT = b"amberblob peer handshake 1"
_DETAIL_CHARS_MAX = 400
_LANES = ("control", "bulk")

Lane = Literal["control", "bulk"]
Reason = Literal["wrong-secret", "other-cluster", "wire-version", "unexpected-node", "clock-ahead", "bad-handshake"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this node is to its peers.

    Attributes:
        cluster_id: names the cluster; other clusters are refused.
        node_id: names the node.
        secret: what all nodes of the cluster know and nobody else.
        clock: its time travels in each handshake and ping.
        versions: the wire versions that it speaks.
    """

    cluster_id: str
    node_id: str
    secret: bytes = field(repr=False)
    clock: HybridClock = field(repr=False)
    versions: WireVersions = WIRE_VERSIONS


class Hello(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="amber-hello"):
    """The dialler introduces itself. New fields go to the end: every version must be able to read the first.

    ``wire_version`` is the oldest version that it speaks: a node of version 1 knows no ranges, and wants to see a 1 here.
    ``wire_version_newest`` is the newest; 0, or absent: the same.
    """

    wire_version: int
    cluster_id: str
    node_id: str
    expects: str
    lane: str
    nonce: bytes
    now_ms: int
    wire_version_newest: int = 0


class Challenge(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="amber-challenge"):
    """The listener introduces itself, as in :class:`Hello`."""

    wire_version: int
    cluster_id: str
    node_id: str
    lane: str
    nonce: bytes
    now_ms: int
    wire_version_newest: int = 0


class Refusal(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="amber-refusal"):
    """Why the connection is closed now."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send a frame."""

    kind: Kind
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Established:
    """The peer is who it says. ``version``: the wire version to speak with it."""

    peer: str
    lane: Lane
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """We refuse the peer: log it and close, telling the peer why if ``tell``."""

    reason: Reason
    detail: str
    peer: str
    tell: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedByPeer:
    """The peer refuses us: log it and close."""

    reason: str
    detail: str


Action = Send | Established | Refuse | RefusedByPeer


class _State(enum.Enum):
    START = enum.auto()
    HELLO_SENT = enum.auto()
    PROOF_SENT = enum.auto()
    CHALLENGE_SENT = enum.auto()
    DONE = enum.auto()


def refusal_frame(reason: str, detail: str) -> Send:
    """Tell the peer why we close."""
    payload = msgspec.msgpack.encode(Refusal(reason=reason, detail=detail[:_DETAIL_CHARS_MAX]))
    return Send(kind=Kind.REFUSAL, payload=payload)


def decode_refusal(payload: bytes | memoryview) -> RefusedByPeer:
    """What the peer says of its closing; something readable even if it cannot be decoded."""
    try:
        refusal = msgspec.msgpack.decode(payload, type=Refusal)
    except UNDECODABLE:
        return RefusedByPeer(reason="bad-handshake", detail="the peer refuses us for a reason that cannot be decoded")
    return RefusedByPeer(reason=refusal.reason[:64], detail=refusal.detail[:_DETAIL_CHARS_MAX])


def clock_refusal(peer: str, peer_ms: int, own_ms: int) -> Refuse:
    """The peer's clock is too far ahead of ours."""
    return Refuse(
        reason="clock-ahead",
        detail=f"the clock of {peer} is {(peer_ms - own_ms) / 1000:.1f} s ahead of its peer's, more than the "
        f"{CLOCK_AHEAD_MAX_S:.0f} s allowed: synchronise the clocks of both machines",
        peer=peer,
        tell=True,
    )


def _proof(secret: bytes, role: bytes, hello: bytes, challenge: bytes) -> bytes:
    mac = hmac.new(secret, _CONTEXT, hashlib.sha256)
    for part in (role, hello, challenge):
        mac.update(len(part).to_bytes(4, "big"))
        mac.update(part)
    return mac.digest()


def _bad(detail: str, peer: str, *, tell: bool = True) -> Refuse:
    return Refuse(reason="bad-handshake", detail=detail, peer=peer, tell=tell)


def _introduction_refused(identity: Identity, said: Hello | Challenge) -> Refuse | None:
    """What both sides check of what the other says of itself, before any proof."""
    name = said.node_id if valid_node_id(said.node_id) else "a node without a valid id"
    if identity.versions.common(versions_of(said)) is None:
        return _no_common_version(identity, name, versions_of(said))
    if said.cluster_id != identity.cluster_id:
        return Refuse(
            reason="other-cluster",
            detail=f"{name} is of cluster {said.cluster_id[:64]!r}, {identity.node_id} of {identity.cluster_id!r}: "
            "check the addresses and the cluster id in both configurations",
            peer=name,
            tell=True,
        )
    if name != said.node_id:
        return _bad("the peer gives no valid node id", name)
    if said.node_id == identity.node_id:
        return Refuse(
            reason="unexpected-node",
            detail=f"both ends call themselves {identity.node_id}: each node needs an id of its own",
            peer=name,
            tell=True,
        )
    if len(said.nonce) != NONCE_BYTES or said.lane not in _LANES:
        return _bad("the peer's introduction has no usable nonce or lane", name)
    return None


def versions_of(said: Hello | Challenge) -> WireVersions:
    """The versions that the other side speaks, by what it says of itself."""
    return WireVersions(said.wire_version, max(said.wire_version, said.wire_version_newest))


def _no_common_version(identity: Identity, name: str, theirs: WireVersions) -> Refuse:
    older = name if theirs.newest < identity.versions.oldest else identity.node_id
    return Refuse(
        reason="wire-version",
        detail=f"{name} speaks {theirs}, {identity.node_id} speaks {identity.versions}: they have none in common. "
        f"Upgrade {older}, which is the older one; if it is more than one version behind, through the versions in between",
        peer=name,
        tell=True,
    )


def _wrong_secret(peer: str) -> Refuse:
    return Refuse(
        reason="wrong-secret",
        detail=f"{peer} does not prove that it knows the cluster's secret: compare the secrets of both nodes",
        peer=peer,
        tell=False,
    )


class DiallerHandshake:
    """The side that connected. ``expects`` is the node id that should answer at that address."""

    def __init__(self, identity: Identity, *, expects: str, lane: Lane, nonce: bytes) -> None:
        assert len(nonce) == NONCE_BYTES
        self._identity = identity
        self._expects = expects
        self._lane = lane
        self._state = _State.START
        self._hello = msgspec.msgpack.encode(
            Hello(
                wire_version=identity.versions.oldest,
                cluster_id=identity.cluster_id,
                node_id=identity.node_id,
                expects=expects,
                lane=lane,
                nonce=nonce,
                now_ms=identity.clock.now_ms(),
                wire_version_newest=identity.versions.newest,
            )
        )
        self._challenge = b""
        self._peer_ms = 0
        self._version = 0

    def begin(self) -> list[Action]:
        """The connection is made."""
        self._state = _State.HELLO_SENT
        return [Send(kind=Kind.HELLO, payload=self._hello)]

    def receive(self, kind: int, payload: bytes) -> list[Action]:
        """A frame came in."""
        if kind == Kind.REFUSAL:
            self._state = _State.DONE
            return [decode_refusal(payload)]
        if self._state is _State.HELLO_SENT and kind == Kind.CHALLENGE:
            return self._challenged(payload)
        if self._state is _State.PROOF_SENT and kind == Kind.WELCOME:
            return self._welcomed(payload)
        self._state = _State.DONE
        return [_bad(f"an unexpected frame of kind {kind}: is this the peer port of a node?", self._expects)]

    def closed(self) -> Refuse | None:
        """What it means that the peer closed the connection now; None: nothing in particular."""
        if self._state is not _State.PROOF_SENT:
            return None
        return Refuse(
            reason="wrong-secret",
            detail=f"{self._expects} closed the connection when shown the proof of the cluster's secret: "
            "most likely the secrets of both nodes differ",
            peer=self._expects,
            tell=False,
        )

    def _challenged(self, payload: bytes) -> list[Action]:
        self._state = _State.DONE
        try:
            challenge = msgspec.msgpack.decode(payload, type=Challenge)
        except UNDECODABLE as error:
            return [_bad(f"a challenge that cannot be decoded: {error}", self._expects)]
        refused = _introduction_refused(self._identity, challenge)
        if refused is not None:
            return [refused]
        if challenge.node_id != self._expects:
            return [_unexpected(self._expects, challenge.node_id)]
        if challenge.lane != self._lane:
            return [_bad(f"the peer answers on lane {challenge.lane}, not {self._lane}", self._expects)]
        self._challenge = payload
        self._peer_ms = challenge.now_ms
        self._version = self._identity.versions.common(versions_of(challenge)) or 0
        self._state = _State.PROOF_SENT
        proof = _proof(self._identity.secret, b"dialler", self._hello, payload)
        return [Send(kind=Kind.PROOF, payload=proof)]

    def _welcomed(self, payload: bytes) -> list[Action]:
        self._state = _State.DONE
        if not hmac.compare_digest(payload, _proof(self._identity.secret, b"listener", self._hello, self._challenge)):
            return [_wrong_secret(self._expects)]
        clock = self._identity.clock
        if not clock.observe(self._peer_ms, ahead_max_ms=CLOCK_AHEAD_MAX_MS):
            return [clock_refusal(self._expects, self._peer_ms, clock.now_ms())]
        return [Established(peer=self._expects, lane=self._lane, version=self._version)]


class ListenerHandshake:
    """The side that was connected to."""

    def __init__(self, identity: Identity, *, nonce: bytes) -> None:
        assert len(nonce) == NONCE_BYTES
        self._identity = identity
        self._nonce = nonce
        self._state = _State.START
        self._hello = b""
        self._challenge = b""
        self._peer = "an unknown peer"
        self._peer_ms = 0
        self._version = 0
        self._lane: Lane = "control"

    def receive(self, kind: int, payload: bytes) -> list[Action]:
        """A frame came in."""
        if self._state is _State.START and kind == Kind.HELLO:
            return self._greeted(payload)
        if self._state is _State.CHALLENGE_SENT and kind == Kind.PROOF:
            return self._proven(payload)
        if self._state is _State.CHALLENGE_SENT and kind == Kind.REFUSAL:
            self._state = _State.DONE
            return [decode_refusal(payload)]
        self._state = _State.DONE
        return [_bad(f"an unexpected frame of kind {kind}", self._peer, tell=False)]

    @property
    def peer(self) -> str:
        """The node id that the peer claims, for the log."""
        return self._peer

    def _greeted(self, payload: bytes) -> list[Action]:
        self._state = _State.DONE
        try:
            hello = msgspec.msgpack.decode(payload, type=Hello)
        except UNDECODABLE as error:
            return [_bad(f"a hello that cannot be decoded: {error}", self._peer)]
        refused = _introduction_refused(self._identity, hello)
        if refused is not None:
            return [refused]
        if hello.expects != self._identity.node_id:
            return [_unexpected(hello.expects[:64], self._identity.node_id, peer=hello.node_id)]
        self._peer = hello.node_id
        self._peer_ms = hello.now_ms
        self._version = self._identity.versions.common(versions_of(hello)) or 0
        self._lane = "bulk" if hello.lane == "bulk" else "control"
        self._hello = payload
        self._challenge = msgspec.msgpack.encode(
            Challenge(
                wire_version=self._identity.versions.oldest,
                cluster_id=self._identity.cluster_id,
                node_id=self._identity.node_id,
                lane=self._lane,
                nonce=self._nonce,
                now_ms=self._identity.clock.now_ms(),
                wire_version_newest=self._identity.versions.newest,
            )
        )
        self._state = _State.CHALLENGE_SENT
        return [Send(kind=Kind.CHALLENGE, payload=self._challenge)]

    def _proven(self, payload: bytes) -> list[Action]:
        self._state = _State.DONE
        if not hmac.compare_digest(payload, _proof(self._identity.secret, b"dialler", self._hello, self._challenge)):
            return [_wrong_secret(self._peer)]
        clock = self._identity.clock
        if not clock.observe(self._peer_ms, ahead_max_ms=CLOCK_AHEAD_MAX_MS):
            return [clock_refusal(self._peer, self._peer_ms, clock.now_ms())]
        welcome = _proof(self._identity.secret, b"listener", self._hello, self._challenge)
        return [
            Send(kind=Kind.WELCOME, payload=welcome),
            Established(peer=self._peer, lane=self._lane, version=self._version),
        ]


def _unexpected(wanted: str, found: str, *, peer: str | None = None) -> Refuse:
    return Refuse(
        reason="unexpected-node",
        detail=f"{found} answers where {wanted} was expected: check the peer addresses",
        peer=peer or found,
        tell=True,
    )
