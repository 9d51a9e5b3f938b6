"""One real message of each kind, and ways to spoil them. Shared by the fuzzing of decoders and of the peer port."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from amberblob.ballot import Ballot
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Record, Version, WriteMark
from amberblob.message import Message
from amberblob.wire import (
    AcceptedReply,
    Commit,
    Discard,
    Done,
    Failed,
    HistoryReply,
    HistoryRow,
    Inspect,
    InspectReply,
    Learn,
    Learnt,
    Ping,
    Prepare,
    Promised,
    Query,
    QueryHistory,
    QueryScan,
    ReadBlobs,
    ReadChunk,
    ReadManifest,
    Refused,
    RegisterReply,
    ScanEntry,
    ScanReply,
    StageClose,
    StagedReply,
    StageOpen,
)
from amberblob.wire_repair import (
    AskHealth,
    BucketsReply,
    CompareBuckets,
    CompareRoots,
    ForgetStub,
    HeadsReply,
    HealthReply,
    ItemsReply,
    LogHeads,
    LogLine,
    LogReply,
    LookAtPath,
    PathItem,
    PullDiffering,
    PullPaths,
    PullSlot,
    ReadLog,
    RootsReply,
    SlotHealth,
    bitmap_of,
)

BODY = b"a small body"
BLOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
BALLOT = Ballot(1, 7, "node-9", BLOB)
CHUNK = ChunkRef(id=content_hash(BODY), len=len(BODY))
VERSION = Version(
    version=3,
    blob_id=BLOB,
    size=len(BODY),
    etag=content_hash(BODY),
    created_at_ms=1_700_000_000_000,
    content_type="text/plain",
    meta={"a": "b"},
    chunks=(CHUNK,),
    chunk_count=1,
    inline=True,
)
RECORD = Record(
    revision=4,
    op="put",
    version_max=3,
    head=VERSION,
    live=((1, 1), (3, 3)),
    taken=(),
    changed_at_ms=1_700_000_000_000,
    deleted_at_ms=0,
    previous=msgspec.structs.replace(VERSION, version=1, blob_id="01ARZ3NDEKTSV4RRFFQ69G5FAW"),
    writes=(WriteMark(write_id="w", op="put", version=3, at_ms=1_700_000_000_000),),
)
ROW = HistoryRow(VERSION, 5)
ENTRY = ScanEntry("p", 1, BALLOT, True, 3, BLOB, 12, content_hash(BODY), 1, 1, "text/plain", 3)
ITEM = PathItem("p", BALLOT, RECORD, True, (VERSION,), RECORD.writes)


def requests(slot: int = 1, path: str = "fuzz") -> list[Message]:
    """One request of each kind about a path in a slot."""
    learnt = Learnt(slot=slot, path=path, epoch=1, ballot=BALLOT, record=RECORD, holders=("node-1",))
    return [
        Prepare(slot=slot, path=path, epoch=1, ballot=BALLOT, body_bytes=12, write_id="w"),
        Commit(slot=slot, path=path, epoch=1, ballot=BALLOT, record=RECORD, body=BODY, holders=("node-9",)),
        Learn(items=(learnt, msgspec.structs.replace(learnt, record=None))),
        Query(slot=slot, path=path, epoch=1),
        QueryHistory(slot=slot, path=path, epoch=1, version=3, below=9, limit=10),
        QueryScan(prefix="f", start="f", delimiter="/", limit=10),
        Inspect(slot=slot, path=path),
        StageOpen(slot=slot, epoch=1, blob_id=BLOB, chunk_bytes=65536, size=100),
        StageClose(chunks=(CHUNK,), manifest_id=None),
        Discard(slot=slot, blob_id=BLOB),
        ReadChunk(slot=slot, blob_id=BLOB, chunk=CHUNK),
        ReadManifest(slot=slot, blob_id=BLOB, manifest_id=content_hash(BODY)),
        ReadBlobs(slot=slot, blobs=((BLOB, CHUNK), (BLOB, CHUNK))),
        Ping(now_ms=1_700_000_000_000),
        CompareRoots(slots=bitmap_of([slot])),
        CompareBuckets(slot=slot),
        PullDiffering(slot=slot, known={0: b"", 7: bytes(32)}, after="f"),
        PullPaths(slot=slot, paths=(path, "other"), below=9),
        PullSlot(slot=slot, epoch=1, after="f"),
        LogHeads(slots=bitmap_of([slot])),
        ReadLog(slot=slot, incarnation="i", after=3, limit=10),
        ForgetStub(slot=slot, path=path, epoch=1, incarnation="i", ballot=BALLOT, version_max=3),
        AskHealth(heal=True, first=slot),
        LookAtPath(slot=slot, path=path),
    ]


def replies() -> list[Message]:
    """One answer of each kind."""
    known: dict[str, Any] = {"incarnation": "i", "accepted": BALLOT, "record": RECORD, "chosen": True}
    return [
        Promised(**known, version_floor=3, prior=RECORD.writes[0]),
        AcceptedReply(incarnation="i"),
        Refused(incarnation="i", reason="ballot", ballot=BALLOT, epoch=1, detail="d"),
        RegisterReply(**known),
        HistoryReply(**known, rows=(ROW,), more=False),
        ScanReply(incarnation="i", entries=(ENTRY,), next_start="q", incarnations={1: "i"}, epochs={2: 7}),
        InspectReply(**known, rows=(ROW,), bytes_present={3: "all"}, disk="d"),
        StagedReply(incarnation="i"),
        Done(now_ms=1, size=2),
        Failed(code="c", detail="d"),
        RootsReply(roots=bytes(32), without=b"\x01"),
        BucketsReply(incarnation="i", sums=bytes(2048)),
        ItemsReply(incarnation="i", epoch=1, items=(ITEM,), ballot_floor=BALLOT, version_floor=3, next_after="p"),
        HeadsReply(incarnation="i", heads=bytes(8), incarnations={1: "j"}),
        LogReply(incarnation="i", lines=(LogLine(1, "p", 2),)),
        HealthReply(now_ms=1, slots=(SlotHealth(1, bytes(32), 1, 2, 3, 4, 5, False, 6, 7),), received_bytes=1),
    ]


HOSTILE: list[Any] = [-1, 0, 1, 2, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 1.5, float("nan"), None, True]
HOSTILE += ["", "\0", "../../../etc/passwd", "/", "x" * 5000, "\U0010ffff", "node-1", BLOB, "P", b"", b"\xff" * 100]
HOSTILE += [[], [1], {}, {"a": "b"}, [[1, 2]], [[5, 1]], [[0, 2**64 - 1]]]


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    match value:
        case list():
            for number, item in enumerate(value):
                found += _places(item, (*at, number))
        case dict():
            for name, item in value.items():
                found += _places(item, (*at, name))
        case _:
            pass
    return found


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def _replaced(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[at[0]] = _replaced(value[at[0]], at[1:], new)
    return copy


@st.composite
def spoilt_values(draw: st.DrawFn, messages: list[Message]) -> bytes:
    """A message of which one to three fields hold what they never should; its encoding is in order."""
    value = msgspec.msgpack.decode(msgspec.msgpack.encode(draw(st.sampled_from(messages))))
    for _ in range(draw(st.integers(1, 3))):
        places = _places(value)
        # The tag stays, mostly, so that the message gets as far as its handler.
        keep_tag = draw(st.integers(0, 9)) > 0
        if keep_tag:
            places = [place for place in places if place not in ((), (0,))]
        if not places:
            break
        place = draw(st.sampled_from(places))
        before = _at(value, place)
        # Of the same type, mostly: what the codec refuses never gets to the handler.
        same = [hostile for hostile in HOSTILE if type(hostile) is type(before)]
        of_its_type = draw(st.integers(0, 5)) > 0
        candidates = same if same and of_its_type else HOSTILE
        value = _replaced(value, place, draw(st.sampled_from(candidates)))
        if not isinstance(value, list | dict):
            break
    return msgspec.msgpack.encode(value)


@st.composite
def spoilt_bytes(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """Bytes with some flipped, cut out, doubled or put in."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(int(draw(st.integers(1, 4)))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "flip", "set", "cut", "insert", "double", "end"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if data:
                data[at] = draw(st.sampled_from([0, 0x7F, 0x80, 0xC0, 0xC1, 0xC6, 0xCF, 0xDB, 0xDD, 0xDF, 0xFF]))
            case "cut":
                del data[at : at + draw(st.integers(1, 8))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=9))
            case "double":
                data[at:at] = data[at : at + 16]
            case _:
                del data[at:]
    return bytes(data)
