"""Torn or corrupt? The pure decision, on every kind of damage."""

from __future__ import annotations

import pytest

from amberblob.errors import JournalCorrupt
from amberblob.mutations import EpochSeen
from chunkstore.codec import (
    SEGMENT_HEADER_BYTES,
    BodyKept,
    SegmentHeader,
    decide,
    decode_payload,
    encode_batch,
    encode_segment_header,
    scan_segment,
)

DISK = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
SALT = bytes(range(16))


def header(first_sequence: int = 1, salt: bytes = SALT) -> bytes:
    return encode_segment_header(
        SegmentHeader(disk_id=DISK, salt=salt, first_position=first_sequence, first_sequence=first_sequence)
    )


def frames(first: int, count: int, salt: bytes = SALT) -> list[bytes]:
    return [encode_batch([(number, EpochSeen(3, number))], number, salt) for number in range(first, first + count)]


def segment(first: int, count: int, *, tail: int = 4096) -> bytes:
    return header(first) + b"".join(frames(first, count)) + bytes(tail)


def judge(*segments: bytes):
    return decide([scan_segment(data, number) for number, data in enumerate(segments, start=5)], DISK)


def offset_of(number: int, first: int = 1) -> int:
    return SEGMENT_HEADER_BYTES + len(b"".join(frames(first, number - first)))


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def test_a_whole_journal():
    data = segment(1, 3)
    scan = scan_segment(data, 5)
    assert [frame.sequence for frame in scan.frames] == [1, 2, 3] and not scan.problem
    frame = scan.frames[1]
    payload = data[frame.payload_offset : frame.payload_offset + frame.payload_length]
    assert decode_payload(payload) == [(2, EpochSeen(3, 2))]
    verdict = judge(data, segment(4, 2))
    assert (verdict.next_sequence, verdict.cuts, verdict.drops) == (6, (), ())


def test_bodies_come_back():
    batch = [(7, BodyKept(1, DISK, b"\x00\xff" * 9))]
    data = header() + encode_batch(batch, 1, SALT)
    (frame,) = scan_segment(data, 1).frames
    assert decode_payload(data[frame.payload_offset : frame.payload_offset + frame.payload_length]) == batch


def test_an_empty_journal_and_an_empty_segment():
    assert decide([], DISK).next_sequence == 1
    assert judge(segment(1, 0)).next_sequence == 1
    assert judge(segment(9, 0)).next_sequence == 9


@pytest.mark.parametrize("cut", range(8, 36, 3))
def test_a_short_last_frame_is_torn(cut: int):
    verdict = judge(segment(1, 3, tail=0)[:-cut])
    assert verdict.next_sequence == 3
    assert [(number, offset) for number, offset, _ in verdict.cuts] == [(5, offset_of(3))]


@pytest.mark.parametrize("at", range(0, 52, 3))
def test_a_flipped_bit_in_the_last_frame_is_torn(at: int):
    verdict = judge(flip(segment(1, 3), offset_of(3) + at))
    # Padding after the payload is not covered by any checksum, and means nothing.
    assert verdict.next_sequence in (3, 4)
    if verdict.next_sequence == 3:
        assert verdict.cuts


def test_a_last_frame_whose_payload_never_reached_the_disk_is_torn():
    data = segment(1, 3)
    at = offset_of(3) + 28
    assert judge(data[:at] + bytes(len(data) - at)).next_sequence == 3


def test_a_last_frame_whose_header_never_reached_the_disk_is_torn():
    data = segment(1, 3)
    at = offset_of(3)
    verdict = judge(data[:at] + bytes(28) + data[at + 28 :])
    assert verdict.next_sequence == 3


@pytest.mark.parametrize("at", [0, 5, 9, 15, 27, 28, 33])
def test_a_flipped_bit_before_the_last_frame_is_corruption(at: int):
    with pytest.raises(JournalCorrupt) as caught:
        judge(flip(segment(1, 3), offset_of(2) + at))
    assert caught.value.extra == {"segment": 5, "offset": offset_of(2)}
    assert "move the folder away" in caught.value.detail


def test_a_zeroed_frame_before_the_last_is_corruption():
    data = segment(1, 3)
    start, end = offset_of(2), offset_of(3)
    with pytest.raises(JournalCorrupt):
        judge(data[:start] + bytes(end - start) + data[end:])


def test_damage_at_the_end_of_an_older_segment_is_corruption():
    with pytest.raises(JournalCorrupt):
        judge(flip(segment(1, 3), offset_of(3) + 30), segment(4, 0))


def test_a_missing_segment_is_corruption():
    scans = [scan_segment(segment(1, 2), 1), scan_segment(segment(3, 2), 3)]
    with pytest.raises(JournalCorrupt):
        decide(scans, DISK)


def test_missing_batches_between_segments_are_corruption():
    with pytest.raises(JournalCorrupt):
        judge(segment(1, 2), segment(4, 2))


def test_an_unfinished_new_segment_is_dropped():
    assert judge(segment(1, 2), bytes(8192)).drops == (6,)
    assert judge(segment(1, 2), b"").drops == (6,)
    assert judge(segment(1, 2), header(3)[:50]).drops == (6,)


def test_a_damaged_header_before_frames_is_corruption():
    with pytest.raises(JournalCorrupt):
        judge(segment(1, 2), flip(segment(3, 1), 20))
    with pytest.raises(JournalCorrupt):
        judge(flip(segment(1, 2), 20), segment(3, 1))


def test_another_disks_segment_is_refused():
    with pytest.raises(JournalCorrupt):
        decide([scan_segment(segment(1, 1), 1)], DISK[:-1] + "W")


def test_a_body_cannot_pose_as_a_frame():
    posing = frames(99, 1, salt=bytes(16))[0]
    last = encode_batch([(2, BodyKept(1, DISK, posing))], 2, SALT)
    data = header() + frames(1, 1)[0] + flip(last, len(last) - 20)
    assert judge(data).next_sequence == 2


def test_the_tail_of_a_cut_batch_of_the_same_number_is_no_later_one():
    data = segment(1, 2)
    assert judge(data[: offset_of(2)] + bytes(8) + frames(2, 1)[0] + bytes(64)).next_sequence == 2
