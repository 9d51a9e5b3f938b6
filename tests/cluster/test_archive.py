"""The archive with real nodes, the real command line and a real HTTP server of S3 (rfc/0016): what an operator lives through.

S3 stands behind a gate that a test may shut. The bucket is looked at, and spoilt, by a plain client of S3.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.archive_servers import S3Server, moto_server
from tests.cluster.commands import amberblob
from tests.cluster.gate import Gate, gate
from tests.cluster.harness import KIB, MIB, ROOT, Api, Cluster, api_of, content, etag_of, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

MakeCluster = Callable[..., Cluster]
Rules = Sequence[Mapping[str, Any]]
SLOTS = 8
EVERYTHING = ({"action": "archive-and-evict"},)
NOT_THERE = {"archive-unavailable"}


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@dataclass
class Cold:
    """A bucket of the test's own, and the gate before it."""

    s3: S3Server
    bucket: str
    gate: Gate

    def keys(self) -> list[str]:
        """Of the whole bucket."""
        pages = self.s3.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [each["Key"] for page in pages for each in page.get("Contents", [])]

    def packs(self) -> list[str]:
        """Of what holds chunks."""
        return [key for key in self.keys() if key.startswith(("cold/packs/", "cold/chunks/"))]

    def section(self, rules: Rules, **changes: Any) -> dict[str, Any]:
        """``[archive]`` of a node. Nothing is kept in the cache, so that a read is one of the archive; its packs need not be a day old."""
        return {
            "target": f"s3://{self.bucket}/cold",
            "endpoint": self.gate.url,
            "region": self.s3.region,
            "addressing": "path",
            "credentials_file": str(self.s3.credentials_file),
            "timeout_s": 30.0,
            "tries": 2,
            "cache": 0,
            "grace": 0,
            "rules": list(rules),
            **changes,
        }

    def cluster(self, make: MakeCluster, rules: Rules, **changes: Any) -> Cluster:
        """Three nodes that archive here, started. Chunks of 64 KiB: a small object has many."""
        cluster = make(slot_count=SLOTS)
        for node in cluster.nodes:
            node.settings["archive"] = self.section(rules, **changes)
            node.settings["storage"]["chunk_size"] = "64KiB"
            node.write_config()
        cluster.start_all()
        return cluster


@pytest.fixture
async def cold(moto: S3Server) -> AsyncIterator[Cold]:
    async with gate(moto.endpoint) as door:
        yield Cold(moto, moto.make_bucket(), door)


async def archive(cluster: Cluster, *arguments: str, expect: int = 0, node: int = 0) -> Any:
    """``amberblob archive … --json``: its document."""
    status, out, err = await amberblob(cluster, "archive", *arguments, "--json", node=node)
    assert status == expect, f"archive {arguments}: {status}\n{out}\n{err}"
    return json.loads(out) if out else {}


def bodies(prefix: str, count: int) -> dict[str, bytes]:
    """Objects of all kinds: in the database, one chunk, many chunks; some shrink, two are equal."""
    made = {}
    for number in range(count):
        size = (300, 20 * KIB, 200 * KIB, 65 * KIB)[number % 4]
        made[f"{prefix}/{number:03}"] = (
            b"text " * (size // 5) if number % 3 == 0 else content(f"{prefix}{number}", size)
        )
    return made


async def put_all(api: Api, objects: Mapping[str, bytes]) -> None:
    for path, body in objects.items():
        await api.put(path, body)


async def all_there(api: Api, objects: Mapping[str, bytes], nodes: Sequence[int] = (0, 1, 2)) -> None:
    """Through each of these nodes."""
    for node in nodes:
        for path, body in objects.items():
            assert (await api.get(path, node=node)).body == body, path


async def evicted(api: Api, count: int) -> None:
    """Until so many copies of versions live by their archive rows, and no more."""

    async def seen() -> bool:
        found: int = (await api("GET", "/archive")).json["total"]["evicted"]
        assert found <= count
        return found == count

    await until(seen, f"{count} copies evicted", deadline_s=180.0)


async def test_cold_bytes_go_and_come_back_through_every_node(make_cluster: MakeCluster, cold: Cold):
    rules = ({"action": "archive-and-evict"}, {"prefix": "warm/", "action": "keep"})
    cluster = cold.cluster(make_cluster, rules)
    await cluster.wait_ready()
    async with api_of(cluster) as api:
        old, warm = bodies("cold", 12), bodies("warm", 2)
        await put_all(api, {**old, **warm})
        blobs = {path: (await api.head(path)).blob_id for path in old}

        plan = await archive(cluster, "run", "--dry-run")
        assert cold.packs() == [], "a dry run sends nothing"
        by_prefix = {rule["prefix"]: rule for rule in plan["savings"]}
        assert by_prefix[""]["send_versions"] == 12 and by_prefix[""]["send_bytes"] == sum(map(len, old.values()))
        assert by_prefix["warm/"]["send_versions"] == 0

        done = await archive(cluster, "run")
        assert done["state"] == "done" and not done["failures"]
        await evicted(api, 3 * 12)
        assert 1 <= len(cold.packs()) <= 3, "small chunks go together: a pack per uploading node at most"
        for path, blob_id in blobs.items():
            assert not any(cluster.chunk_files(node, path, blob_id) for node in range(3)), "no disk has it any more"
        await all_there(api, {**old, **warm})
        part = (await api.get("cold/002", headers={"Range": "bytes=70000-140000"}, expect=206)).body
        assert part == old["cold/002"][70000:140001]

        await cold.gate.shut()
        answer = await api("GET", "/objects/cold/002")
        assert answer.status == 503 and answer.problem in NOT_THERE, answer
        await all_there(api, warm)
        await api.put("warm/new", b"new")
        assert (await api.head("cold/002")).etag == etag_of(old["cold/002"])

        async def noticed() -> bool:
            nodes = (await api("GET", "/archive", node=0)).json["nodes"]
            return any(node["reached"] is False for node in nodes)

        await until(noticed, "a node knows that the archive is away")
        told = await archive(cluster, "status", expect=1)
        assert any("archive-unavailable" in problem["what"] for problem in told["problems"]), told["problems"]
        for name, labels in alerts_of_the_archive():

            async def shown(name: str = name, labels: str = labels) -> bool:
                metrics = (await api("GET", "/metrics", node=0)).body.decode()
                return bool(re.search(rf"^{name}[{{ ].*{re.escape(labels)}", metrics, re.MULTILINE))

            await until(shown, f"{name} {labels} among the metrics")

        await cold.gate.open()
        for node in range(3):
            await until(lambda node=node: _answers(api, "cold/002", node), "reads come back by themselves")
        await all_there(api, old)


async def _answers(api: Api, path: str, node: int) -> bool:
    return (await api("GET", f"/objects/{path}", node=node)).status == 200


def alerts_of_the_archive() -> set[tuple[str, str]]:
    """Every metric of the archive that an alert asks for, with its label."""
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"]
    found = {
        match
        for group in groups
        for rule in group["rules"]
        for match in re.findall(r'\b(amberblob_archive_\w+)(?:\{(state="\w+")\})?', rule["expr"])
    }
    assert len(found) >= 2
    return found


async def test_a_node_that_dies_in_the_middle_of_a_run_is_taken_over(make_cluster: MakeCluster, cold: Cold):
    """SIGKILL of an uploading node: the others do its slots too, and nothing is lost, there or when it is back."""
    cluster = cold.cluster(make_cluster, EVERYTHING, parallel=1)
    await cluster.wait_ready()
    async with api_of(cluster) as api:
        objects = {f"cold/{number:03}": content(number, 128 * KIB) for number in range(32)}
        await put_all(api, objects)
        job = (await archive(cluster, "run", "--detach", "--rate", "100KiB"))["job"]

        async def sending() -> bool:
            nodes = (await api("GET", "/archive", node=0)).json["nodes"]
            return any(node["node"] == "node-2" and node["traffic"].get("sent_bytes", 0) > 100 * KIB for node in nodes)

        await until(sending, "node-2 uploads")
        assert (await api("GET", f"/archive/jobs/{job}", node=0)).json["state"] == "running"
        cluster.kill(1)
        await archive(cluster, "stop", job)  # its rate; what it did stays
        done = await archive(cluster, "run")
        assert done["state"] == "done" and not done["failures"], done
        assert done["slots_done"] == SLOTS, "those that node-2 would have looked after, too"
        await all_there(api, objects, nodes=(0, 2))
        cluster.start(1)
        await cluster.wait_ready()
        await archive(cluster, "run")
        await evicted(api, 3 * len(objects))
        await all_there(api, objects)


async def test_wiped_disks_come_back_from_the_bucket_alone(make_cluster: MakeCluster, cold: Cold):
    """Every archived object, version and tombstone, in a cluster of other nodes, another secret, and other slots."""
    cluster = cold.cluster(make_cluster, EVERYTHING)
    await cluster.wait_ready()
    async with api_of(cluster) as api:
        await put_all(api, bodies("a", 8))
        await api.put(
            "a/001", content("second", 70 * KIB), headers={"X-Amber-Meta-Owner": "me", "Content-Type": "text/plain"}
        )
        await api.put("a/002", b"third")
        await api.put("a/empty", b"")
        await api.delete("a/003")
        await api.delete("a/002", query="version=1")
        await api.put("a/ü ?#", b"a name to be encoded")
        assert (await archive(cluster, "run"))["state"] == "done"
        exported = await archive(cluster, "export")
        assert exported["state"] == "done" and not exported["failures"]
        await api.put("a/late", b"written after the export")
        before = await account_of(api)
    cluster.close()

    other = cold.cluster(
        lambda **options: make_cluster(**{**options, "slot_count": 16, "secret": "another-secret-of-tests"}), ()
    )
    await other.wait_ready()
    async with api_of(other) as api:
        recovered = await archive(other, "recover")
        assert recovered["state"] == "done" and not recovered["failures"], recovered
        after = await account_of(api)
        assert before.pop("a/late") and after == before
        assert (await archive(other, "recover"))["state"] == "done", "once more changes nothing"
        assert await account_of(api) == before
        await api.put("a/001", b"goes on")
        assert (await api.get("a/001")).version == 3


async def account_of(api: Api) -> dict[str, Any]:
    """All that a client sees, deleted and old versions too: what is told of each, and that its content is right."""
    account: dict[str, Any] = {}
    listed, _, _ = await api.list_all(tombstoned=1)
    for entry in listed:
        path = entry["path"]
        rows = await api.versions(path)
        told = []
        for row in rows:
            body = (await api.get(path, query=f"version={row['version']}")).body  # each through another node
            assert etag_of(body) == row["etag"], (path, row)
            told.append(
                {
                    name: row.get(name)
                    for name in ("version", "size", "etag", "created_at", "content_type", "meta", "tombstoned_at")
                }
            )
        head = await api("GET", "/objects/" + _quoted(path))
        account[path] = (head.status, head.headers.get("ETag"), told)
    return account


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(path, safe="/")


async def test_a_bucket_of_others_is_taken_over(make_cluster: MakeCluster, cold: Cold):
    source, client = cold.s3.make_bucket(), cold.s3.client()
    theirs = {f"2024/{number:02}.jpg": content(f"photo {number}", 30 * KIB) for number in range(10)}
    theirs["2024/large"] = content("large", 3 * MIB)
    for key, body in theirs.items():
        client.put_object(Bucket=source, Key=key, Body=body, ContentType="image/jpeg")
    client.put_object(Bucket=source, Key="2023/other", Body=b"not asked for")
    cluster = cold.cluster(make_cluster, ())
    await cluster.wait_ready()
    async with api_of(cluster) as api:
        await api.put("old/2024/00.jpg", b"ours")
        done = await archive(cluster, "import", f"s3://{source}/2024/", "--to", "old/2024/", expect=1)
        assert done["state"] == "done" and done["failures"] == 1, done
        assert "old/2024/00.jpg" in done["problems"][0], "what is another object here stays, and that is said"
        listed, _, _ = await api.list_all(prefix="old/")
        assert [entry["path"] for entry in listed] == sorted(f"old/{key}" for key in theirs)
        assert (await api.get("old/2024/00.jpg")).body == b"ours", "what is here stays"
        expected = {f"old/{key}": body for key, body in theirs.items() if key != "2024/00.jpg"}
        await all_there(api, expected)
        part = await api.get("old/2024/large", headers={"Range": "bytes=1000000-1999999"}, expect=206)
        assert part.body == theirs["2024/large"][1_000_000:2_000_000]

        client.put_object(Bucket=source, Key="2024/05.jpg", Body=content("somebody else's", 30 * KIB))
        answer = await api("GET", "/objects/old/2024/05.jpg")
        assert answer.status == 503 and answer.problem == "archive-damaged", answer

        await archive(cluster, "restore", "--prefix", "old/2024/large")
        client.delete_object(Bucket=source, Key="2024/large")
        large = await api.get("old/2024/large")
        assert large.body == theirs["2024/large"] and large.etag == etag_of(large.body), "with its true hash"


async def test_write_through_is_acknowledged_only_when_archived(make_cluster: MakeCluster, cold: Cold):
    cluster = cold.cluster(make_cluster, ({"prefix": "safe/", "action": "write-through"},))
    await cluster.wait_ready()
    async with api_of(cluster) as api:
        objects = bodies("safe", 4)
        await put_all(api, objects)
        stored = len(cold.packs())
        assert stored, "they were sent before they were acknowledged"
        await api.put("other/1", content("other", 70 * KIB))
        assert len(cold.packs()) == stored, "no rule sends it"

        await cold.gate.shut()
        for path, size in (("safe/small", 100), ("safe/large", 300 * KIB)):
            answer = await api("PUT", f"/objects/{path}", data=content(path, size))
            assert answer.status == 503 and answer.problem in NOT_THERE, answer
            await api.absent(path)
        await api.put("other/2", b"goes on")
        await all_there(api, objects)
        assert [entry["path"] for entry in (await api.list_all(prefix="safe/"))[0]] == sorted(objects)

        await cold.gate.open()
        await until(lambda: _stored(api, "safe/small"), "writes come back by themselves")
        await all_there(api, {"safe/small": b"after all"})


async def _stored(api: Api, path: str) -> bool:
    return (await api("PUT", f"/objects/{path}", data=b"after all")).status == 201
