import random

import pytest

from amberblob.errors import WireError
from amberblob.limits import FRAME_BYTES_MAX
from node.transport import frames
from node.transport.frames import FrameReader, Kind
from node.transport.windows import ReceiveWindow, SendWindow


def feed(reader: FrameReader, data: bytes, rng: random.Random | None = None) -> None:
    while data:
        space = reader.space()
        size = min(len(space), len(data), rng.randint(1, 5000) if rng else len(data))
        space[:size] = data[:size]
        data = data[size:]
        reader.advance(size)


@pytest.mark.parametrize("seed", range(5))
def test_any_cut_gives_the_same_frames(seed):
    rng = random.Random(seed)
    sent = [
        (rng.randint(1, 200), rng.randint(0, frames.STREAM_MAX), rng.randbytes(rng.choice((0, 1, 90, 4000, 70_000))))
        for _ in range(60)
    ]
    got = []
    reader = FrameReader(lambda kind, stream, payload: got.append((kind, stream, bytes(payload))), buffer_bytes=4096)
    feed(reader, b"".join(frames.header(k, s, len(p)) + p for k, s, p in sent), rng)
    assert got == sent
    assert len(reader.space()) >= 1


def test_the_buffer_grows_for_one_frame_only():
    reader = FrameReader(lambda *_: None, buffer_bytes=1024)
    feed(reader, frames.header(Kind.DATA, 1, 100_000) + bytes(100_000))
    assert len(reader.space()) == 1024


def test_too_large_a_frame_is_refused_by_its_header():
    reader = FrameReader(lambda *_: None, buffer_bytes=1024)
    with pytest.raises(WireError):
        feed(reader, frames.HEADER.pack(FRAME_BYTES_MAX + 1, Kind.DATA, 1))
    with pytest.raises(WireError):
        frames.header(Kind.DATA, 1, FRAME_BYTES_MAX + 1)


def test_a_budget_ends():
    reader = FrameReader(lambda *_: None, buffer_bytes=1024, budget_bytes=20)
    feed(reader, bytes(20))
    with pytest.raises(WireError):
        reader.space()


def test_stop_delivers_nothing_more():
    got = []

    def deliver(kind: int, stream: int, payload: memoryview) -> None:
        got.append(kind)
        reader.stop()

    reader = FrameReader(deliver, buffer_bytes=1024)
    feed(reader, frames.header(1, 0, 0) + frames.header(2, 0, 0))
    assert got == [1]


@pytest.mark.parametrize("name", ["", "r-1", "ü" * 200])
def test_request_payload(name):
    request_id, message = frames.unpack_request(memoryview(frames.pack_request(name, b"message")))
    assert bytes(message) == b"message"
    assert name.startswith(request_id.rstrip("�"))


@pytest.mark.parametrize("payload", [b"", b"\x05abc", b"\xff" * 300, b"\x00"])
def test_bad_request_payload(payload):
    with pytest.raises(WireError):
        frames.unpack_request(memoryview(payload))


def test_bad_numbers():
    for unpack in (frames.unpack_credit, frames.unpack_time):
        with pytest.raises(WireError):
            unpack(memoryview(b"123"))


def test_windows_agree_and_never_overrun():
    rng = random.Random(1)
    send, receive = SendWindow(1000), ReceiveWindow(1000)
    waiting: list[int] = []
    for _ in range(5000):
        if send.credit_bytes and rng.random() < 0.6:
            size = rng.randint(1, send.credit_bytes)
            send.spend(size)
            receive.receive(size)
            waiting.append(size)
        elif waiting and (credit := receive.take(waiting.pop(0))):
            send.grant(credit)
    assert receive.unread_bytes_peak <= 1000


def test_windows_refuse_cheats():
    with pytest.raises(WireError):
        SendWindow(1000).grant(1)
    with pytest.raises(WireError):
        ReceiveWindow(1000).receive(1001)
    with pytest.raises(WireError):
        ReceiveWindow(1000).receive(0)
