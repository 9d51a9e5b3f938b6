"""The property: whatever the replicas missed, lost or damaged, they agree again within two rounds."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from amberblob.manifest import Record, covers
from amberblob.mutations import Forgotten
from tests.unit.antientropy.kit import SLOT, Cluster, ballot, delete, expire, put

EXAMPLES = int(os.environ.get("AMBERBLOB_TEST_EXAMPLES", "0"))

AGES = ("all", "none", "stale", "jumped", "unlearnt")
"""What a replica has of a path: everything; nothing; up to some write; the same and then the last one by LEARN; everything, but
it was not told that the last one is chosen."""

ROT = ("row", "lost row", "record", "tombstone", "path", "digest")


@dataclass(frozen=True)
class Plan:
    """One path: what was written, and what became of it at each replica."""

    first: int
    ops: tuple[str, ...]
    ages: tuple[tuple[str, int], ...]
    undecided: tuple[int, ...]
    """Replicas that accepted one more put of which nobody was told."""
    collected: tuple[int, ...]
    """Replicas that removed the stub, if there is one and all had it."""
    rot: str
    rotten_at: int


def plans(count: int) -> st.SearchStrategy[Plan]:
    ops = st.lists(st.sampled_from(["put", "put", "delete", "expire"]), max_size=5)
    replicas = st.lists(st.integers(0, count - 1), max_size=count).map(lambda some: tuple(sorted(set(some))))
    return st.builds(
        Plan,
        first=st.integers(1, 900),
        ops=ops.map(lambda more: ("put", *more)),
        ages=st.lists(st.tuples(st.sampled_from(AGES), st.integers(0, 5)), min_size=count, max_size=count).map(tuple),
        undecided=replicas,
        collected=replicas,
        rot=st.sampled_from(("", "", *ROT)),
        rotten_at=st.integers(0, count - 1),
    )


@st.composite
def divergences(draw):
    count = draw(st.integers(2, 5))
    paths = draw(st.lists(plans(count), min_size=1, max_size=6))
    sums = draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, 255)), max_size=2))
    logs = draw(st.lists(st.integers(0, count - 1), max_size=2))
    return count, paths, sums, logs


def history(path: str, ops: tuple[str, ...]) -> list[Record]:
    records: list[Record] = []
    for op in ops:
        before = records[-1] if records else None
        if op == "put" or before is None:
            records.append(put(path, before))
        elif op == "delete" and before.head is not None:
            records.append(delete(before))
        elif op == "expire":
            records.append(expire(before))
    return records


def build(cluster: Cluster, path: str, plan: Plan) -> list[Record]:
    """Play the plan; returns what is chosen, oldest first."""
    records, count = history(path, plan.ops), len(cluster.replicas)
    last = records[-1]
    rotten = plan.rot and plan.rotten_at < count
    is_stub = last.op == "expire" and last.head is None and not last.live
    collected = plan.collected if is_stub and not rotten else ()
    for at in range(count):
        age, number = plan.ages[at]
        if rotten and at in (plan.rotten_at, (plan.rotten_at + 1) % count):
            # Who rots was well before, and somebody has it as it was.
            age = "all"
        if collected:
            # A stub goes only when everybody has it. What is lost later is lost as a whole.
            age = "all" if age != "none" else "none"
        upto = len(records) if age in ("all", "unlearnt") else 0 if age == "none" else min(number, len(records))
        if age == "jumped":
            upto = min(upto, len(records) - 1)
        for step, record in enumerate(records[:upto]):
            number_at = ballot(plan.first + 1000 * step)
            cluster.accept(at, path, number_at, record)
            if not (age == "unlearnt" and step == len(records) - 1):
                cluster.choose(at, path, number_at)
        if age == "jumped":
            cluster.choose(at, path, ballot(plan.first + 1000 * (len(records) - 1)), last)
    if collected:
        for at in collected:
            number_at = ballot(plan.first + 1000 * (len(records) - 1))
            cluster[at].apply(Forgotten(SLOT, path, number_at, last.version_max))
    elif not rotten:
        more = put(path, last, serial=1)
        for at in plan.undecided:
            # It was proposed by somebody who knew the last record, and is built on it.
            cluster.accept(at, path, ballot(plan.first + 1000 * len(records)), more, body=False)
    return records


def let_rot(cluster: Cluster, path: str, plan: Plan, records: list[Record]) -> None:
    if not plan.rot:
        return
    store, last = cluster[plan.rotten_at], records[-1]
    rows = [number for number in range(1, last.version_max + 1) if not covers(last.expired, number)]
    dead = [number for number in rows if not covers(last.live, number)]
    match plan.rot:
        case "row" if rows:
            store.damage_row(SLOT, path, rows[0])
        case "lost row" if rows:
            store.lose_row(SLOT, path, rows[-1])
        case "record":
            store.damage_record(SLOT, path)
        case "tombstone" if dead:
            store.lose_tombstone(SLOT, path, dead[0])
        case "path":
            store.lose_path(SLOT, path)
        case "digest":
            store.damage_digest(SLOT, path)


async def check_agreement(cluster: Cluster, truth: dict[str, list[Record]], plans_by_path: dict[str, Plan]) -> None:
    assert len(cluster.roots()) == 1, "digests differ"
    first = await cluster.contents(0)
    for at in range(1, len(cluster.replicas)):
        assert await cluster.contents(at) == first
    for at, replica in enumerate(cluster.replicas):
        assert replica.store.tally(SLOT).root in cluster.roots()
        assert await replica.store.check_sums(SLOT)
        page = await replica.store.check_page(SLOT, "", 1000)
        assert not page.wrong, f"{replica.node} has rotten paths left"
        await check_bytes(cluster, at)
    for path, records in truth.items():
        check_path(cluster, first.get(path), path, records, plans_by_path[path])


def known_somewhere(plan: Plan, records: list[Record], count: int) -> int:
    """How many of the records are known to be chosen to somebody, or must be (accepted by all that matter)."""
    best = 0
    for age, number in plan.ages[:count]:
        if age in ("all", "jumped"):
            return len(records)
        if age == "unlearnt":
            best = max(best, len(records) - 1)
        if age == "stale":
            best = max(best, min(number, len(records)))
    return best


def check_path(cluster: Cluster, found, path: str, records: list[Record], plan: Plan) -> None:
    count = len(cluster.replicas)
    last = records[-1]
    whole = bool(plan.rot) or known_somewhere(plan, records, count) == len(records)
    is_stub = last.op == "expire" and last.head is None and not last.live
    if found is None:
        assert is_stub or not whole, f"{path} is lost"
        return
    record, rows = found
    if record is None:
        # Nobody knows which record is chosen: that is the resolver's affair, and no copy lacks what another one knows.
        undecided = any(not cluster.register(at, path).chosen for at in range(count))
        assert undecided or not whole, f"{path} lost its record"
        return
    if last.head is None and whole and record.revision <= last.revision:
        assert record.head is None, f"{path} was deleted and returned"
    if whole:
        assert record.revision >= last.revision, f"{path} went back"
        held = {row.version for row in rows}
        every = {number for number in range(1, last.version_max + 1) if not covers(record.expired, number)}
        assert every & held_anywhere(plan, records, count) <= held, f"{path} lost rows"
    assert not any(covers(record.expired, row.version) for row in rows), f"expired rows of {path} are back"


def held_anywhere(plan: Plan, records: list[Record], count: int) -> set[int]:
    """Versions whose row some replica had, known to be chosen."""
    found: set[int] = set()
    for age, number in plan.ages[:count] if not plan.rot else [("all", 0)]:
        upto = len(records) if age == "all" else min(number, len(records)) if age in ("stale", "jumped") else 0
        upto = len(records) - 1 if age == "unlearnt" else upto
        for record in records[:upto]:
            found.update(row.version for row in (record.added, record.previous) if row is not None)
        if age == "jumped":
            found.update(row.version for row in (records[-1].added, records[-1].previous) if row is not None)
    return found


async def check_bytes(cluster: Cluster, at: int) -> None:
    """Every version whose bytes are not here is wanted, and nothing else is."""
    store = cluster[at]
    # Bytes that came with a round are noticed by who wants to fetch them.
    wanted = {
        (one.path, one.version.version)
        for one in await store.wanted(SLOT, 10_000)
        if not await store.is_whole(SLOT, one.version)
    }
    missing = set()
    for path, (_, rows) in (await cluster.contents(at)).items():
        for row in rows:
            if row.size and await store.missing_chunks(SLOT, row, row.chunks):
                missing.add((path, row.version))
    assert missing == wanted


def records_below_floor(cluster: Cluster) -> set[tuple[int, str]]:
    """Registers that hold something at or below their slot's ballot floor."""
    return {
        (at, f"path/{number}")
        for at in range(len(cluster.replicas))
        for number in range(6)
        if (accepted := cluster.register(at, f"path/{number}").accepted) is not None
        and accepted <= cluster[at].slot_state(SLOT).ballot_floor
    }


@settings(max_examples=EXAMPLES or 100, deadline=None, derandomize=not EXAMPLES, database=None)
@given(divergences())
async def test_replicas_agree_within_two_rounds(divergence):
    count, paths, sums, logs = divergence
    cluster = Cluster(count)
    truth: dict[str, list[Record]] = {}
    by_path: dict[str, Plan] = {}
    for at, plan in enumerate(paths):
        path = f"path/{at}"
        by_path[path] = plan
        truth[path] = build(cluster, path, plan)
    for path, plan in by_path.items():
        let_rot(cluster, path, plan, truth[path])
    for at, bucket in sums:
        cluster[at].damage_sum(SLOT, bucket)
    for at in logs:
        cluster[at].forget_log(SLOT)
    below = records_below_floor(cluster)
    await cluster.heal()
    assert records_below_floor(cluster) <= below, "a record came back below a floor"
    moved = await cluster.heal()
    assert moved == 0, "the second round moved data"
    await check_agreement(cluster, truth, by_path)
