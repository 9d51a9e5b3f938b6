"""Small help for tests of what goes to an archive."""

from collections.abc import AsyncIterator, Iterable

from archive.targets.interface import Stored


async def parts_of(content: bytes, size: int = 64 * 1024) -> AsyncIterator[bytes]:
    """In parts of that size."""
    for at in range(0, len(content), size):
        yield content[at : at + size]


async def collect(pieces: AsyncIterator[bytes]) -> bytes:
    """All of it."""
    return b"".join([piece async for piece in pieces])


def names_of(stored: Iterable[Stored]) -> list[str]:
    """As they are told."""
    return [each.name for each in stored]
