"""Two stores under the same load, in turn: ours, theirs; theirs, ours; ours, theirs.

On a machine that others use too, a figure of now and one of a minute ago are not comparable; two windows next to each
other are, more or less. So what counts is the ratio within each pair of windows, and how far these ratios lie apart.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from bench import bulk, procfs
from bench.cluster import Cluster
from bench.job import OBJECTS, Job, Operation, get, put
from bench.load import run_load, run_through
from bench.results import Recorder
from bench.targets import TIMES

CLIENTS = 16
_WARMING_CLIENTS = 64
_SMALL_BYTES = 4096
_LARGE_BYTES = 64 * 2**20
_LARGE_MIB = 64
_READ_PATHS = 20
_CALM_S = 2.0
_STANDSTILLS_MAX = 5
_US = 1e6
_MS = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A running store, as the generator sees it.

    Attributes:
        title: its name, as the tables show it.
        ports: where it takes requests.
        base: what comes before an object's path in the URL, with the slash between them.
        headers: that every request needs.
        consistencies: it can be asked for a consistency by our header; another store has one kind of GET.
        pids: of all its server processes, whose CPU time is its cost.
    """

    title: str
    ports: Sequence[int]
    base: str
    pids: Sequence[int]
    headers: Mapping[str, str] = field(default_factory=dict)
    consistencies: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How much of everything.

    Attributes:
        window_s: how long each load goes on.
        settle_s: the pause before it, so that one store's last writes are not the other's burden.
        transfers: how many large bodies make one measurement.
    """

    window_s: float
    settle_s: float
    transfers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement. ``cpu`` is of all server processes, per request or MiB; ``note`` is for the reader."""

    rate: float
    cpu: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    errors: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Something that is measured of both. A store that knows no consistencies is asked the same by either GET."""

    subject: str
    unit: str
    cpu_unit: str
    measure: Callable[[Store, Pace, int], Sample]


def ours(cluster: Cluster, title: str = "AmberBlob") -> Store:
    """Our own cluster."""
    return Store(title=title, ports=tuple(cluster.ports), base=OBJECTS, pids=tuple(cluster.pids), consistencies=True)


def ratio(first: float, second: float) -> float | None:
    """How many times the second the first is; None where that says nothing."""
    return first / second if first > 0 and second > 0 else None


def compare(first: Store, second: Store, to: Recorder, rounds: Iterable[int], pace: Pace) -> None:
    """Measure both in turn, round by round; each measurement, and each ratio of two neighbours, goes to ``to``.

    Raises:
        RuntimeError: one of them answered no request, or a generator failed.
        OSError: a connection was lost.
    """
    for store in (first, second):
        prepare(store, pace)
    for number in rounds:
        for trial in TRIALS:
            one, other = in_turn(number, partial(_measure, trial, pace, number), first, second)
            add_pair(to, trial, (first.title, one), (second.title, other))
    _add_idle(to, (first, second), pace)


def in_turn(number: int, measure: Callable[[Store], Sample], first: Store, second: Store) -> tuple[Sample, Sample]:
    """Both, right after each other. Who comes first changes with the round, so that the order favours no one."""
    if number % 2:
        other = measure(second)
        return measure(first), other
    return measure(first), measure(second)


def add_pair(to: Recorder, trial: Trial, one: tuple[str, Sample], other: tuple[str, Sample]) -> None:
    """Two neighbouring measurements and how they relate."""
    for title, sample in (one, other):
        subject = f"{title}: {trial.subject}"
        to.add(subject, "throughput", trial.unit, sample.rate, note=sample.note)
        if sample.p50_ms:
            to.add(subject, "p50", "ms", sample.p50_ms)
            to.add(subject, "p99", "ms", sample.p99_ms)
        to.add(subject, "CPU of all servers", trial.cpu_unit, sample.cpu)
        if trial.unit == "ops/s":
            to.add(subject, "errors", "", sample.errors)
    subject = f"{one[0]} over {other[0]}: {trial.subject}"
    for metric, value in (
        ("throughput", ratio(one[1].rate, other[1].rate)),
        ("CPU of all servers", ratio(one[1].cpu, other[1].cpu)),
    ):
        if value is not None:
            to.add(subject, metric, TIMES, value)


def until(deadline: float, rounds_max: int, clock: Callable[[], float] = time.monotonic) -> Iterator[int]:
    """Numbers of rounds: the first in any case, another one only if the longest so far would still fit."""
    longest = 0.0
    for number in range(rounds_max):
        began = clock()
        if number and began + longest > deadline:
            return
        yield number
        longest = max(longest, clock() - began)


def prepare(store: Store, pace: Pace) -> None:
    """What is met once and not measured: first writes into an empty store, and the objects that are read."""
    run_load(_job(store, put("new", base=store.base), clients=_WARMING_CLIENTS), pace.window_s)
    run_through(_job(store, put("read", paths=_READ_PATHS, base=store.base), requests_each=_READ_PATHS))


def _add_idle(to: Recorder, stores: Sequence[Store], pace: Pace) -> None:
    """What each costs while it is asked for nothing: in the measurements it was a burden of the other."""
    time.sleep(_CALM_S)
    before = [procfs.cpu_s(store.pids) for store in stores]
    time.sleep(pace.window_s)
    for store, used in zip(stores, before, strict=True):
        share = (procfs.cpu_s(store.pids) - used) / pace.window_s
        to.add(f"{store.title}: idle", "CPU of all servers", "% of a core", share * 100)


def _measure(trial: Trial, pace: Pace, number: int, store: Store) -> Sample:
    time.sleep(pace.settle_s)
    try:
        return trial.measure(store, pace, number)
    except RuntimeError as error:
        raise RuntimeError(f"{store.title}: {trial.subject}: {error}") from error


def _job(store: Store, operation: Operation, *, clients: int = CLIENTS, requests_each: int = 0) -> Job:
    headers = "".join(f"{name}: {value}\r\n" for name, value in store.headers.items())
    return Job(
        ports=tuple(store.ports),
        clients=clients,
        operations=(msgspec.structs.replace(operation, headers=operation.headers + headers),),
        body_bytes=_SMALL_BYTES,
        requests_each=requests_each,
    )


def _small(job: Job, store: Store, pace: Pace) -> Sample:
    for _ in range(_STANDSTILLS_MAX):
        load = run_load(job, pace.window_s, probe=partial(procfs.usage, store.pids))
        if load.count or load.errors:
            break  # else the machine stood still for the whole window, which says nothing of the store
    if not load.count:
        raise RuntimeError(f"no request was answered well: {load.errors}")
    return Sample(
        rate=load.per_s,
        cpu=load.used_per_op(procfs.CPU) * _US,
        p50_ms=load.latency_ms(0.5),
        p99_ms=load.latency_ms(0.99),
        errors=sum(load.errors.values()),
    )


def _put_small(store: Store, pace: Pace, number: int) -> Sample:
    return _small(_job(store, put(f"put/{number}", base=store.base)), store, pace)


def _get_small(consistency: str, store: Store, pace: Pace, number: int) -> Sample:
    headers = f"X-Amber-Consistency: {consistency}\r\n" if store.consistencies else ""
    sample = _small(_job(store, get("read", paths=_READ_PATHS, base=store.base, headers=headers)), store, pace)
    return sample if store.consistencies else replace(sample, note="its only kind of GET")


def _large(store: Store, pace: Pace, number: int, transfer: Callable[[int, str], float]) -> Sample:
    cpu, seconds = procfs.cpu_s(store.pids), 0.0
    for turn in range(pace.transfers):
        port = store.ports[(number + turn) % len(store.ports)]
        seconds += transfer(port, f"{store.base}large/{number}/{turn}")
    mib = _LARGE_MIB * pace.transfers
    return Sample(rate=mib / seconds, cpu=(procfs.cpu_s(store.pids) - cpu) * _MS / mib)


def _put_large(store: Store, pace: Pace, number: int) -> Sample:
    body = os.urandom(_LARGE_BYTES)

    def transfer(port: int, target: str) -> float:
        return bulk.put(port, target, len(body), body, headers=store.headers)

    return _large(store, pace, number, transfer)


def _get_large(store: Store, pace: Pace, number: int) -> Sample:
    def transfer(port: int, target: str) -> float:
        return bulk.get(port, target, _LARGE_BYTES, headers=store.headers)

    return _large(store, pace, number, transfer)


TRIALS = (
    Trial(subject=f"PUT 4 KiB, {CLIENTS} clients", unit="ops/s", cpu_unit="µs/op", measure=_put_small),
    *(
        Trial(
            subject=f"GET 4 KiB {consistency}, {CLIENTS} clients",
            unit="ops/s",
            cpu_unit="µs/op",
            measure=partial(_get_small, consistency),
        )
        for consistency in ("strong", "local")
    ),
    Trial(subject="PUT 64 MiB", unit="MiB/s", cpu_unit="ms/MiB", measure=_put_large),
    Trial(subject="GET 64 MiB", unit="MiB/s", cpu_unit="ms/MiB", measure=_get_large),
)
