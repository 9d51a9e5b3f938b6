"""The registry of the worlds: what one machine changed, the others hear of whatever becomes of that machine."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

from registry.routes import ClusterInfo, Member, Route, RouteTable
from sim.loop import Process, SimLoop
from sim.registry import SimRegistry


def a_table() -> RouteTable:
    info = ClusterInfo(
        cluster_id="01ARZ3NDEKTSV4RRFFQ69G5FAV",
        name="sim",
        slot_count=1,
        replicas=2,
        chunk_bytes=65536,
        format_version=1,
        created_at_ms=0,
    )
    route = Route(slot=0, epoch=1, voters=(Member("n1", "lost"), Member("n2", "kept")))
    return RouteTable(cluster=info, routes=(route,), nodes={})


def test_news_outlives_the_machine_that_made_it():
    """Seeds 98, 126 and 142 stood still without it: n1 refused everything in an epoch that it never heard of."""
    loop = SimLoop()
    try:
        registry = SimRegistry(loop, Random(1), Counter(), lambda text: None, late_s=1.0)
        registry.begin(a_table())
        registry._seen = dict.fromkeys(("n1", "n2"), registry.table)
        process = Process("n1/2")

        async def incarnation_of(slot: int, named: str) -> str:
            return "blank"

        changing = loop.create_task(
            registry.readmit_for("n1")([0], incarnation_of, seen_epoch=lambda slot: 1), context=process.context()
        )
        loop.run_until_complete(changing)
        assert registry.table is not None and registry.table.route(0).epoch == 2
        loop.kill(process)
        loop.run_until_complete(asyncio.sleep(60.0))
        seen = registry.seen("n2")
        assert seen is not None and seen.route(0).epoch == 2
    finally:
        loop.close()
