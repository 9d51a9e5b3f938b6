"""What is chosen, what is understood of the options and of ``explain``, and the picture of speed."""

from __future__ import annotations

import argparse
import asyncio

import pytest

from demo.__main__ import parse_size
from demo.report import sparkline
from demo.steps import holds_everything, make_plan
from demo.traffic import for_each


@pytest.mark.parametrize("count", [10, 50, 2000])
def test_plan_is_bounded_and_repeatable(count):
    names = [f"n/{number}" for number in range(count)]
    plan = make_plan(names, seed=3)
    assert plan == make_plan(names, seed=3)
    assert len(plan.overwritten) == len(plan.deleted) == min(100, count // 3)
    assert set(plan.restored) < set(plan.deleted)
    assert {*plan.overwritten, *plan.deleted} <= set(plan.sample)
    assert len(set(plan.sample)) == len(plan.sample)
    if count == 2000:
        assert len(plan.restored) == 50
        assert len({*plan.overwritten} & {*plan.deleted}) == 20


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1GiB", 1 << 30), ("64MiB", 64 << 20), ("0.5 GiB", 1 << 29), ("500MB", 500_000_000), ("10000000", 10_000_000)],
)
def test_sizes(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1TiB", "1k", "one"])
def test_no_sizes(text):
    with pytest.raises(argparse.ArgumentTypeError):
        parse_size(text)


def test_sparkline():
    assert sparkline([], 1.0, cells=4) == ""
    assert sparkline([(0.0, 8), (0.9, 4), (1.0, 4), (0.3, -8)], 1.0, cells=4) == "█  █"


def test_holds_everything():
    document = {
        "replicas": [{"node": "node-2", "state": "chosen"}],
        "versions": [{"copies": {"node-2": "all"}}, {"copies": {"node-2": "all"}}],
    }
    assert holds_everything(document, "node-2")
    assert not holds_everything(document, "node-3")
    document["versions"][1]["copies"]["node-2"] = "none"
    assert not holds_everything(document, "node-2")


async def test_the_first_failure_ends_the_rest():
    begun = []

    async def work(item):
        begun.append(item)
        await asyncio.sleep(0)
        if item == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        await for_each(range(100), work, parallel=2)
    assert len(begun) < 100
    begun.clear()
    await for_each([1, 2, 4], work, parallel=8)
    assert begun == [1, 2, 4]
