"""The story: store, kill, go on, read back, change, look back, restore, bring back, compare."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from amberblob.client import AsyncClient, ObjectInfo
from amberblob.errors import DigestMismatch, NotFound
from demo.cluster import Cluster, Node
from demo.data import (
    Difference,
    Edition,
    Failed,
    Record,
    SourceFile,
    Tree,
    compare,
    edition_of,
    original,
    rewritten,
)
from demo.report import MB, Report, Step
from demo.traffic import CountingClient, Counts, for_each, together

STEPS = 15
"""Those of this module and the two that ``__main__`` does before it: the large file and the start of the cluster."""

BEGIN_REST_AT = 0.45
KILL_AT = 0.5
"""Parts of the large file that have been sent: when the small files join in, and when the node is killed."""

CHANGED_MAX = 100
RESTORED_MAX = 50
SAMPLE_MAX = 200
READY_TIMEOUT_S = 120.0
HEAL_PAUSE_S = 2.0
POLL_INTERVAL_S = 0.2
STEP_TIMEOUT_S = 300.0
SLOWEST_BYTES_PER_S = 1_000_000
"""A step that is slower than this, beyond its fixed time, counts as stuck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which objects are changed. Some are overwritten and then deleted."""

    overwritten: tuple[str, ...]
    deleted: tuple[str, ...]
    restored: tuple[str, ...]
    sample: tuple[str, ...]


def make_plan(names: Sequence[str], seed: int) -> Plan:
    """Choose the objects at random but repeatably; of a small tree never more than a third."""
    chosen = list(names)
    random.Random(seed).shuffle(chosen)
    changed = min(CHANGED_MAX, len(chosen) // 3)
    both = changed // 5
    deleted = chosen[changed - both : 2 * changed - both]
    restored = deleted[::2][:RESTORED_MAX]
    touched = dict.fromkeys([*chosen[:changed], *deleted])
    untouched = [name for name in chosen if name not in touched]
    return Plan(
        overwritten=tuple(chosen[:changed]),
        deleted=tuple(deleted),
        restored=tuple(restored),
        sample=tuple([*touched, *untouched[:SAMPLE_MAX]]),
    )


class Demo:
    """One run against a cluster that is up."""

    def __init__(
        self,
        cluster: Cluster,
        report: Report,
        tree: Tree,
        large: SourceFile,
        large_edition: Edition,
        *,
        parallel: int,
        seed: int,
        heal_timeout_s: float,
    ) -> None:
        self._cluster = cluster
        self._report = report
        self._large_edition = large_edition
        self._parallel = parallel
        self._records = {source.name: Record(source=source) for source in tree.files}
        self._large = Record(source=large)
        self._plan = make_plan(list(self._records), seed)
        self._counts = Counts()
        self._victim = cluster.nodes[1]
        self._witness = cluster.nodes[2]
        self._writers: list[CountingClient] = []
        self._next_writer: Iterator[CountingClient] = iter(())
        self._heal_timeout_s = heal_timeout_s
        self.findings: list[str] = []
        self.compared_bytes = 0
        self.compared_objects = 0

    async def run(self) -> None:
        """Raises Failed (or an error of the store) at the first thing that is not as it must be."""
        urls = self._cluster.urls
        # One client per node, each with that node first and the others behind it: every node has work.
        self._writers = [CountingClient(urls[at:] + urls[:at], self._counts) for at in range(len(urls))]
        self._next_writer = itertools.cycle(self._writers)
        witness = CountingClient([self._witness.url], self._counts)
        survivor = CountingClient([self._victim.url], self._counts)
        try:
            await self._store_first_half()
            await self._store_rest_and_kill()
            await self._read_all(witness)
            await self._read_large(witness, self._witness)
            await self._overwrite()
            await self._delete(witness)
            await self._read_old_versions(witness)
            await self._list(witness, self._witness)
            await self._restore(witness)
            await self._restart()
            await self._read_sample(survivor)
            await self._read_large(survivor, self._victim)
            if self._heal_timeout_s > 0:
                await self._await_healed(survivor)
        finally:
            for client in [*self._writers, witness, survivor]:
                await client.close()

    # -- storing

    async def _store_first_half(self) -> None:
        first, _ = self._halves()
        with self._step(f"store the first half of the tree, {len(first):,} files", _bytes(first)) as step:
            await self._within(step, for_each(first, lambda record: self._store(step, record), parallel=self._parallel))

    async def _store_rest_and_kill(self) -> None:
        """The large file goes through the node that dies; the rest of the tree is on its way at that moment."""
        _, rest = self._halves()
        large = self._large
        begin_rest = asyncio.Event()
        sent_before = 0
        killed = False
        attempts = 0

        def sent(done: int, total: int | None) -> None:
            nonlocal sent_before, killed, attempts
            attempts += done == 0
            step.advance(done - sent_before)
            sent_before = done
            if done >= large.source.size_bytes * BEGIN_REST_AT:
                begin_rest.set()
            if done >= large.source.size_bytes * KILL_AT and not killed:
                killed = True
                self._cluster.kill(self._victim)
                step.note(
                    f"{self._victim.name} (pid {self._victim.pid}) killed with SIGKILL: {done / MB:,.0f} MB of the large "
                    f"file had gone through it, {self._counts.under_way - 1} small writes were under way"
                )

        async def store_large() -> None:
            with self._operation() as began:
                info = await self._writers[1].put(large.name, large.source.file, progress=sent)
            _check_info(f"the answer to PUT {large.name}", info, self._large_edition)
            large.stored(info.version, self._large_edition)
            step.finished(info.size)  # its time is told in words, that of the small ones in the table
            step.note(
                f"the large file is stored after {began():.1f} s, at the client's attempt {attempts} to upload it"
            )

        async def store_rest() -> None:
            await begin_rest.wait()
            await for_each(rest, lambda record: self._store(step, record), parallel=self._parallel)

        title = f"store the other {len(rest):,} and a file of {large.source.size_bytes / MB:,.0f} MB, kill a node"
        with self._step(title, _bytes(rest) + large.source.size_bytes) as step:
            await self._within(step, together(store_large(), store_rest()))
            if not killed:
                raise Failed(f"the upload of {large.name} ended before {self._victim.name} could be killed")
            self._cluster.await_death(self._victim)

    async def _store(self, step: Step, record: Record) -> None:
        content = original(record.source)
        await self._put(step, record, content, edition_of(content, is_rewritten=False))
        step.advance(record.source.size_bytes)

    async def _put(self, step: Step, record: Record, content: bytes, edition: Edition) -> None:
        with self._operation() as began:
            info = await next(self._next_writer).put(record.name, content)
        _check_info(f"the answer to PUT {record.name}", info, edition)
        record.stored(info.version, edition)
        step.finished(edition.size_bytes, began())

    # -- reading

    async def _read_all(self, client: CountingClient) -> None:
        records = list(self._records.values())
        with self._step(
            f"read all {len(records):,} files through {self._witness.name}, compare", _bytes(records)
        ) as step:

            async def read(record: Record) -> None:
                step.advance(await self._read(step, client, record, self._witness))

            await self._within(step, for_each(records, read, parallel=self._parallel))

    async def _read_large(self, client: CountingClient, node: Node) -> None:
        with self._step(f"read the large file through {node.name}, compare", self._large.source.size_bytes) as step:
            await self._within(step, _drop(self._read(step, client, self._large, node, shown=True)))

    async def _read(
        self,
        step: Step,
        client: CountingClient,
        record: Record,
        node: Node,
        *,
        version: int | None = None,
        shown: bool = False,
    ) -> int:
        """Compare the head, or one version, with what it must be."""
        number = version or record.head
        what = f"{record.name} version {number} through {node.name}"
        shown_before = 0

        def progress(done: int, total: int | None) -> None:
            nonlocal shown_before
            step.advance(done - shown_before)
            shown_before = done

        with self._operation() as began:
            try:
                async with client.get(record.name, version=version, progress=progress if shown else None) as reader:
                    with record.open(number) as content:
                        length = await compare(what, reader, content)
            except NotFound as error:
                raise Failed(f"{what}: not found ({error})") from error
            except DigestMismatch as error:
                await self._locate(what, client, record, number)
                raise Failed(f"{what}: {error}") from error
            except Difference as error:
                if not record.source_unchanged(number):
                    raise Failed(f"{record.source.file} was changed on this machine during the run: {error}") from error
                raise
        _check_info(what, reader.info, record.versions[number])
        if reader.info.version != number:
            raise Failed(f"{what}: version {reader.info.version} was sent")
        self.compared_bytes += length
        self.compared_objects += 1
        step.finished(length, began())
        return length

    @staticmethod
    async def _locate(what: str, client: CountingClient, record: Record, version: int) -> None:
        """The client keeps bytes back that do not have their digest. Fetch them as a part, which has none."""
        size_bytes = record.versions[version].size_bytes - 1
        if size_bytes > 0:
            async with client.get(record.name, version=version, range=(0, size_bytes)) as reader:
                with record.open(version) as content:
                    await compare(what, reader, content, size_bytes)

    # -- changing

    async def _overwrite(self) -> None:
        records = [self._records[name] for name in self._plan.overwritten]
        with self._step(f"overwrite {len(records)} files", len(records)) as step:

            async def overwrite(record: Record) -> None:
                content = rewritten(record.source)
                await self._put(step, record, content, edition_of(content, is_rewritten=True))
                step.advance(1)

            await self._within(step, for_each(records, overwrite, parallel=self._parallel))

    async def _delete(self, witness: CountingClient) -> None:
        records = [self._records[name] for name in self._plan.deleted]
        with self._step(f"delete {len(records)} files, see that they are gone", len(records)) as step:

            async def delete(record: Record) -> None:
                with self._operation() as began:
                    await next(self._next_writer).delete(record.name)
                record.deleted = True
                step.finished(0, began())
                await self._see_gone(step, witness, record, self._witness)
                step.advance(1)

            await self._within(step, for_each(records, delete, parallel=self._parallel))

    async def _see_gone(self, step: Step, client: CountingClient, record: Record, node: Node) -> None:
        try:
            info = await client.head(record.name)
        except NotFound:
            pass
        else:
            raise Failed(f"{record.name} was deleted, but HEAD through {node.name} finds version {info.version}")
        try:
            async with client.get(record.name) as reader:
                raise Failed(f"{record.name} was deleted, but GET through {node.name} sends {reader.info.version}")
        except NotFound:
            step.finished(operations=2)

    async def _read_old_versions(self, client: CountingClient) -> None:
        names = dict.fromkeys([*self._plan.overwritten, *self._plan.deleted])
        records = [self._records[name] for name in names]
        with self._step(f"read every version of these {len(records)}, compare", len(records)) as step:

            async def look_back(record: Record) -> None:
                for version in record.versions:
                    await self._read(step, client, record, self._witness, version=version)
                await self._check_versions(step, client, record)
                step.advance(1)

            await self._within(step, for_each(records, look_back, parallel=self._parallel))

    @staticmethod
    async def _check_versions(step: Step, client: CountingClient, record: Record) -> None:
        listed = await client.versions(record.name)
        expected = sorted(record.versions, reverse=True)
        if [info.version for info in listed] != expected:
            raise Failed(f"{record.name} must have the versions {expected}, found {[info.version for info in listed]}")
        for info in listed:
            _check_info(
                f"{record.name} version {info.version} in the list of versions", info, record.versions[info.version]
            )
        if listed[0].tombstoned != record.deleted:
            raise Failed(
                f"{record.name}: the newest version must have tombstoned={record.deleted} in the list of versions"
            )
        step.finished()

    async def _restore(self, witness: CountingClient) -> None:
        records = [self._records[name] for name in self._plan.restored]
        with self._step(f"restore {len(records)} files, read them, list again", len(records)) as step:

            async def restore(record: Record) -> None:
                with self._operation() as began:
                    info = await next(self._next_writer).restore(record.name)
                if info.version != record.head:
                    raise Failed(f"{record.name}: version {record.head} was deleted, version {info.version} came back")
                record.deleted = False
                step.finished(0, began())
                await self._read(step, witness, record, self._witness)
                step.advance(1)

            await self._within(step, for_each(records, restore, parallel=self._parallel))
            await self._within(step, self._check_listing(step, witness, self._witness))

    # -- listing

    async def _list(self, client: CountingClient, node: Node) -> None:
        with self._step(f"list through {node.name}: exactly what must be there", len(self._expected())) as step:
            await self._within(step, self._check_listing(step, client, node, shown=True))

    async def _check_listing(self, step: Step, client: CountingClient, node: Node, *, shown: bool = False) -> None:
        expected = self._expected()
        found: list[ObjectInfo] = []
        async for page in client.list():
            found += page.objects
            step.finished()
            if shown:
                step.advance(len(page.objects))
        names = [info.path for info in found]
        if names != sorted(set(names), key=str.encode):
            raise Failed(f"the listing through {node.name} is not in byte order, or names an object twice")
        if missing := expected.keys() - set(names):
            raise Failed(f"the listing through {node.name} lacks {len(missing)} objects, first {min(missing)}")
        if surplus := set(names) - expected.keys():
            raise Failed(f"the listing through {node.name} has {len(surplus)} objects too many, first {min(surplus)}")
        for info in found:
            record = expected[info.path]
            what = f"{info.path} in the listing through {node.name}"
            if info.version != record.head:
                raise Failed(f"{what}: expected version {record.head}, found {info.version}")
            _check_info(what, info, record.versions[record.head])

    def _expected(self) -> dict[str, Record]:
        records = [*self._records.values(), self._large]
        return {record.name: record for record in records if record.head and not record.deleted}

    # -- the node that comes back

    async def _restart(self) -> None:
        with self._step(f"start {self._victim.name} again, wait until it serves", 1) as step:
            self._cluster.restart(self._victim)
            deadline = time.monotonic() + READY_TIMEOUT_S
            while (reason := await _not_ready(self._victim.url)) is not None:
                if self._victim.name in self._cluster.dead():
                    raise Failed(f"{self._victim.name} ended as soon as it was started again")
                if time.monotonic() > deadline:
                    raise Failed(f"{self._victim.name} does not serve after {READY_TIMEOUT_S:.0f} s: {reason}")
                await asyncio.sleep(POLL_INTERVAL_S)
            step.advance(1)

    async def _read_sample(self, client: CountingClient) -> None:
        """What was changed while it was dead, and some of the rest, through the node that was dead."""
        records = [self._records[name] for name in self._plan.sample]
        with self._step(
            f"read {len(records)} files and the list through {self._victim.name}, compare", len(records)
        ) as step:

            async def read(record: Record) -> None:
                if record.deleted:
                    await self._see_gone(step, client, record, self._victim)
                for version in record.versions if record.deleted else (None,):
                    await self._read(step, client, record, self._victim, version=version)
                step.advance(1)

            await self._within(step, for_each(records, read, parallel=self._parallel))
            await self._within(step, self._check_listing(step, client, self._victim))

    async def _await_healed(self, client: CountingClient) -> None:
        """Until the node has every copy that it missed, as ``explain`` tells it object by object.

        That it takes long is a finding and not a difference: what is read through the node is right all the same.
        """
        behind = [*self._records.values(), self._large]
        with self._step(f"see whether {self._victim.name} fetches by itself what it missed", len(behind)) as step:
            deadline = time.monotonic() + self._heal_timeout_s
            while True:
                left: list[Record] = []

                async def look(record: Record, left: list[Record] = left) -> None:
                    document = await client.explain(record.name)
                    if holds_everything(document, self._victim.name):
                        step.advance(1)
                    else:
                        left.append(record)

                await self._within(step, for_each(behind, look, parallel=self._parallel))
                behind = left
                if not behind:
                    return
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(HEAL_PAUSE_S)
            heal = (await client.cluster()).get("heal", {})
            self.findings.append(
                f"{self._heal_timeout_s:.0f} s after its return {self._victim.name} still lacks something of {len(behind):,} of "
                f"{len(self._records) + 1:,} objects, for example {behind[0].name}; /cluster there says {dict(heal)}. "
                "Reads through it are right: they ask the other nodes."
            )
            step.note(self.findings[-1])

    # -- inside

    def _halves(self) -> tuple[list[Record], list[Record]]:
        records = list(self._records.values())
        return records[: len(records) // 2], records[len(records) // 2 :]

    @contextmanager
    def _step(self, title: str, total: int) -> Iterator[Step]:
        failed_before = self._counts.failed_attempts
        with self._report.step(title, total) as step:
            try:
                yield step
            finally:
                step.repeated = self._counts.failed_attempts - failed_before

    @staticmethod
    async def _within(step: Step, work: Awaitable[None]) -> None:
        """Nothing waits for ever: neither for a dead cluster nor for one that merely trickles."""
        limit_s = STEP_TIMEOUT_S + step.total / SLOWEST_BYTES_PER_S
        try:
            async with asyncio.timeout(limit_s):
                await work
        except TimeoutError:
            raise Failed(f"not done after {limit_s:.0f} s: {step.title}") from None

    @contextmanager
    def _operation(self) -> Iterator[Callable[[], float]]:
        """Count an operation as under way; gives what tells how long it has taken."""
        began_s = time.monotonic()
        self._counts.under_way += 1
        try:
            yield lambda: time.monotonic() - began_s
        finally:
            self._counts.under_way -= 1


async def _not_ready(url: str) -> str | None:
    """Why the node does not serve. Asked by a client that does not count: it is no failure to come up slowly."""
    async with AsyncClient(url) as client:
        return (await client.ready())[url]


def holds_everything(document: Mapping[str, Any], node: str) -> bool:
    """Whether the answer of ``explain`` says that the node has the newest record and all bytes of every version."""
    newest = any(replica["node"] == node and replica["state"] == "chosen" for replica in document["replicas"])
    return newest and all(version["copies"].get(node) == "all" for version in document["versions"])


def _check_info(what: str, info: ObjectInfo, expected: Edition) -> None:
    for name, wanted, found in (("size", expected.size_bytes, info.size), ("etag", expected.digest, info.etag)):
        if wanted != found:
            raise Failed(f"{what}: expected {name} {wanted}, found {found}")


def _bytes(records: Sequence[Record]) -> int:
    return sum(record.source.size_bytes for record in records)


async def _drop(work: Awaitable[object]) -> None:
    await work
