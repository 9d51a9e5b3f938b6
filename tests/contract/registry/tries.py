"""Asking a registry again: it may just have been restarted, or be slow because the machine is."""

import asyncio
import contextlib

from amberblob.errors import RegistryUnavailable
from registry.interface import Registry
from tests.contract.registry.backends import LATE_S


async def until(condition, *, deadline_s: float = LATE_S):
    """Ask again until the answer is true, and return it."""
    async with asyncio.timeout(deadline_s):
        while True:
            answer = await condition()
            if answer:
                return answer
            await asyncio.sleep(0.02)


async def answered(call):
    """What a call tells; None when the registry is not reached, or too slow."""
    with contextlib.suppress(RegistryUnavailable):
        return await call
    return None


async def back_again(*registries: Registry) -> None:
    """Until these clients have reached it again."""
    for registry in registries:
        await until(lambda registry=registry: answered(registry.range("")))


async def create(registry: Registry, key: str, value: bytes = b"") -> int:
    """Set a key that is not there, until that is told; its revision. A try whose answer was lost may have made it."""

    async def made() -> int | None:
        revision = await answered(registry.compare_and_set(key, 0, value))
        if revision is None and (entry := await answered(registry.get(key))) is not None:
            revision = entry.revision
        return revision

    return await until(made)
