"""The clients of the worlds: what they rely on when they repeat a write elsewhere."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from sim.clients import PATIENCE_S, Client, NoAnswer
from sim.loop import Process, SimLoop
from sim.machine import Settings


class NeverLucky:
    """Chance that leaves a request running where it may."""

    def random(self) -> float:
        return 0.9


@pytest.mark.parametrize(("stands_still_s", "goes_on"), [(0.0, True), (4.0, True), (12.0, False), (20.0, False)])
def test_a_try_that_a_node_began_late_does_not_outlive_the_clients_patience(stands_still_s: float, goes_on: bool):
    """Seed 128: a node stood still for 12 s, and a write that was refused elsewhere meanwhile was done there all the same."""
    loop = SimLoop()
    try:
        process = Process("n1/1")
        settings = Settings(write_quorum=2, read_quorum=0)
        machine: Any = SimpleNamespace(
            process=process, parts=SimpleNamespace(objects=None), serving=True, settings=settings
        )
        world: Any = SimpleNamespace(loop=loop, shape=SimpleNamespace(latency_s=0.001), fired=Counter())
        ended: list[float] = []

        async def works(_: Any) -> None:
            try:
                await asyncio.sleep(100.0)
            finally:
                ended.append(loop.time())

        async def course() -> float:
            if stands_still_s:
                loop.pause(process)
                loop.call_later(stands_still_s, loop.resume, process)
            with pytest.raises(NoAnswer):
                await Client(world, NeverLucky()).at(machine, works)  # type: ignore[arg-type]
            gave_up_s = loop.time()
            await asyncio.sleep(10.0)
            return gave_up_s

        gave_up_s = loop.run_until_complete(course())
        assert gave_up_s == pytest.approx(PATIENCE_S, abs=0.1)
        assert all(end == pytest.approx(gave_up_s, abs=0.1) for end in ended)
        assert goes_on is (stands_still_s < PATIENCE_S and not ended)
    finally:
        loop.close()
