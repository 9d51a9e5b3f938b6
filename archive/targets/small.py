"""Small objects of a target, each read and stored as a whole, and lists of names."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Protocol

from amberblob.errors import ArchiveDamaged
from archive.closing import closing
from archive.targets.interface import Stored, Target

PAGE = 1000


class Storing(Protocol):
    """The part of a :class:`~archive.targets.interface.Target` that stores."""

    async def put(self, name: str, parts: AsyncIterable[bytes]) -> Stored: ...


async def whole(target: Target, name: str, size_max: int) -> bytes:
    """A small object, read as a whole. Raises as ``Target.read`` does, and ArchiveDamaged if it is larger than it can be."""
    data = bytearray()
    async with closing(target.read(name)) as pieces:
        async for piece in pieces:
            data += piece
            if len(data) > size_max:
                raise ArchiveDamaged(f"{name} is larger than {size_max} bytes: it is not what was stored.")
    return bytes(data)


async def store(target: Storing, name: str, data: bytes) -> None:
    """Store a small object. Raises as ``Target.put`` does."""

    async def parts() -> AsyncIterator[bytes]:
        yield data

    await target.put(name, parts())


async def list_names(target: Target, prefix: str) -> list[str]:
    """Every name that begins with ``prefix``, ascending. Raises as ``Target.page``."""
    return [stored.name for stored in await list_objects(target, prefix)]


async def list_objects(target: Target, prefix: str) -> list[Stored]:
    """Every object whose name begins with ``prefix``, ascending. Raises as ``Target.page``."""
    found: list[Stored] = []
    while page := await target.page(prefix, found[-1].name if found else "", PAGE):
        found += page
    return found
