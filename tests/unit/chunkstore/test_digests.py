"""Digests of a slot's database: whatever comes in, in whatever order, they are those of the rows."""

from __future__ import annotations

import itertools
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amberblob.ballot import Ballot
from amberblob.digests import (
    BUCKETS,
    DIGEST_MODULUS,
    bucket_of,
    digest_bytes,
    digest_of,
    path_key,
    record_term,
    row_term,
)
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Op, Record, Version, WriteMark, covers, merge_ranges, without
from amberblob.mutations import Accepted, Chosen, Forgotten, Installed, Mutation, Reserved, Staged, Synced
from chunkstore import DiskStore, digestdb, garbagedb, schema
from chunkstore.applying import SlotBatch
from chunkstore.codec import BodyKept, Entry
from chunkstore.rowcodec import register_of
from chunkstore.slotdb import SlotDatabase
from chunkstore.sqlite import migrate

EXAMPLES = int(os.environ.get("AMBERBLOB_TEST_EXAMPLES", "0"))
DISK = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
NOW = 1_700_000_000_000
SLOT = 1
BODY = b"body"
PATHS = ("a", "b/1", "b/é")


class Writer:
    """Makes the records of paths as coordinators would, each upon the chosen one before it."""

    def __init__(self) -> None:
        self.tips: dict[str, Record] = {}
        self.versions: dict[str, dict[int, Version]] = {}
        self._numbers = itertools.count(1)

    def ballot(self) -> Ballot:
        counter = next(self._numbers)
        return Ballot(1, counter, "node-1", f"attempt-{counter}")

    def version(self, number: int, *, inline: bool) -> Version:
        at = next(self._numbers)
        chunk = ChunkRef(id=content_hash(BODY), len=len(BODY))
        return Version(number, f"{at:026}", len(BODY), chunk.id, NOW + at, "text/plain", {}, (chunk,), None, 1, inline)

    def record(self, path: str, op: Op, pick: int, *, inline: bool = True, chosen: bool = True) -> Record:
        """A record of this kind, or a put where it would make no sense."""
        tip = self.tips.get(path)
        live = tip.live if tip else ()
        known = self.versions.setdefault(path, {})
        alive = [number for number in known if covers(live, number)]
        dead = [n for n in known if n not in alive and not covers((*tip.expired, *tip.taken) if tip else (), n)]
        taken, expired = tip.taken if tip else (), tip.expired if tip else ()
        number, head = (tip.version_max if tip else 0), None
        if op == "delete" and alive:
            taken, live = live, ()
        elif op == "delete-version" and alive:
            gone = alive[pick % len(alive)]
            taken, live = ((gone, gone),), without(live, gone)
        elif op == "restore" and taken:
            live, taken = merge_ranges((*live, *taken)), ()
        elif op == "expire" and (dead or (tip and tip.head is None and taken)):
            # Of a deleted path all of it, sometimes.
            if tip is not None and tip.head is None and pick % 2:
                expired, taken = ((1, tip.version_max),), ()
            else:
                expired = merge_ranges((*expired, *((n, n) for n in dead)))
        else:
            op, number = "put", number + 1
            head = self.version(number, inline=inline)
            live = merge_ranges((*live, (number, number)))
        if head is None and live:
            head = known[live[-1][1]]
        revision = tip.revision + 1 if tip else 1
        mark = WriteMark(f"w{next(self._numbers)}", op, number, NOW + revision)
        deleted_at_ms = NOW + revision if op.startswith("delete") else (tip.deleted_at_ms if tip else 0)
        record = Record(
            revision, op, number, head, live, taken, NOW + revision, deleted_at_ms, tip.added if tip else None,
            (*(tip.writes if tip else ()), mark)[-3:], expired,
        )  # fmt: skip
        if chosen:
            self.tips[path] = record
            if record.added is not None:
                known[number] = record.added
        return record


class Slot:
    """A slot's database that is applied to and opened again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "meta.sqlite3"
        self.database = SlotDatabase(SLOT, self.path, DISK, create=True)
        self.position = 0

    def apply(self, *entries: Entry) -> None:
        first = self.position + 1
        self.position += len(entries)
        SlotBatch(self.database).apply(list(enumerate(entries, start=first)))

    def apply_again(self, *entries: Entry) -> None:
        """As a replay does: the same entries at the same positions."""
        SlotBatch(self.database).apply(list(enumerate(entries, start=self.position - len(entries) + 1)))

    def reopen(self) -> None:
        tally = self.database.tally
        self.database.close()
        self.database = SlotDatabase(SLOT, self.path, None, create=False)
        assert self.database.tally == tally, "what is counted is what is there"

    def sql(self, query: str) -> list[tuple]:
        return self.database.connection.execute(query).fetchall()

    def rows(self) -> dict[tuple[str, int], Version]:
        paths = [path for (path,) in self.sql("SELECT DISTINCT path FROM blobs")]
        return {(path, version.version): version for path in paths for version in self.database.versions(path)}

    def check(self) -> None:
        """Digests, counts and references are those of the rows."""
        digests: dict[str, int] = {}
        for (path, _), version in self.rows().items():
            digests[path] = digests.get(path, 0) + row_term(path, version)
        held: set[str] = {version.blob_id for version in self.rows().values()}
        objects = 0
        for path, register in self.database.registers():
            assert register.record is not None
            objects += 1
            held |= {v.blob_id for v in (register.record.head, register.record.previous) if v is not None}
            if register.chosen:
                digests[path] = digests.get(path, 0) + record_term(path, register.record)
        sums = [0] * BUCKETS
        for path, digest in digests.items():
            sums[bucket_of(path)] += digest
        expected = b"".join(digest_bytes(total % DIGEST_MODULUS) for total in sums)
        assert self.database.sums == expected == self.sql("SELECT sums FROM bucket_sums")[0][0]
        stored = {path: digest for path, digest in self.sql("SELECT path, digest FROM registers") if digest}
        assert stored == {path: digest_bytes(d % DIGEST_MODULUS) for path, d in digests.items() if d % DIGEST_MODULUS}
        for path, accepted, text, chosen, term in self.sql(
            "SELECT path, accepted_ballot, record, chosen, term FROM registers"
        ):
            assert term == digestdb.stored(digestdb.register_term(path, register_of(accepted, text, chosen)))
        tally = self.database.tally
        assert digest_of(tally.root) == sum(sums) % DIGEST_MODULUS
        assert tally.objects == objects
        assert [(tally.wanted, tally.wanted_bytes, tally.damaged)] == self.sql(
            "SELECT count(*), coalesce(sum(bytes), 0), coalesce(sum(damaged), 0) FROM wanted"
        )
        assert tally.log_head == (self.sql("SELECT max(seq) FROM commit_log")[0][0] or 0)
        garbage = {blob_id for (blob_id,) in self.sql("SELECT blob_id FROM garbage")}
        assert not garbage & held, "what is referred to is no garbage"
        for table in ("inline_bodies", "intents", "wanted"):
            assert not garbage & {blob_id for (blob_id,) in self.sql(f"SELECT blob_id FROM {table}")}
        bodies = {blob_id for (blob_id,) in self.sql("SELECT blob_id FROM inline_bodies")}
        files = {blob_id for (blob_id,) in self.sql("SELECT blob_id FROM intents WHERE state = 'REFERENCED'")}
        wanted = {blob_id for (blob_id,) in self.sql("SELECT blob_id FROM wanted")}
        assert wanted <= {version.blob_id for version in self.rows().values()}
        for version in self.rows().values():
            assert version.blob_id in wanted or version.blob_id in (bodies if version.inline else files)


@pytest.fixture
def slot(tmp_path: Path):
    made = Slot(tmp_path)
    yield made
    made.database.close()


_steps = st.lists(
    st.tuples(
        st.sampled_from(PATHS),
        st.sampled_from(["put", "put", "put", "delete", "delete-version", "restore", "expire", "expire"]),
        st.integers(0, 5),
        st.booleans(),
        st.sampled_from([True, True, True, False]),
    ),
    min_size=1, max_size=25,
)  # fmt: skip


def _facts(steps: list[tuple[str, Op, int, bool, bool]]) -> tuple[list[Mutation], list[Mutation], Writer]:
    """What may reach a copy, and what reaches every copy sooner or later: the chosen ones."""
    writer = Writer()
    some: list[Mutation] = []
    every: list[Mutation] = []
    steps = [*steps, *((path, "put", 0, True, True) for path in PATHS)]
    for path, op, pick, inline, chosen in steps:
        record, ballot = writer.record(path, op, pick, inline=inline, chosen=chosen), writer.ballot()
        body = BODY if record.added is not None and record.added.inline else None
        some.append(Accepted(SLOT, path, ballot, record, body))
        if not chosen:
            continue
        some.append(Chosen(SLOT, path, ballot))
        every.append(Chosen(SLOT, path, ballot, record))
        tip, known = writer.tips[path], writer.versions[path]
        rows = tuple(v for n, v in sorted(known.items(), reverse=True) if not covers(tip.expired, n))
        some.append(Installed(SLOT, path, ballot, tip, rows, tip.writes))
        some.append(Installed(SLOT, path, None, None, rows[:2], ()))
        # Somebody found it unfinished and had it chosen once more.
        again = writer.ballot()
        if pick == 1:
            some += [Accepted(SLOT, path, again, record, body), Chosen(SLOT, path, again)]
            every.append(Chosen(SLOT, path, again, record))
    return some, every, writer


@given(steps=_steps, seed=st.integers(0, 2**32), replace=st.booleans())
@settings(
    max_examples=EXAMPLES or 60,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_whatever_the_order_copies_that_know_the_same_have_equal_digests(steps, seed: int, replace: bool):
    some, every, writer = _facts(steps)
    roots = []
    rows = []
    for number in range(2):
        chance = random.Random(seed + number)
        facts = [fact for fact in some if chance.random() < 0.6]
        facts += [chance.choice(facts) for _ in range(len(facts) // 3)] if facts else []
        chance.shuffle(facts)
        rest = list(every)
        chance.shuffle(rest)
        # What everybody hears comes last or in between.
        facts = [*facts, *rest] if chance.random() < 0.5 else chance.sample([*facts, *rest], len(facts) + len(rest))
        with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            slot = Slot(Path(folder))
            while facts:
                batch, facts = facts[: (size := chance.randint(1, 9))], facts[size:]
                if replace:
                    batch = [
                        Installed(f.slot, f.path, f.ballot, f.record, f.rows, f.writes, True)
                        if isinstance(f, Installed) and chance.random() < 0.3
                        else f
                        for f in batch
                    ]
                slot.apply(*batch)
                if chance.random() < 0.3:
                    slot.apply_again(*batch)
                if chance.random() < 0.2:
                    slot.reopen()
                slot.check()
            slot.reopen()
            slot.check()
            roots.append(slot.database.tally.root)
            rows.append(slot.rows())
            dead = {(p, v): t is not None for p, v, t in slot.sql("SELECT path, version, tombstoned_at FROM blobs")}
            for path, tip in writer.tips.items():
                assert slot.database.register(path).record == tip
                for version in writer.versions[path]:
                    if covers(tip.expired, version):
                        assert (path, version) not in dead
                    else:
                        assert dead[path, version] == (not covers(tip.live, version))
            slot.database.close()
    assert roots[0] == roots[1]
    assert rows[0] == rows[1]


def _put(writer: Writer, path: str = "a", **options) -> tuple[Ballot, Record]:
    return writer.ballot(), writer.record(path, "put", 0, **options)


def _head(record: Record) -> Version:
    assert record.head is not None
    return record.head


def test_a_digest_changes_with_every_fact_and_not_with_what_is_only_accepted(slot: Slot):
    writer = Writer()
    ballot, record = _put(writer)
    empty = slot.database.tally.root
    slot.apply(Accepted(SLOT, "a", ballot, record, BODY))
    assert slot.database.tally.root == empty and slot.database.tally.objects == 1
    assert slot.database.undecided() == ["a"]
    slot.apply(Chosen(SLOT, "a", ballot))
    expected = (row_term("a", _head(record)) + record_term("a", record)) % DIGEST_MODULUS
    assert slot.database.tally.root == digest_bytes(expected)
    slot.check()


def test_rows_without_a_record_are_kept_and_are_no_undecided_write(slot: Slot):
    writer = Writer()
    _, record = _put(writer)
    slot.apply(Installed(SLOT, "a", None, None, (_head(record),), record.writes))
    slot.check()
    assert slot.database.undecided() == [] and slot.database.tally.objects == 0
    assert slot.database.tally.root == digest_bytes(row_term("a", _head(record)))
    assert slot.database.find_write("a", record.writes[0].write_id) == record.writes[0]
    assert slot.sql("SELECT path, version FROM commit_log") == [("a", 1)]


def test_what_comes_without_its_bytes_is_wanted_until_they_come(slot: Slot):
    writer = Writer()
    ballot, record = _put(writer)
    other, large = _put(writer, "b/1", inline=False)
    slot.apply(Chosen(SLOT, "a", ballot, record), Chosen(SLOT, "b/1", other, large))
    assert (slot.database.tally.wanted, slot.database.tally.wanted_bytes) == (2, 2 * len(BODY))
    slot.check()
    slot.apply(BodyKept(SLOT, _head(record).blob_id, BODY))
    assert slot.sql("SELECT path, version, bytes, damaged FROM wanted") == [("b/1", 1, len(BODY), 0)]
    # A round that finishes it at this copy, too, brings the bytes along.
    slot.apply(Accepted(SLOT, "b/1", writer.ballot(), large))
    assert slot.database.tally.wanted == 0


def test_what_came_in_the_same_batch_is_not_wanted(slot: Slot):
    writer = Writer()
    ballot, record = _put(writer)
    other, large = _put(writer, "b/1", inline=False)
    slot.apply(
        Staged(SLOT, _head(large).blob_id, NOW),
        Accepted(SLOT, "b/1", writer.ballot(), large),
        Chosen(SLOT, "b/1", other, large),
        BodyKept(SLOT, _head(record).blob_id, BODY),
        Installed(SLOT, "a", ballot, record, (_head(record),)),
    )
    assert slot.database.tally.wanted == 0
    slot.check()


def test_what_is_only_staged_is_wanted_until_somebody_has_looked(slot: Slot):
    """The entry is durable before the folder has its name: a kill in between leaves the one without the other."""
    writer = Writer()
    ballot, large = _put(writer, inline=False)
    slot.apply(Staged(SLOT, _head(large).blob_id, NOW), Installed(SLOT, "a", ballot, large, (_head(large),)))
    assert (slot.database.tally.wanted, slot.database.tally.damaged) == (1, 0)
    slot.check()
    garbagedb.keep_whole(slot.database, [_head(large)])
    assert slot.database.tally.wanted == 0
    slot.apply_again(Installed(SLOT, "a", ballot, large, (_head(large),), replace=True))
    assert slot.database.tally.wanted == 0
    slot.check()


def test_what_is_damaged_stays_so_until_it_is_whole(slot: Slot):
    writer = Writer()
    ballot, record = _put(writer)
    slot.apply(Accepted(SLOT, "a", ballot, record, BODY), Chosen(SLOT, "a", ballot))
    for damaged in (True, False):
        with slot.database.transaction():
            slot.database.want("a", _head(record), damaged=damaged)
        assert (slot.database.tally.wanted, slot.database.tally.damaged) == (1, 1)
    slot.reopen()
    with pytest.raises(RuntimeError), slot.database.transaction():
        slot.database.unwant(_head(record).blob_id)
        raise RuntimeError
    assert slot.database.tally.wanted == 1, "a transaction that fails counts nothing"
    with slot.database.transaction():
        slot.database.unwant(_head(record).blob_id)
    assert (slot.database.tally.wanted, slot.database.tally.damaged) == (0, 0)


def _history(slot: Slot, writer: Writer, *ops: Op) -> None:
    for op in ops:
        record, ballot = writer.record("a", op, 0), writer.ballot()
        slot.apply(Accepted(SLOT, "a", ballot, record, BODY if record.added else None), Chosen(SLOT, "a", ballot))


def test_expired_rows_go_and_never_come_back(slot: Slot):
    writer = Writer()
    _history(slot, writer, "put", "put", "put", "delete", "put")
    old = {number: version for (_, number), version in slot.rows().items()}
    tip = writer.tips["a"]
    ballot = writer.ballot()
    gone = Record(
        tip.revision + 1, "expire", tip.version_max, tip.head, tip.live, (), NOW, 0, tip.added, tip.writes, ((1, 2),)
    )
    slot.apply(Accepted(SLOT, "a", ballot, gone))
    assert len(slot.rows()) == 4, "what is not chosen does nothing"
    slot.apply(Chosen(SLOT, "a", ballot))
    assert {number for _, number in slot.rows()} == {3, 4}
    assert {blob_id for (blob_id,) in slot.sql("SELECT blob_id FROM garbage")} == {old[1].blob_id, old[2].blob_id}
    root = slot.database.tally.root
    slot.apply(
        Installed(SLOT, "a", None, None, (old[2], old[1])),
        Installed(SLOT, "a", None, None, (old[2], old[1]), replace=True),
        BodyKept(SLOT, old[1].blob_id, BODY),
    )
    assert {number for _, number in slot.rows()} == {3, 4} and slot.database.tally.root == root
    # Not even while another record, which tells less, is tried.
    slot.apply(Accepted(SLOT, "a", writer.ballot(), tip))
    slot.apply(Installed(SLOT, "a", None, None, (old[1],)))
    assert {number for _, number in slot.rows()} == {3, 4}
    slot.check()


def test_a_version_that_was_only_accepted_is_garbage_once_it_is_known_to_have_expired(slot: Slot):
    writer = Writer()
    ballot, first = _put(writer, inline=False)
    slot.apply(Staged(SLOT, _head(first).blob_id, NOW), Accepted(SLOT, "a", ballot, first))
    second = writer.record("a", "put", 0)
    gone = Record(3, "expire", 2, second.head, ((2, 2),), (), NOW, 0, second.head, second.writes, ((1, 1),))
    slot.apply(Chosen(SLOT, "a", writer.ballot(), gone))
    assert slot.sql("SELECT blob_id FROM garbage") == [(_head(first).blob_id,)]
    assert slot.sql("SELECT blob_id FROM intents") == []
    slot.check()


def _expire_all(writer: Writer) -> tuple[Ballot, Record]:
    tip = writer.tips["a"]
    record = Record(
        tip.revision + 1, "expire", tip.version_max, None, (), (), NOW, NOW, None, tip.writes, ((1, tip.version_max),)
    )
    writer.tips["a"] = record
    return writer.ballot(), record


def test_a_stub_goes_if_it_is_that_very_one(slot: Slot):
    writer = Writer()
    _history(slot, writer, "put", "delete")
    ballot, stub = _expire_all(writer)
    held = slot.database.register("a").accepted
    assert held is not None
    slot.apply(Forgotten(SLOT, "a", held, 1))
    assert slot.database.register("a").record is not None, "rows that have not expired keep their stub"
    assert (slot.database.state.ballot_floor, slot.database.state.version_floor) == (held, 1)
    slot.apply(Accepted(SLOT, "a", ballot, stub), Forgotten(SLOT, "a", ballot, 1))
    assert slot.database.register("a").record == stub, "it is not known to be chosen"
    slot.apply(Chosen(SLOT, "a", ballot), Forgotten(SLOT, "a", writer.ballot(), 7))
    assert slot.database.register("a").record == stub
    slot.apply(Forgotten(SLOT, "a", ballot, 5))
    assert slot.sql("SELECT count(*) FROM registers") == [(0,)]
    assert slot.database.state.version_floor == 7
    assert (slot.database.tally.objects, slot.database.tally.root) == (0, bytes(32))
    assert slot.database.find_write("a", stub.writes[-1].write_id) == stub.writes[-1], "write ids outlive the stub"
    slot.reopen()
    slot.check()


def test_a_path_begins_anew_at_a_copy_that_still_has_its_stub(slot: Slot):
    """The others forgot the path, and its revisions began again: a copy that was away must not take that for old news."""
    writer = Writer()
    _history(slot, writer, "put", "put", "put", "delete")
    ballot, stub = _expire_all(writer)
    slot.apply(Accepted(SLOT, "a", ballot, stub), Chosen(SLOT, "a", ballot))
    del writer.tips["a"], writer.versions["a"]
    ops: tuple[Op, ...] = ("put", "delete", "put", "put", "delete-version", "put")
    for op in ops:
        tip = writer.tips.get("a")
        record = writer.record("a", op, 0)
        if tip is None:
            head = writer.version(4, inline=True)
            record = Record(1, "put", 4, head, ((4, 4),), (), NOW, 0, None, record.writes)
            writer.tips["a"], writer.versions["a"] = record, {4: head}
        ballot = writer.ballot()
        slot.apply(Accepted(SLOT, "a", ballot, record, BODY if record.added else None), Chosen(SLOT, "a", ballot))
        slot.check()
        live = {n for (n,) in slot.sql("SELECT version FROM blobs WHERE tombstoned_at IS NULL")}
        assert live == {n for n in writer.versions["a"] if covers(record.live, n)}
    assert {n for _, n in slot.rows()} == set(writer.versions["a"])


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE blobs SET etag = 'rotten' WHERE version = 2",
        "UPDATE blobs SET meta = '[' WHERE version = 2",
        "UPDATE blobs SET created_at = 'never' WHERE version = 2",
        "UPDATE blobs SET blob_id = 'rotten' WHERE version = 2",
        "UPDATE blobs SET version = 9 WHERE version = 2",
        "UPDATE blobs SET path = 'z' WHERE version = 2",
        "DELETE FROM blobs WHERE version = 2",
        "UPDATE registers SET record = replace(record, 'text/plain', 'text/plein')",
        "UPDATE registers SET digest = zeroblob(32)",
    ],
)
def test_what_rotted_is_replaced_by_what_is_right(slot: Slot, damage: str):
    writer = Writer()
    _history(slot, writer, "put", "put", "put")
    rows, root, held = slot.rows(), slot.database.tally.root, slot.database.register("a")
    assert slot.database.connection.execute(damage).rowcount == 1
    assert held.record is not None
    right = tuple(sorted(rows.values(), key=lambda version: -version.version))
    slot.apply(Installed(SLOT, "a", held.accepted, held.record, right, held.record.writes, replace=True))
    assert slot.rows() == rows and slot.database.register("a") == held
    assert slot.database.tally.root == root
    slot.check()


def test_syncing_raises_the_floors_for_good(slot: Slot):
    floor = Ballot(3, 9, "~", "~")
    slot.apply(Synced(SLOT, 4, floor, 12), Synced(SLOT, 3, Ballot(1, 1, "n", "a"), 2), Reserved(SLOT, 5))
    slot.reopen()
    state = slot.database.state
    assert (state.synced_epoch, state.epoch, state.ballot_floor, state.version_floor) == (4, 4, floor, 12)
    assert state.promise_ceiling == 5


def test_a_database_of_the_first_version_gets_its_digests(tmp_path: Path):
    writer = Writer()
    new = Slot(tmp_path)
    for path in PATHS:
        for op in ("put", "put", "delete-version"):
            record, ballot = writer.record(path, op, 0, inline=path != "a"), writer.ballot()
            body = BODY if record.added is not None and record.added.inline else None
            new.apply(Accepted(SLOT, path, ballot, record, body), Chosen(SLOT, path, ballot))
    ballot, record = _put(writer, "undecided")
    missing_ballot, missing = _put(writer, "missing")
    new.apply(Accepted(SLOT, "undecided", ballot, record, BODY), Chosen(SLOT, "missing", missing_ballot, missing))
    new.check()
    tally = new.database.tally
    for version in new.rows().values():
        if not version.inline:
            (tmp_path / "blobs" / version.blob_id).mkdir(parents=True)
    new.database.close()
    old = tmp_path / "old.sqlite3"
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        migrate(connection, schema.SLOT_MIGRATIONS[:1])
        connection.execute("ATTACH ? AS new", (str(new.path),))
        tables = [name for (name,) in connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA main.table_info({table})"))
            connection.execute(f"DELETE FROM main.{table}")
            connection.execute(f"INSERT INTO main.{table}({columns}) SELECT {columns} FROM new.{table}")
    for _ in range(2):
        database = SlotDatabase(SLOT, old, None, create=False)
        assert database.tally == tally
        assert database.state.incarnation == DISK and database.applied == new.position
        database.close()
    # Killed between the migration and the digests.
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        connection.execute("DELETE FROM bucket_sums")
        connection.execute("UPDATE registers SET digest = NULL")
    new.path = old
    new.database = SlotDatabase(SLOT, old, None, create=False)
    assert new.database.tally == tally
    new.check()
    new.database.close()


# ---- of a whole disk


async def _install(store: DiskStore, path: str, ballot: Ballot, record: Record, *rows: Version) -> None:
    await store.durable(store.apply(Installed(SLOT, path, ballot, record, rows, record.writes)))


async def test_a_killed_disk_comes_back_with_the_same_digests(kit, tmp_path: Path):
    writer = Writer()
    store = await kit.open(tmp_path / "d", linger_s=60.0)
    await kit.put(store, SLOT, "a")
    first, second = writer.record("b/1", "put", 0), writer.record("b/1", "put", 0)
    await _install(store, "b/1", writer.ballot(), second, _head(second), _head(first))
    await store.durable(store.apply(Synced(SLOT, 3, Ballot(1, 7, "~", "~"), 4)))
    copy = kit.copy(tmp_path / "d", tmp_path / "copy")
    await store.settle([SLOT])
    again = await kit.open(copy)
    assert again.slot_state(SLOT) == store.slot_state(SLOT)
    assert again.tally(SLOT) == store.tally(SLOT)
    assert await again.bucket_sums(SLOT) == await store.bucket_sums(SLOT)
    assert again.tally(SLOT).objects == 2 and again.tally(SLOT).wanted == 2


async def test_the_tally_is_of_what_is_in_the_database(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", linger_s=60.0)
    await kit.put(store, SLOT, "a")
    assert store.tally(SLOT) == store.tally(SLOT + 1), "nothing is applied yet"
    await store.settle([SLOT, SLOT + 1])
    assert store.tally(SLOT).objects == 1 and store.tally(SLOT).log_head == 1
    assert store.tally(SLOT + 1).root == bytes(32)


async def test_a_slot_that_is_lost_is_empty_and_keeps_its_floors(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    await kit.put(store, SLOT, "a")
    floor = Ballot(2, 9, "~", "~")
    await store.durable(store.apply(Synced(SLOT, 3, floor, 12)))
    await store.settle([SLOT])
    incarnation = store.slot_state(SLOT).incarnation
    pool = store._pool
    await store._core._database.call(lambda: pool.retire(SLOT, "a test"))
    state = store.slot_state(SLOT)
    assert (state.synced_epoch, state.ballot_floor, state.version_floor, state.epoch) == (0, floor, 12, 3)
    assert state.incarnation != incarnation
    assert store.tally(SLOT) == store.tally(SLOT + 1)
    assert await store.bucket_sums(SLOT) == bytes(8192)
    await store.durable(store.apply(Synced(SLOT, 4, floor, 12)))
    await store.close()
    # It begins with what came after the loss, also at the next start.
    store = await kit.open(tmp_path / "d")
    assert store.slot_state(SLOT).synced_epoch == 4
    assert (store.tally(SLOT).objects, store.tally(SLOT).root) == (0, bytes(32))


async def test_a_stub_that_went_is_in_no_listing_also_after_a_kill(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", linger_s=60.0)
    await kit.put(store, SLOT, "keep")
    gone = await kit.put(store, SLOT, "gone")
    dead = Record(2, "delete", 1, None, (), (), NOW, NOW, gone.head, gone.writes, ((1, 1),))
    ballot = kit.ballot()
    store.apply(Accepted(SLOT, "gone", ballot, dead))
    store.apply(Chosen(SLOT, "gone", ballot))
    assert [entry.path for entry in (await store.scan("", "", "", 10)).entries] == ["gone", "keep"]
    position = store.apply(Forgotten(SLOT, "gone", ballot, 1))
    assert store.position(SLOT, "keep") == position, "the floors of the whole slot have changed"
    await store.durable(position)
    copy = kit.copy(tmp_path / "d", tmp_path / "copy")
    for disk in (store, await kit.open(copy)):
        assert (await disk.load(SLOT, "gone")).record is None
        assert [entry.path for entry in (await disk.scan("", "", "", 10)).entries] == ["keep"]
        await disk.settle([SLOT])
        assert disk.tally(SLOT).objects == 1
    again = await kit.put(store, SLOT, "gone")
    assert [entry.version for entry in (await store.scan("gone", "", "", 10)).entries] == [again.version_max]


async def test_questions_about_a_large_slot_come_in_pieces(kit, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("chunkstore.comparedb.PATHS_PER_PIECE", 7)
    monkeypatch.setattr("chunkstore.comparedb._WEIGHT_MAX", 10)
    store = await kit.open(tmp_path / "d")
    records = {f"p{n:03}": await kit.put(store, SLOT, f"p{n:03}", choose=n % 10 != 3) for n in range(60)}
    asked = 0
    ask = store._core._database.call

    def count(*values, **options):
        nonlocal asked
        asked += 1
        return ask(*values, **options)

    monkeypatch.setattr(store._core._database, "call", count)
    prints = await store.fingerprints(SLOT, range(BUCKETS))
    assert sum(map(len, prints.values())) == 16 * 54 and asked >= 60 / 7
    for bucket, data in prints.items():
        keys = [data[at : at + 8] for at in range(0, len(data), 16)]
        assert keys == sorted(keys) and all(key[0] == bucket for key in keys)
    asked = 0
    assert [item.path for item in await store.items(SLOT, [*records, "unknown"])] == sorted(records)
    assert asked >= 60 / 4
    for known in ({}, {**prints}, {bucket: data[:-16] for bucket, data in prints.items()}):
        found: list[str] = []
        after: str | None = ""
        while after is not None:
            items, after = await store.items_differing(SLOT, known or dict.fromkeys(range(BUCKETS), b""), after, 2000)
            assert items or after is None
            found += [item.path for item in items]
        last = {data[-16:-8] for data in prints.values() if data}
        wanted = {path for path in records if int(path[1:]) % 10 != 3}
        if known == prints:
            wanted = set()
        elif known:
            wanted = {path for path in wanted if path_key(path) in last}
        assert found == sorted(wanted)
    pages, after = [], ""
    while after is not None:
        items, after = await store.items_after(SLOT, after, 3000)
        pages.append([item.path for item in items])
    assert [path for page in pages for path in page] == sorted(records) and len(pages) > 5
