import msgspec
import pytest

from amberblob.wire import WIRE_VERSIONS, WireVersions
from node.transport.frames import Kind
from node.transport.handshake import (
    HANDSHAKE_BYTES_MAX,
    Challenge,
    DiallerHandshake,
    Established,
    Hello,
    ListenerHandshake,
    Refuse,
    RefusedByPeer,
    Send,
    versions_of,
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
    assert concluded["dialler"] == [Established(peer="n2", lane="bulk", version=WIRE_VERSIONS.newest)]
    assert concluded["listener"] == [Established(peer="n1", lane="bulk", version=WIRE_VERSIONS.newest)]
    assert sum(len(frame.payload) + 9 for frame in sent) < HANDSHAKE_BYTES_MAX


def test_the_longest_names_fit():
    concluded, sent = run(
        *pair(identity("a" * 63, cluster="c" * 64), identity("b" * 63, cluster="c" * 64), expects="b" * 63)
    )
    assert concluded["listener"] == [Established(peer="a" * 63, lane="control", version=WIRE_VERSIONS.newest)]
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


@pytest.mark.parametrize(
    ("a", "b", "version"),
    [((1, 1), (1, 2), 1), ((1, 2), (2, 3), 2), ((1, 3), (2, 5), 3), ((2, 3), (2, 3), 3), ((1, 4), (2, 3), 3)],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_newest_version_that_both_speak(a, b, version, turned):
    a, b = (b, a) if turned else (a, b)
    concluded, _ = run(*pair(identity("n1", versions=WireVersions(*a)), identity("n2", versions=WireVersions(*b))))
    assert [made.version for made in concluded["dialler"] + concluded["listener"]] == [version, version]


@pytest.mark.parametrize(("a", "b", "older"), [((1, 1), (2, 3), "n1"), ((4, 5), (1, 3), "n2"), ((9, 9), (1, 2), "n2")])
def test_without_a_common_version_the_older_one_is_named(a, b, older):
    concluded, _ = run(*pair(identity("n1", versions=WireVersions(*a)), identity("n2", versions=WireVersions(*b))))
    [refuse] = concluded["listener"]
    assert refuse.reason == "wire-version" and refuse.tell
    for text in (f"n1 speaks {WireVersions(*a)}", f"n2 speaks {WireVersions(*b)}", f"Upgrade {older}"):
        assert text in refuse.detail
    dialler = DiallerHandshake(identity("n1", versions=WireVersions(*a)), expects="n2", lane="control", nonce=NONCE)
    dialler.begin()
    challenge = Challenge(
        wire_version=b[0],
        cluster_id="c1",
        node_id="n2",
        lane="control",
        nonce=NONCE,
        now_ms=1,
        wire_version_newest=b[1],
    )
    [refuse] = dialler.receive(Kind.CHALLENGE, msgspec.msgpack.encode(challenge))
    assert refuse.reason == "wire-version" and f"Upgrade {older}" in refuse.detail


class HelloOf1(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="amber-hello"):
    """As version 1 had it."""

    wire_version: int
    cluster_id: str
    node_id: str
    expects: str
    lane: str
    nonce: bytes
    now_ms: int


def test_version_1_reads_this_introduction_and_is_read():
    dialler, listener = pair(identity("n1"), identity("n2"))
    [sent] = dialler.begin()
    read = msgspec.msgpack.decode(sent.payload, type=HelloOf1)
    assert read.wire_version == 1, "a node of version 1 refuses anything else"
    [challenge] = listener.receive(Kind.HELLO, msgspec.msgpack.encode(read))
    # Version 1 compares this field with its own version, and skips what it does not know.
    assert msgspec.msgpack.decode(challenge.payload)[1] == 1
    assert versions_of(msgspec.msgpack.decode(msgspec.msgpack.encode(read), type=Hello)) == WireVersions(1, 1)


def test_nobody_on_the_way_talks_them_down():
    for kind, type_ in ((Kind.HELLO, Hello), (Kind.CHALLENGE, Challenge)):

        def tamper(sent, payload, kind=kind, type_=type_):
            if sent != kind:
                return payload
            said = msgspec.msgpack.decode(payload, type=type_)
            return msgspec.msgpack.encode(msgspec.structs.replace(said, wire_version_newest=1))

        concluded, _ = run(*pair(identity("n1"), identity("n2")), tamper=tamper)
        assert not any(isinstance(made, Established) for made in concluded["dialler"] + concluded["listener"])


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
