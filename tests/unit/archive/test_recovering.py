"""What a path becomes when it is recovered: the same, without versions that the archive does not have."""

from __future__ import annotations

import random

import pytest

from amberblob.archives import DAMAGED
from amberblob.manifest import covers
from antientropy.checks import _is_record
from archive.recovering import lacking, revive
from tests.unit.archive.export_kit import NOW_MS, item, row, version


def test_a_path_comes_back_as_it_was() -> None:
    told = item("p", *(version(n) for n in range(1, 5)), live=((2, 3),))
    revival = revive(told, lambda version: True, NOW_MS + 99)
    assert (revival.record, revival.rows, revival.writes) == (told.record, told.rows, told.writes)
    assert revival.lost == () and revival.write_id == "w4"
    # The head of a record that is no put is no row that it brings: it has to follow.
    assert [row.version for row in revival.older] == [4, 2, 1]


def test_the_head_of_a_put_comes_with_its_record() -> None:
    told = item("p", version(1), version(2), version(3))
    assert [row.version for row in revive(told, lambda version: True, 0).older] == [1]


def test_without_its_head_the_newest_that_is_left_is_the_head() -> None:
    told = item("p", version(1), version(2), version(3))
    revival = revive(told, lambda version: version.version != 3, NOW_MS + 99)
    record = revival.record
    assert revival.lost == (3,) and [row.version for row in revival.rows] == [2, 1]
    assert record.head == version(2) and record.op == "expire" and record.added is None
    assert record.live == ((1, 2),) and record.expired == ((3, 3),) and record.version_max == 3
    assert record.revision == told.record.revision + 1 if told.record else False
    assert revival.write_id == record.writes[-1].write_id != "w3"
    assert revival.write_id == revive(told, lambda version: version.version != 3, NOW_MS + 7).write_id


def test_with_nothing_left_the_path_is_a_deleted_one_that_remembers_its_versions() -> None:
    revival = revive(item("p", version(1), version(2)), lambda version: False, NOW_MS)
    assert revival.record.head is None and revival.record.live == () and revival.record.version_max == 2
    assert revival.rows == () and revival.lost == (2, 1)


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_lost_the_record_stays_one_that_can_be(seed: int) -> None:
    chance = random.Random(seed)
    numbers = sorted(chance.sample(range(1, 30), chance.randint(1, 8)))
    versions = [version(number) for number in numbers]
    low = chance.choice(numbers)
    live = chance.choice([(), ((low, numbers[-1]),), ((numbers[0], low),)])
    told = item("p", *versions, live=live)
    here = {number for number in numbers if chance.random() < 0.6}
    revival = revive(told, lambda version: version.version in here, NOW_MS)
    record = revival.record
    assert _is_record(record)
    assert {row.version for row in revival.rows} == here
    alive = {number for number in here if any(a <= number <= b for a, b in live)}
    assert (record.head.version if record.head else None) == max(alive, default=None)
    assert {number for number in numbers if covers(record.live, number)} == alive
    assert {number for number in numbers if covers(record.expired, number)} == set(numbers) - here
    brought = {one.version for one in (record.added, record.previous) if one is not None}
    assert brought <= here and {row.version for row in revival.older} == here - brought


def test_chunks_are_lacking_without_a_row_with_a_damaged_one_and_with_one_of_another_length() -> None:
    a, b, c, d = (version(number).chunks[0] for number in range(1, 5))
    rows = {
        a.id: row(version(1)),
        b.id: row(version(2), state=DAMAGED),
        c.id: row(version(4)),
    }
    assert lacking([a, b, b], rows) == [b]
    assert lacking([d], rows) == [d]
    longer = {c.id: row(version(3, size=10))}
    assert lacking([c], longer) == []
