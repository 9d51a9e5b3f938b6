"""What the workers that keep a disk in order show of themselves."""

from __future__ import annotations

from amberblob.config import Duration, Keep, RetentionSection
from amberblob.metrics import Metrics
from antientropy.step import Did
from tests.unit.node.objects.kit import cluster, content, put


async def test_a_node_runs_them_with_what_the_operator_set_and_shows_what_they_did():
    async with cluster(retention=RetentionSection(keep=Keep(0), stub_keep=Duration(0))) as nodes:
        parts = nodes[1].parts
        assert set(parts.upkeep.workers()) <= set(parts.workers())
        assert {worker.name for worker in parts.upkeep.workers()} == {"scrub", "expirer", "garbage", "leaver"}
        metrics = Metrics()
        parts.upkeep.add_counts(metrics)
        path = nodes.path(1)
        for seed in range(3):
            await put(nodes[1], path, content(100, seed))
        await nodes.settle()
        for worker in (parts.upkeep.expirer, parts.upkeep.garbage):
            for _ in range(100):
                if await worker.step() is Did.NOTHING:
                    nodes.clock.ahead_s += min(worker.pause_s, 10.0)
            await nodes.settle()
        text, _ = metrics.expose()
        lines = text.decode().splitlines()
        assert "amberblob_retention_paths_expired_total 1.0" in lines
        assert "amberblob_garbage_blobs_total 2.0" in lines
        assert "amberblob_scrub_bytes_checked_total 0.0" in lines
