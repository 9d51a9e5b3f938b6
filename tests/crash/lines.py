"""What a scenario says, one line at a time: what it tries, and what the store acknowledged.

A line is written before something is tried, and another one after the store said that it is durable. So for
everything that is found afterwards there are two bounds: at least what was acknowledged, at most what was tried.
"""

from __future__ import annotations

import msgspec

from amberblob.ballot import Register
from amberblob.manifest import ChunkRef


class Started(msgspec.Struct, frozen=True, tag="started"):
    """A thread of the scenario began to run."""

    name: str
    pid: int
    tid: int


class Note(msgspec.Struct, frozen=True, tag="note"):
    """Something that the tests want to see happen, such as a segment that went."""

    what: str


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The store is open: the disk bears this id for good."""

    disk_id: str


class Trying(msgspec.Struct, frozen=True, tag="trying"):
    """The register may hold this from now on. ``bytes_here``: it is accepted with its bytes in place."""

    slot: int
    path: str
    register: Register
    bytes_here: bool = True


class Holds(msgspec.Struct, frozen=True, tag="holds"):
    """Durable: the register holds this, or something tried later."""

    slot: int
    path: str
    register: Register


class SlotHolds(msgspec.Struct, frozen=True, tag="slot-holds"):
    """Durable: the slot's own state is at least this."""

    slot: int
    ceiling: int = 0
    epoch: int = 0
    synced_epoch: int = 0
    version_floor: int = 0


class TryingForget(msgspec.Struct, frozen=True, tag="trying-forget"):
    """The stub of the path may be gone from now on."""

    slot: int
    path: str


class Forgot(msgspec.Struct, frozen=True, tag="forgot"):
    """Durable: nothing is known of the path any more."""

    slot: int
    path: str


class TryingBlob(msgspec.Struct, frozen=True, tag="trying-blob"):
    """A blob of these chunks comes in."""

    slot: int
    blob_id: str
    chunks: tuple[ChunkRef, ...]
    manifest_id: str | None = None


class BlobHolds(msgspec.Struct, frozen=True, tag="blob-holds"):
    """Durable: the blob's bytes are here."""

    slot: int
    blob_id: str


class ChunkHolds(msgspec.Struct, frozen=True, tag="chunk-holds"):
    """Durable: this chunk is here."""

    slot: int
    blob_id: str
    chunk: ChunkRef


class TryingDiscard(msgspec.Struct, frozen=True, tag="trying-discard"):
    """The blob may be gone from now on."""

    slot: int
    blob_id: str


class TryingSweep(msgspec.Struct, frozen=True, tag="trying-sweep"):
    """Every blob that nothing refers to may be gone from now on."""


class Discarded(msgspec.Struct, frozen=True, tag="discarded"):
    """Durable: the blob was given up and its bytes are gone."""

    slot: int
    blob_id: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The store said no."""

    step: str
    error: str
    text: str


class Broken(msgspec.Struct, frozen=True, tag="broken"):
    """The scenario itself saw the store break a rule."""

    why: str


class Closed(msgspec.Struct, frozen=True, tag="closed"):
    """close() returned."""


Line = (
    Started | Note | Opened | Trying | Holds | SlotHolds | TryingBlob | BlobHolds | ChunkHolds | TryingDiscard | TryingSweep | Discarded
    | TryingForget | Forgot | Refused | Broken | Closed
)  # fmt: skip

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def encode_line(line: Line) -> bytes:
    """One line, with its end."""
    return _encoder.encode(line) + b"\n"


def decode_lines(data: bytes) -> list[Line]:
    """Whole lines; what a kill cut off is no line."""
    return [_decoder.decode(line) for line in data.split(b"\n")[:-1]]
