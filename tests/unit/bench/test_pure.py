"""The benchmark's own arithmetic: percentiles, schedules, shares, targets, pages and pictures. No timing."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
import xml.etree.ElementTree as ElementTree

import pytest

from bench.app import chosen
from bench.job import Job, get, mixed, put, shares
from bench.openloop import ExactTimer, due_times
from bench.plot import svg
from bench.report import markdown
from bench.results import Document, Recorder, Section, load, percentile, save
from bench.scenarios import SCENARIOS
from bench.scenarios.common import size_name
from bench.targets import TARGETS, verdicts


def test_percentiles():
    values = list(map(float, range(1000)))
    assert percentile([], 0.5) == 0
    assert percentile([7.0], 0.999) == 7
    assert percentile(values, 0.5) == 500
    assert percentile(values, 0.99) == 990
    assert percentile(values, 0.999) == 999


def test_even_arrivals_are_even():
    times = list(itertools.islice(due_times(100, "even", 1), 101))
    assert times[0] == 0
    assert all(abs(later - earlier - 0.01) < 1e-9 for earlier, later in itertools.pairwise(times))


def test_poisson_arrivals_come_at_the_rate_and_are_repeatable():
    times = list(itertools.islice(due_times(1000, "poisson", 7), 20_000))
    assert times == list(itertools.islice(due_times(1000, "poisson", 7), 20_000))
    assert times == sorted(times)
    distances = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(distances) / len(distances)
    assert 0.00095 < mean < 0.00105
    # Exponential: as wide as its mean, and so many longer than it.
    assert 0.34 < sum(distance > mean for distance in distances) / len(distances) < 0.40


async def test_exact_timer_is_readable_when_due_and_not_before():
    timer, fired = ExactTimer(), asyncio.Event()
    asyncio.get_running_loop().add_reader(timer.descriptor, fired.set)
    try:
        due = time.monotonic() + 0.02
        timer.set(due)
        await fired.wait()
        assert time.monotonic() >= due
        timer.clear()
        timer.clear()
        timer.set(0.0)  # long over
        fired.clear()
        await fired.wait()
    finally:
        asyncio.get_running_loop().remove_reader(timer.descriptor)
        timer.close()


@pytest.mark.parametrize(("clients", "processes"), [(1, 1), (32, 1), (33, 2), (64, 2), (200, 2)])
def test_shares_keep_clients_and_rate(clients, processes):
    job = Job(ports=(1,), clients=clients, operations=(put("p"),), rate_per_s=300.0)
    cut = shares(job, 2, 32)
    assert len(cut) == processes
    assert sum(one.clients for one in cut) == clients
    assert sum(one.rate_per_s for one in cut) == pytest.approx(300)
    numbers = [number for one in cut for number in range(one.first_client, one.first_client + one.clients)]
    assert numbers == list(range(clients))


def test_mixed_shares_sum_to_one():
    choices = mixed((get("g", paths=1, share=7), put("p", share=3)))
    assert [limit for limit, _ in choices] == pytest.approx([0.7, 1.0])


def test_names_of_sizes():
    assert [size_name(size) for size in (0, 4096, 64 * 2**20, 2**30)] == ["0 B", "4 KiB", "64 MiB", "1 GiB"]


def test_options_name_scenarios():
    assert chosen("put, get") == ["put", "get"]
    for wrong in ("", "put,nothing", ","):
        with pytest.raises(argparse.ArgumentTypeError):
            chosen(wrong)


def document(**sections: Recorder) -> Document:
    return Document(
        command="bench <all>",
        commit="abc",
        started_at="now",
        seconds=1.0,
        machine={"cpu": "one & only"},
        load_before="0",
        load_after="0",
        sections=tuple(Section(name=name, title=name, rows=to.rows()) for name, to in sections.items()),
    )


def example() -> Document:
    ours, swift = Recorder(), Recorder()
    for value in (900.0, 1000.0, 1100.0):
        subject = "PUT 4 KiB, 16 clients"
        ours.add(subject, "throughput", "ops/s", value, floor=("group <commit> & more", 2000.0))
        ours.add(subject, "p50", "ms", 2.0)
        ours.add(subject, "p99", "ms", 9.0)
        ours.add(subject, "p99 over p50", "", 4.5)
        ours.add("PUT 4 KiB, 64 clients", "throughput", "ops/s", 0.0, floor=("nothing", 0.0))
    swift.add("Swift 2.38: PUT 4 KiB, 16 clients", "throughput", "ops/s", 20.0)
    for times in (45.0, 50.0, 55.0):
        swift.add("AmberBlob over Swift 2.38: PUT 4 KiB, 16 clients", "throughput", "times", times)
    return document(put=ours, swift=swift)


def test_targets_are_judged_by_the_median():
    by_title = {verdict.target.title: verdict for verdict in verdicts(example())}
    assert len(by_title) == len(TARGETS), "each has a title of its own"
    times_swift = by_title["PUT 4 KiB, 16 clients, times Swift's"]
    assert times_swift.series is not None
    assert times_swift.series.median == 50
    assert times_swift.reached is True
    assert by_title["p99 over median, PUT 4 KiB, 16 clients"].reached is False
    assert by_title["PUT 4 KiB, 16 clients"].reached is None
    assert by_title["GET 64 MiB, of sendfile"].series is None


def test_targets_are_about_scenarios_that_exist():
    assert {target.section for target in TARGETS} <= set(SCENARIOS)


@pytest.mark.parametrize("found", [example(), document()])
def test_picture_is_well_formed(found):
    root = ElementTree.fromstring(svg(found))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert float(root.get("height", "0")) > 0
    for shape in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(shape.get("width", "-1")) >= 0


def test_page_shows_targets_rows_and_the_picture(tmp_path):
    save(example(), tmp_path / "bench.json")
    page = markdown(load(tmp_path / "bench.json"))
    assert "(performance.svg)" in page
    assert "| PUT 4 KiB, 16 clients, times Swift's | at least 40 times | 50.0 (45.0 to 55.0) times | yes |" in page
    assert "not in this run" in page
    assert "1,000 (900 to 1,100) ops/s" in page


def test_rows_of_a_subject_stay_together():
    to = Recorder()
    for subject, metric in (("a", "p50"), ("b", "p50"), ("a", "p50"), ("a", "p99.9")):
        to.add(subject, metric, "ms", 1.0)
    assert [(row.subject, row.metric) for row in to.rows()] == [("a", "p50"), ("a", "p99.9"), ("b", "p50")]
