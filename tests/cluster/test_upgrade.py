"""Two checkouts, one cluster: nodes of the version before and of this one serve together, and are upgraded one at a time under load."""

from __future__ import annotations

import asyncio
import random
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from amberblob import AsyncClient
from amberblob.wire import WIRE_VERSIONS
from tests.cluster.harness import KIB, MIB, ROOT, Api, Cluster, api_of, content, etag_of, until

PREVIOUS = "8ecc31d"
"""The version before: the last commit without what this version changed. rfc/0015 says when it is moved."""
PREVIOUS_WIRE_VERSION = 1

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def missing(why: str) -> None:
    """Skip, also where everything else must run: how much history a checkout has is not the program's to say."""
    pytest.skip(
        f"{why} This test needs the commit {PREVIOUS}: `git fetch --unshallow`, or clone with the whole history."
    )


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the version before, in a folder of its own."""
    folder = tmp_path_factory.mktemp("previous")
    archive = folder / "code.tar"
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", f"--output={archive}", PREVIOUS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    except FileNotFoundError:
        missing("git is not installed.")
    if done.returncode != 0:
        missing(f"git says: {done.stderr.strip()}.")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "code", filter="data")
    return folder / "code"


@dataclass
class Load:
    """Clients that write, read back and delete until they are told to end. They repeat what is refused; any error ends the test."""

    client: AsyncClient
    written: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By path: the version that was acknowledged last, and its etag; the etag is empty when the path was deleted after it."""
    operations: int = 0
    ended: bool = False

    async def work(self, who: int) -> None:
        chance = random.Random(f"upgrade-{who}")
        while not self.ended:
            path = f"upgrade/{who}/{chance.randrange(25)}"
            size = chance.choice((10, 3 * KIB, 70 * KIB, 300 * KIB))
            data = content(f"{path}-{self.operations}", size)
            version, etag = self.written.get(path, (0, ""))
            if chance.random() < 0.15 and etag:
                await self.client.delete(path)
                self.written[path] = (version, "")
            elif chance.random() < 0.5 and etag:
                assert etag_of(await self.client.get_bytes(path)) == etag, path
            else:
                info = await self.client.put(path, data)
                assert info.version > version, f"{path}: version {info.version} after {version}"
                self.written[path] = (info.version, etag_of(data))
            self.operations += 1
            await asyncio.sleep(0)

    async def goes_on(self, count: int = 30) -> None:
        """Until so many more operations were done."""
        wanted = self.operations + count
        await until(lambda: self.operations >= wanted, f"{count} more operations", deadline_s=120)


@asynccontextmanager
async def load_on(cluster: Cluster) -> AsyncIterator[Load]:
    async with AsyncClient(cluster.endpoints, timeout_s=60) as client, asyncio.TaskGroup() as group:
        load = Load(client)
        for who in range(4):
            group.create_task(load.work(who))
        try:
            yield load
        finally:
            load.ended = True


def events(cluster: Cluster, node: int, event: str) -> list[dict[str, Any]]:
    return [line for line in cluster.log_lines(node) if line.get("event") == event]


def spoken(cluster: Cluster, node: int) -> dict[str, int]:
    """By peer: the wire version that this node agreed on with it last."""
    return {line["peer"]: line["wire_version"] for line in events(cluster, node, "peer connected")}


async def through_each(cluster: Cluster, name: str) -> None:
    """What one node takes, each node gives: small and large, overwritten and deleted, in the listing too."""
    async with api_of(cluster) as api:
        for writer in range(3):
            for size in (5, 100 * KIB, 9 * MIB):
                path, data = f"{name}/{writer}/{size}", content(f"{name}-{writer}-{size}", size)
                put = await api.put(path, data, node=writer)
                again = await api.put(path, data[::-1], node=(writer + 1) % 3)
                assert (put.json["version"], again.json["version"]) == (1, 2)
                for reader in range(3):
                    assert (await api.get(path, node=reader)).body == data[::-1]
                    assert (await api.get(path, query="version=1", node=reader)).body == data
            await api.put(f"{name}/{writer}/gone", b"x", node=writer)
            await api.delete(f"{name}/{writer}/gone", node=(writer + 2) % 3)
        for reader in range(3):
            listed = {row["path"] for row in (await api.page(prefix=f"{name}/", node=reader))["objects"]}
            assert listed == {f"{name}/{writer}/{size}" for writer in range(3) for size in (5, 100 * KIB, 9 * MIB)}


async def everything_is_there(cluster: Cluster, load: Load) -> None:
    async with api_of(cluster) as api:
        for path, (version, etag) in load.written.items():
            for node in range(3):
                if etag:
                    got = await api.get(path, node=node)
                    assert (got.version, etag_of(got.body)) == (version, etag), path
                else:
                    await api.get(path, expect=404, node=node)


async def test_upgraded_one_at_a_time_under_load(previous: Path, make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster()
    for index in (0, 1):
        cluster.nodes[index].code = previous
    cluster.start_all()
    await cluster.wait_ready()
    for node in cluster.nodes:
        assert Path(f"/proc/{node.pid}/cwd").resolve() == node.code.resolve()
    both = {"node-1": PREVIOUS_WIRE_VERSION, "node-2": PREVIOUS_WIRE_VERSION}
    await until(lambda: spoken(cluster, 2) == both, "the newer one speaks as the older ones do")
    await through_each(cluster, "mixed")

    async with load_on(cluster) as load:
        await load.goes_on()
        for index in (0, 1):
            # The clients go on meanwhile: what is under way can end.
            assert await asyncio.to_thread(cluster.stop, index) == 0
            await load.goes_on()
            cluster.nodes[index].code = ROOT
            cluster.start(index)
            await cluster.wait_ready()
            await load.goes_on()
    assert load.operations > 100
    for index in range(3):
        others = {node.name for node in cluster.nodes} - {cluster.nodes[index].name}
        newest = dict.fromkeys(others, WIRE_VERSIONS.newest)
        await until(lambda index=index, newest=newest: spoken(cluster, index) == newest, "all speak the newest version")
        assert not events(cluster, index, "peer refused") and not events(cluster, index, "refused by peer")
    await everything_is_there(cluster, load)
    await through_each(cluster, "after")


async def is_ready(api: Api, node: int) -> bool:
    try:
        return (await api("GET", "/readyz", node=node)).status == 200
    except aiohttp.ClientError:
        return False


async def test_an_unknown_wire_version_is_refused_with_a_word_that_helps(
    previous: Path, make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """A node so new that it has no version in common with the others: the others go on, and all logs say what to do."""
    later = tmp_path / "later"
    later.mkdir()
    for package in ("amberblob", "node", "registry", "chunkstore", "antientropy", "archive"):
        subprocess.run(["cp", "-r", str(ROOT / package), str(later / package)], check=True)
    with (later / "amberblob" / "wire.py").open("a") as wire:
        wire.write("\n\nWIRE_VERSIONS = WireVersions(8, 9)\n")
    cluster = make_cluster()
    cluster.nodes[0].code = previous
    cluster.nodes[2].code = later
    cluster.start_all()
    await until(lambda: events(cluster, 2, "refused by peer"), "the refusal in the log")
    for index in (0, 1):
        await until(lambda index=index: events(cluster, index, "peer refused"), "the refusal in the others' logs")
    for index, event in ((0, "peer refused"), (1, "peer refused"), (2, "refused by peer")):
        [reason] = {line["reason"] for line in events(cluster, index, event)}
        assert reason == "wire-version"
    assert any("Upgrade node-2" in line["detail"] for line in events(cluster, 1, "peer refused"))
    async with api_of(cluster) as api:
        for index in (0, 1):
            await until(lambda index=index: is_ready(api, index), f"node {index} ready")
        await api.put("a", b"1", node=0)
        assert (await api.get("a", node=1)).body == b"1"
        await api.get("a", node=2, expect=503)
