"""Which paths a slot has never seen: a Bloom filter over a superset of its paths. Pure, and the loop's own.

A path that is new costs no question to the database: most writes of a store that grows are of new paths.

**Why it never says "new" of a path that is not.** A filter may say so only when every path of the slot is in it: those
in the slot's database, and those that memory took in and the database has yet to get.

* A slot without any state at start has neither, so its filter begins empty and complete; every path is added before its
  entry is taken into memory, whatever memory knows of its register (``blind`` or not). Nothing ever takes a bit out.
* The filter of a slot that was loaded begins incomplete: it takes paths, and says nothing. Let T be the journal position
  of the slot at that moment. What is applied later is added by the loop. What was applied up to T is read from the
  database by a walk over all paths that begins only once the database holds everything up to T (:mod:`filling`); a
  walk in ascending order meets every path that was there when it began, but for those whose row was deleted meanwhile: they
  were forgotten (:class:`amberblob.mutations.Forgotten`), and are new indeed. What
  comes in behind its back was applied after T. What it found becomes the first layer, and only then the filter speaks.
* What a start replays is in the databases before the store is open: a part of "in the database".
* A slot's database that is lost takes paths away and brings none that were not applied: what its successor holds was
  in the database before the walk began, or met by the walk, or applied after T. A superset stays one. The walk goes
  on in the successor, which holds what waited to be applied (after T), and what was lost is rightly unknown there.
* False alarms (a path that is new is called known) cost a question and nothing else.

**Memory.** Twelve bits a path in layers that grow fourfold, so between 12 and 60 bits a path; all filters of a disk
together at most ``FILTER_BYTES_MAX``: a slot that would go beyond loses its filter until the next start, and asks.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

FILTER_BYTES_MAX = 64 << 20
"""Of all filters of one disk."""

_BITS_PER_PATH = 12
_FIRST_BITS = 1 << 12
_GROWTH = 4
_MIX = 0x9E3779B97F4A7C15
_LOW = 0xFFFFFFFF


class Layer:
    """One Bloom filter: four probes, a power of two of bits; about 0.7 % false alarms when full."""

    __slots__ = ("bits", "left", "mask")

    def __init__(self, size_bits: int) -> None:
        self.bits = bytearray(size_bits >> 3)
        self.mask = size_bits - 1
        self.left = size_bits // _BITS_PER_PATH
        """How many more paths it should take."""

    def add(self, crc: int) -> None:
        """Take in a path by the CRC-32 of its UTF-8."""
        mixed = crc * _MIX
        at, step = (mixed >> 32) & _LOW, (mixed & _LOW) | 1
        bits, mask = self.bits, self.mask
        for probe in (at, at + step, at + 2 * step, at + 3 * step):
            probe &= mask
            bits[probe >> 3] |= 1 << (probe & 7)
        self.left -= 1


def crc_of(path: str) -> int:
    """What a filter takes of a path. (Not ``hash()``: that differs from process to process.)"""
    return zlib.crc32(path.encode())


def layer_for(count: int) -> Layer:
    """An empty layer with room for ``count`` paths and half as many again."""
    size_bits = _FIRST_BITS
    while size_bits < count * _BITS_PER_PATH * 3 // 2:
        size_bits *= 2
    return Layer(size_bits)


class Budget:
    """Bytes that the filters of one disk may still take."""

    def __init__(self, left_bytes: int = FILTER_BYTES_MAX) -> None:
        self.left_bytes = left_bytes

    def take(self, size_bytes: int) -> bool:
        """Whether there was as much left; then it is taken."""
        if size_bytes > self.left_bytes:
            return False
        self.left_bytes -= size_bytes
        return True


class PathFilter:
    """The paths of one slot. Says nothing until it is complete."""

    __slots__ = ("_budget", "_layers", "complete", "given_up")

    def __init__(self, budget: Budget, *, complete: bool) -> None:
        self._budget = budget
        self._layers: list[Layer] = []
        self.complete = complete
        self.given_up = False

    def is_new(self, path: str) -> bool:
        """Whether the path was surely never applied in this slot."""
        if not self.complete:
            return False
        mixed = zlib.crc32(path.encode()) * _MIX
        at, step = (mixed >> 32) & _LOW, (mixed & _LOW) | 1
        for layer in self._layers:
            bits, mask, probe = layer.bits, layer.mask, at
            for _ in range(4):
                place = probe & mask
                if not bits[place >> 3] >> (place & 7) & 1:
                    break
                probe += step
            else:
                return False
        return True

    def add(self, path: str) -> bool:
        """Take in a path that is applied; whether it was surely new."""
        if self.given_up:
            return False
        is_new = self.is_new(path)
        if self.complete and not is_new:
            return False
        layers = self._layers
        if not layers or layers[-1].left <= 0:
            size_bits = (layers[-1].mask + 1) * _GROWTH if layers else _FIRST_BITS
            if not self._budget.take(size_bits >> 3):
                self.give_up()
                return is_new
            layers.append(Layer(size_bits))
        layers[-1].add(crc_of(path))
        return is_new

    def begin_with(self, layer: Layer) -> None:
        """All that the database held is in ``layer``: from now on the filter speaks."""
        if self.given_up or not self._budget.take(len(layer.bits)):
            self.give_up()
            return
        self._layers.insert(0, layer)
        self._layers.sort(key=lambda one: one.mask)
        self.complete = True

    def give_up(self) -> None:
        """Say nothing any more, and let go of the memory."""
        self._budget.left_bytes += sum(len(layer.bits) for layer in self._layers)
        self._layers = []
        self.complete, self.given_up = False, True


def fill(layer: Layer, crcs: Iterable[int]) -> None:
    """Put paths into a layer that nobody else sees yet; on any thread."""
    for crc in crcs:
        layer.add(crc)
