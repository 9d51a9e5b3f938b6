"""Whatever is decoded, from the wire or from the disk: a value, or the error that the decoder documents. Nothing else."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amberblob import wire
from amberblob.clock import HybridClock
from amberblob.errors import JournalCorrupt, WireError
from amberblob.manifest import ChunkRef, decode_manifest, encode_manifest
from amberblob.mutations import Mutation
from chunkstore import codec
from node.http.conditions import parse_etags
from node.http.digests import digests_of
from node.http.times import parse_http_date, parse_time_ms
from node.transport import frames, handshake
from node.transport.frames import HEADER, FrameReader, Kind
from tests.fuzz.kit import EXAMPLES, fuzzed
from tests.fuzz.messages import BODY, CHUNK, replies, requests, spoilt_bytes, spoilt_values

NO_MESSAGE = (msgspec.MsgspecError, UnicodeDecodeError)
"""The second is not documented (see :func:`test_text_that_is_no_utf8`), and caught where bytes come from a peer."""

pytestmark = pytest.mark.timeout(600 + EXAMPLES)

SALT = b"s" * codec.SALT_BYTES
DISK = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest.mark.parametrize("which", ["requests", "replies"])
def test_messages(which: str) -> None:
    real = requests() if which == "requests" else replies()
    decode: Any = wire.decode_request if which == "requests" else wire.decode_reply
    originals = [wire.encode(message) for message in real]
    for message, data in zip(real, originals, strict=True):
        assert decode(data) == message == decode(memoryview(data))
    seen: Counter[str] = Counter()

    @fuzzed(600)
    @given(st.one_of(spoilt_bytes(originals), spoilt_values(real), st.binary(max_size=200)))
    def attack(data: bytes) -> None:
        try:
            message = decode(data)
        except NO_MESSAGE:
            seen["refused"] += 1
            return
        seen[type(message).__name__] += 1
        assert decode(wire.encode(message)) == message or "nan" in repr(message)

    attack()
    assert seen["refused"] > 50 and len(seen) > 5, seen


@pytest.mark.parametrize("decode", [wire.decode_request, wire.decode_reply, codec.decode_payload])
def test_text_that_is_no_utf8(decode: Any) -> None:
    """What these three document is MsgspecError, and callers catch no more."""
    samples: dict[Any, bytes] = {
        wire.decode_request: b"\x94\xa1Q\x01\xa2\xff\xfe\x01",
        wire.decode_reply: b"\x93\xa1f\xa2\xff\xfe\xa1d",
        codec.decode_payload: b"\x91\x92\x01\x94\xa1b\x01\xa2\xff\xfe\xc4\x01x",
    }
    with pytest.raises(msgspec.MsgspecError):
        decode(samples[decode])


@pytest.mark.parametrize(
    "deep",
    [
        b"\x91" * 100_000,
        b"\x81\xa0" * 100_000,
        b"\x92\xa1P" + b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ],
)
def test_messages_that_nest_or_promise_too_much(deep: bytes) -> None:
    for decode in (wire.decode_request, wire.decode_reply):
        with pytest.raises((msgspec.MsgspecError, RecursionError)) as caught:
            decode(deep)
        assert not isinstance(caught.value, RecursionError), "the transport does not catch this one"


def test_manifests() -> None:
    seen: Counter[str] = Counter()
    real = [encode_manifest([CHUNK] * count) for count in (0, 1, 100)]
    texts = [
        "[]",
        "{}",
        '[{"id":"' + "0" * 64 + '","len":0}]',
        '[{"id":"../x","len":1}]',
        "[" * 5000,
        '[{"id":1,"len":-1}]',
        "null",
    ]

    @fuzzed(400)
    @given(st.one_of(spoilt_bytes(real), st.binary(max_size=100), st.sampled_from(texts).map(str.encode)))
    def attack(data: bytes) -> None:
        try:
            chunks = decode_manifest(data)
        except ValueError:
            seen["refused"] += 1
            return
        seen["read"] += 1
        assert all(len(chunk.id) == 64 and chunk.len > 0 for chunk in chunks)
        assert decode_manifest(encode_manifest(chunks)) == chunks

    attack()
    assert seen["refused"] > 50 and seen["read"] > 5, seen


def _segment(batches: int) -> bytes:
    header = codec.SegmentHeader(disk_id=DISK, salt=SALT, first_position=1, first_sequence=1)
    data = codec.encode_segment_header(header)
    for sequence in range(1, batches + 1):
        data += codec.encode_batch(
            [(sequence, codec.BodyKept(slot=1, blob_id=DISK, body=BODY * sequence))], sequence, SALT
        )
    return data + bytes(256)


def test_journal_segments() -> None:
    """Reading a segment never fails; what it means is decided, or it is said to be corrupt."""
    real = [_segment(count) for count in (0, 1, 5)]
    whole = codec.scan_segment(real[2], 1)
    assert [frame.sequence for frame in whole.frames] == [1, 2, 3, 4, 5] and not whole.problem
    seen: Counter[str] = Counter()

    @fuzzed(400)
    @given(st.sampled_from(real), st.data())
    def attack(original: bytes, data: st.DataObject) -> None:
        spoilt = bytearray(original)
        low = data.draw(st.sampled_from([0, codec.SEGMENT_HEADER_BYTES]))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(low, len(spoilt) - 1))
            match data.draw(st.sampled_from(["flip", "zero", "cut", "frame"])):
                case "flip":
                    spoilt[at] ^= 1 << data.draw(st.integers(0, 7))
                case "zero":
                    spoilt[at : at + 64] = bytes(len(spoilt[at : at + 64]))
                case "cut":
                    del spoilt[at:]
                    break
                case _:  # a frame header that is valid, and says that it is huge
                    spoilt[at:at] = _frame_header(
                        length=2**32 - 1, sequence=data.draw(st.sampled_from([1, 2, 6, 2**64 - 1]))
                    )
        scan = codec.scan_segment(bytes(spoilt), 1)
        for frame in scan.frames:
            payload = bytes(spoilt[frame.payload_offset : frame.payload_offset + frame.payload_length])
            assert len(codec.decode_payload(payload)) == 1, "what passes its checksum is what was written"
        try:
            verdict = codec.decide([scan], DISK)
        except JournalCorrupt:
            seen["corrupt"] += 1
        else:
            seen["cut" if verdict.cuts else "dropped" if verdict.drops else "whole"] += 1

    attack()
    assert seen["corrupt"] > 5 and seen["cut"] > 5, seen


def _frame_header(*, length: int, sequence: int) -> bytes:
    head = struct.pack("<4sBBHQII", codec.FRAME_MAGIC, codec.JOURNAL_FORMAT, 0, 0, sequence, length, 0)
    return head + zlib.crc32(head, zlib.crc32(SALT)).to_bytes(4, "little")


def test_journal_payloads() -> None:
    batch: codec.Batch = [(1, codec.BodyKept(slot=1, blob_id=DISK, body=BODY))]
    original = msgspec.msgpack.encode(batch)
    assert codec.decode_payload(original) == batch
    assert Mutation is not None
    seen: Counter[str] = Counter()

    @fuzzed(200)
    @given(st.one_of(spoilt_bytes([original]), st.binary(max_size=60)))
    def attack(data: bytes) -> None:
        try:
            codec.decode_payload(data)
        except NO_MESSAGE:
            seen["refused"] += 1
        else:
            seen["read"] += 1

    attack()
    assert seen["refused"] and seen["read"], seen


# -- the handshake and its frames


def _identity(node: str, secret: bytes = b"s" * 32) -> handshake.Identity:
    return handshake.Identity(cluster_id="c", node_id=node, secret=secret, clock=HybridClock(lambda: 1_700_000_000_000))


def _shake(spoil: int, change: Any) -> tuple[list[Any], list[Any]]:
    """A handshake whose frame number ``spoil`` goes through ``change``; what each side did."""
    dialler = handshake.DiallerHandshake(_identity("n1"), expects="n2", lane="control", nonce=b"d" * 32)
    listener = handshake.ListenerHandshake(_identity("n2"), nonce=b"l" * 32)
    did: tuple[list[Any], list[Any]] = ([], [])
    waiting = [(0, action) for action in dialler.begin()]
    sent = 0
    while waiting:
        side, action = waiting.pop(0)
        did[side].append(action)
        if not isinstance(action, handshake.Send):
            continue
        kind, payload = change(action.kind, action.payload) if sent == spoil else (action.kind, action.payload)
        sent += 1
        receiver = (dialler, listener)[1 - side]
        waiting += [(1 - side, answer) for answer in receiver.receive(kind, payload)]
        assert sent < 10, "a handshake ends"
    return did


def _established(actions: list[Any]) -> bool:
    return any(isinstance(action, handshake.Established) for action in actions)


def _of_version_9(kind: int, payload: bytes) -> tuple[int, bytes]:
    said = msgspec.msgpack.decode(payload)
    return kind, msgspec.msgpack.encode([said[0], 9, *said[2:]])


def test_handshakes() -> None:
    for number, side in ((0, 1), (1, 0)):
        told = _shake(number, _of_version_9)[side][-1]
        assert isinstance(told, handshake.Refuse) and told.reason == "wire-version"
    dialled, listened = _shake(99, None)
    assert _established(dialled) and _established(listened)
    seen: Counter[str] = Counter()

    @fuzzed(500)
    @given(st.integers(0, 3), st.sampled_from([*Kind, 0, 255]), st.booleans(), st.data())
    def attack(number: int, kind: int, other_kind: bool, data: st.DataObject) -> None:
        changed = False

        def change(real_kind: int, payload: bytes) -> tuple[int, bytes]:
            nonlocal changed
            said = msgspec.msgpack.decode(payload) if number < 2 else None
            ways = [spoilt_bytes([payload]), st.binary(max_size=64)]
            if isinstance(said, list):
                at = data.draw(st.integers(0, len(said) - 1))
                said[at] = data.draw(
                    st.sampled_from([-1, 0, 1, 2, 9, 2**63, 2**64 - 1, "", "n1", "x" * 900, "\0", b"", b"d" * 32, None])
                )
                ways.append(st.just(msgspec.msgpack.encode(said)))
            spoilt = data.draw(st.one_of(ways))
            changed = spoilt != payload or (other_kind and kind != real_kind)
            return (kind if other_kind else real_kind), spoilt

        dialled, listened = _shake(number, change)
        if changed and number < 3:
            assert not _established(listened), "only who proved the secret over these very words gets in"
        if changed:
            assert not _established(dialled)
        for action in [*dialled, *listened]:
            seen[type(action).__name__] += 1
            if isinstance(action, handshake.Refuse):
                seen[action.reason] += 1

    attack()
    assert {"bad-handshake", "wrong-secret", "Established"} <= set(seen), seen


def test_frames() -> None:
    """Cut in any way, frames come out as they went in; too long ones are refused before they are stored."""
    seen: Counter[str] = Counter()

    @fuzzed(300)
    @given(
        st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=3000)), max_size=8),
        st.integers(0, 6),
        st.integers(1, 4000),
    )
    def attack(sent: list[tuple[int, int, bytes]], too_long: int, step: int) -> None:
        wire_bytes = b""
        for number, (kind, stream, payload) in enumerate(sent):
            length = 2**31 + number if number == too_long else len(payload)
            wire_bytes += HEADER.pack(length, kind, stream) + payload
        got: list[tuple[int, int, bytes]] = []
        reader = FrameReader(
            lambda kind, stream, payload: got.append((kind, stream, bytes(payload))),
            buffer_bytes=512,
            frame_bytes_max=4096,
        )
        try:
            while wire_bytes:
                space = reader.space()[:step]
                size = min(len(space), len(wire_bytes))
                space[:size] = wire_bytes[:size]
                wire_bytes = wire_bytes[size:]
                reader.advance(size)
            assert too_long >= len(sent)
            assert got == sent
            seen["whole"] += 1
        except WireError:
            assert too_long < len(sent) and got == sent[:too_long]
            seen["refused"] += 1

    attack()
    assert seen["whole"] and seen["refused"], seen


def test_payloads_of_frames() -> None:
    unpackers: list[Any] = [frames.unpack_request, frames.unpack_credit, frames.unpack_time]
    seen: Counter[str] = Counter()

    @fuzzed(200)
    @given(st.sampled_from(unpackers), st.binary(max_size=200))
    def attack(unpack: Any, payload: bytes) -> None:
        try:
            unpack(memoryview(payload))
            seen["read"] += 1
        except WireError:
            seen["refused"] += 1
        assert handshake.decode_refusal(payload).detail

    attack()
    assert seen["read"] and seen["refused"], seen


# -- headers and parameters


def test_values_of_headers() -> None:
    from multidict import CIMultiDict, CIMultiDictProxy

    from amberblob.errors import BadRequest

    seen: Counter[str] = Counter()
    pieces = st.sampled_from(
        [
            "sha-256",
            "blake3",
            "=",
            ":",
            ",",
            "A" * 43,
            "====",
            '"',
            "W/",
            "*",
            " ",
            "\t",
            "2026-01-31T12:00:00Z",
            "GMT",
            "9" * 30,
            "é",
            "\udcff",
            "\0",
            "-",
            "e",
            ".",
        ]
    )

    @fuzzed(400)
    @given(st.one_of(st.lists(pieces, max_size=8).map("".join), st.text(max_size=40)))
    def attack(value: str) -> None:
        headers = CIMultiDictProxy(CIMultiDict({"Content-Digest": value, "X-Amber-Content-Blake3": value}))
        asked: list[tuple[Any, tuple[type[Exception], ...]]] = [
            (lambda: digests_of(headers), (BadRequest,)),
            (lambda: parse_etags("If-Match", value), (BadRequest,)),
            (lambda: parse_time_ms(value), (ValueError, OverflowError)),
            (lambda: parse_http_date(value), ()),
        ]
        for call, documented in asked:
            try:
                call()
                seen["read"] += 1
            except documented:
                seen["refused"] += 1

    attack()
    assert seen["read"] and seen["refused"], seen
    assert isinstance(CHUNK, ChunkRef)
