import msgspec
import pytest

from amberblob.wire import WIRE_VERSION
from node.transport.frames import Kind
from node.transport.handshake import (
    HANDSHAKE_BYTES_MAX,
    DiallerHandshake,
    Established,
    Hello,
    ListenerHandshake,
    Refuse,
    RefusedByPeer,
    Send,
)
from tests.unit.node.transport.transport_kit import identity

NONCE = b"n" * 32


def run(dialler, listener, *, tamper=lambda kind, payload: payload):
    """Carry frames to and fro; what each side concluded, and the frames."""
    ends = {"dialler": dialler, "listener": listener}
    concluded: dict[str, list] = {"dialler": [], "listener": []}
    sent = []
    queue = [("dialler", action) for action in dialler.begin()]
    while queue:
        name, action = queue.pop(0)
        if not isinstance(action, Send):
            concluded[name].append(action)
            continue
        sent.append(action)
        other = "listener" if name == "dialler" else "dialler"
        payload = tamper(action.kind, action.payload)
        queue += [(other, made) for made in ends[other].receive(action.kind, payload)]
    return concluded, sent


def pair(a, b, *, expects="n2", lane="control"):
    return (
        DiallerHandshake(a, expects=expects, lane=lane, nonce=b"d" * 32),
        ListenerHandshake(b, nonce=b"l" * 32),
    )


def test_both_sides_agree():
    concluded, sent = run(*pair(identity("n1"), identity("n2"), lane="bulk"))
    assert concluded["dialler"] == [Established(peer="n2", lane="bulk")]
    assert concluded["listener"] == [Established(peer="n1", lane="bulk")]
    assert sum(len(frame.payload) + 9 for frame in sent) < HANDSHAKE_BYTES_MAX


def test_the_longest_names_fit():
    concluded, sent = run(
        *pair(identity("a" * 63, cluster="c" * 64), identity("b" * 63, cluster="c" * 64), expects="b" * 63)
    )
    assert concluded["listener"] == [Established(peer="a" * 63, lane="control")]
    assert sum(len(frame.payload) + 9 for frame in sent if frame.kind in (Kind.HELLO, Kind.PROOF)) < HANDSHAKE_BYTES_MAX


def test_the_nonces_decide_the_proofs():
    proofs = []
    for nonce in (b"1" * 32, b"2" * 32):
        a, b = identity("n1"), identity("n2")
        sent = run(DiallerHandshake(a, expects="n2", lane="control", nonce=NONCE), ListenerHandshake(b, nonce=nonce))[1]
        proofs += [frame.payload for frame in sent if frame.kind in (Kind.PROOF, Kind.WELCOME)]
    assert len(set(proofs)) == 4


def test_wrong_secret_is_not_told():
    dialler, listener = pair(identity("n1", secret=b"x" * 32), identity("n2"))
    concluded, _ = run(dialler, listener)
    [refuse] = concluded["listener"]
    assert isinstance(refuse, Refuse) and refuse.reason == "wrong-secret" and not refuse.tell
    meaning = dialler.closed()
    assert meaning is not None and meaning.reason == "wrong-secret"


def test_a_listener_without_the_secret():
    dialler, listener = pair(identity("n1"), identity("n2"))
    concluded, _ = run(dialler, listener, tamper=lambda kind, payload: bytes(32) if kind == Kind.WELCOME else payload)
    assert concluded["dialler"][0].reason == "wrong-secret"


@pytest.mark.parametrize(
    ("a", "b", "expects", "reason"),
    [
        (identity("n1", cluster="c2"), identity("n2"), "n2", "other-cluster"),
        (identity("n1"), identity("n3"), "n2", "unexpected-node"),
        (identity("n2"), identity("n2"), "n2", "unexpected-node"),
        (identity("N 1"), identity("n2"), "n2", "bad-handshake"),
    ],
)
def test_refused_openly(a, b, expects, reason):
    concluded, _ = run(*pair(a, b, expects=expects))
    [refuse] = concluded["listener"]
    assert isinstance(refuse, Refuse) and refuse.reason == reason and refuse.tell


def test_clock_ahead_is_refused_after_the_proof_and_not_taken_over():
    b = identity("n2")
    concluded, _ = run(*pair(identity("n1", ahead_ms=120_000), b))
    assert concluded["listener"][0].reason == "clock-ahead"
    assert b.clock.now_ms() < identity("n1").clock.now_ms() + 60_000
    a = identity("n1")
    concluded, _ = run(*pair(a, identity("n2", ahead_ms=120_000)))
    assert concluded["dialler"][0].reason == "clock-ahead"


def test_a_stranger_does_not_move_the_clock():
    b = identity("n2")
    before = b.clock.now_ms()
    run(*pair(identity("n1", secret=b"x", ahead_ms=50_000), b))
    assert b.clock.now_ms() < before + 40_000


def test_other_version():
    def tamper(kind, payload):
        if kind != Kind.HELLO:
            return payload
        hello = msgspec.msgpack.decode(payload, type=Hello)
        return msgspec.msgpack.encode(msgspec.structs.replace(hello, wire_version=WIRE_VERSION + 1))

    concluded, _ = run(*pair(identity("n1"), identity("n2")), tamper=tamper)
    assert concluded["listener"][0].reason == "wire-version"


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.CHALLENGE])
@pytest.mark.parametrize("field", ["now_ms", "nonce", "lane"])
def test_nothing_can_be_changed_on_the_way(kind, field):
    def tamper(sent, payload):
        if sent != kind:
            return payload
        fields = msgspec.msgpack.decode(payload)
        index = {Kind.HELLO: {"now_ms": 7, "nonce": 6, "lane": 5}, Kind.CHALLENGE: {"now_ms": 6, "nonce": 5, "lane": 4}}
        at = index[kind][field]
        fields[at] = {"now_ms": lambda v: v - 5, "nonce": lambda v: bytes(32), "lane": lambda v: "bulk"}[field](
            fields[at]
        )
        return msgspec.msgpack.encode(fields)

    concluded, _ = run(*pair(identity("n1"), identity("n2")), tamper=tamper)
    assert not any(isinstance(made, Established) for made in concluded["dialler"] + concluded["listener"])


@pytest.mark.parametrize("kind", [*Kind, 0, 255])
@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91\xa1x", bytes(500)])
def test_anything_unexpected_is_refused(kind, payload):
    a, b = identity("n1"), identity("n2")
    [made] = ListenerHandshake(b, nonce=NONCE).receive(kind, payload)
    assert isinstance(made, Refuse)
    dialler = DiallerHandshake(a, expects="n2", lane="control", nonce=NONCE)
    dialler.begin()
    [made] = dialler.receive(kind, payload)
    assert isinstance(made, Refuse | RefusedByPeer)


def test_the_secret_is_not_shown():
    assert "sss" not in repr(identity("n1"))
