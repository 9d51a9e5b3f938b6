"""What nobody needs any more goes from the bucket, and what somebody spoilt there is found: real nodes, a real registry, a real S3 server."""

from __future__ import annotations

import pytest

from tests.cluster.harness import KIB, api_of, content, until
from tests.cluster.test_archive import SLOTS, Cold, MakeCluster, all_there, archive, cold, moto, put_all

__all__ = ["cold", "moto"]
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


async def test_deleted_objects_go_from_the_bucket_and_damage_is_found(make_cluster: MakeCluster, cold: Cold) -> None:
    cluster = make_cluster(slot_count=SLOTS)
    for node in cluster.nodes:
        node.settings["archive"] = cold.section(({"action": "archive"},))
        node.settings["retention"] = {"keep": 0, "stub_keep": 0, "check_every_s": 0.2}
        node.settings["storage"]["chunk_size"] = "64KiB"
        node.write_config()
    cluster.start_all()
    await cluster.wait_ready()
    dying = {f"dying/{number}": content(f"d{number}", 70 * KIB) for number in range(12)}
    staying = {f"staying/{number}": content(f"s{number}", 70 * KIB) for number in range(4)}
    async with api_of(cluster) as api:
        await put_all(api, dying)
        await archive(cluster, "run")
        first = set(cold.packs())
        await put_all(api, staying)
        await archive(cluster, "run")
        second = set(cold.packs()) - first
        assert first and second
        for path in dying:
            await api.delete(path)

        async def collected() -> bool:
            await archive(cluster, "run")  # its export is what the next gc goes by
            await archive(cluster, "gc")
            return not first & set(cold.packs())

        await until(collected, "what was deleted has gone from the bucket", deadline_s=240)
        assert set(cold.packs()) == second
        await all_there(api, staying)

        spoilt = min(second)
        cold.s3.client().put_object(Bucket=cold.bucket, Key=spoilt, Body=b"something else")
        told = await archive(cluster, "verify", expect=1)
        assert spoilt.removeprefix("cold/") in str(told) and "staying/" in str(told)
        await archive(cluster, "run")
        await archive(cluster, "verify")
        await all_there(api, staying)
