"""The check of histories: it agrees with a search that tries everything, and finds what is wrong."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from node.protocol.operations import NO_CONDITIONS, Conditions
from sim.check import without_numbers
from sim.history import READS, Call, Seen
from sim.linearizability import linearizable, search
from sim.specification import NOTHING, State, agrees, apply_call, shows, state_of
from tests.nemesis.recording import DOCTORS, facts_of, load, save
from tests.nemesis.verdict import Verdict, check

# ---- histories made by a correct store, with whatever concurrency and unknown outcomes there may be


class Store:
    """One path, done one call at a time."""

    def __init__(self) -> None:
        self.state: State = state_of(NOTHING)

    def do(self, call: Call) -> tuple[Any, ...]:
        if call.kind not in READS:
            told, self.state = apply_call(call, self.state)
            if call.kind == "restore" and told[0] in ("ok", "same"):
                return "done", told[1]
            return told[:1] if call.kind == "delete" and told[0] == "ok" else told
        _, version_max, live, _, versions = self.state
        head = live.bit_length() - 1 if live else 0
        rows = tuple((number, etag, bool(live >> number & 1)) for number, etag in versions.newest_first())
        if call.kind == "read-version":
            found = [(etag, lives) for number, etag, lives in rows if number == call.version]
            return "read", found[0] if found else None
        seen = Seen(head, versions.etag_of(head), None if head else version_max)
        return "read", seen if call.kind == "read" else (seen, rows)


def made(
    seed: int,
    count: int,
    *,
    clients: int = 3,
    unknown: float = 0.2,
    final: bool = True,
    long: float = 1.5,
    highest: int = 4,
    heads: bool = False,
) -> list[Call]:
    """Calls that overlap; each happens at one moment between its ends, or, if it is unknown, later or never.

    ``long``: how much longer they take than the pauses between them. ``highest``: versions that are asked for.
    ``heads``: none are, and only heads are read.
    """
    chance = random.Random(seed)
    free = [0.0] * clients
    calls: list[Call] = []
    happens: list[tuple[float, Call]] = []
    for number in range(1, count + 1):
        client = chance.randrange(clients)
        began = free[client] + chance.expovariate(1.0)
        call = (_drawn_of_heads if heads else _drawn)(chance, number, began, highest)
        ended = began + chance.expovariate(1.0 / long)
        free[client] = ended
        calls.append(call)
        if call.kind not in READS and chance.random() < unknown:
            if chance.random() < 0.6:
                happens.append((began + chance.expovariate(0.2), call))
            continue
        call.ended = ended
        happens.append((chance.uniform(began, ended), call))
    store = Store()
    for _, call in sorted(happens, key=lambda pair: pair[0]):
        told = store.do(call)
        if call.ended is not None:
            call.result = told
    if final:
        at = max([*free, *(moment for moment, _ in happens)]) + 1
        last = Call(-1, "p", "read-all", at, ended=at + 1)
        last.result = store.do(last)
        calls.append(last)
    return calls


def _drawn(chance: random.Random, number: int, began: float, highest: int) -> Call:
    kind = chance.choice(
        (
            "put",
            "put",
            "put",
            "delete",
            "delete-version",
            "delete-version",
            "restore",
            "restore",
            "read",
            "read",
            "read-version",
            "read-all",
        )
    )
    version = chance.randint(1, highest) if kind in ("delete-version", "read-version") else None
    if kind in ("put", "restore") and chance.random() < (0.2 if kind == "put" else 0.6):
        version = chance.randint(1, highest + 1)
    conditions = NO_CONDITIONS
    if kind not in READS and chance.random() < 0.3:
        conditions = chance.choice(
            (
                Conditions(absent=True),
                Conditions(etags=("*",)),
                Conditions(etags=(f"e{chance.randint(1, number)}",)),
                Conditions(version=chance.randint(0, 4)),
            )
        )
    return Call(number, "p", kind, began, version=version, conditions=conditions, tries=1)


def _drawn_of_heads(chance: random.Random, number: int, began: float, highest: int) -> Call:
    conditions = NO_CONDITIONS
    kind = chance.choice(("put", "put", "delete", "read", "read"))
    if kind != "read" and chance.random() < 0.4:
        etags = tuple(f"e{chance.randint(max(1, number - highest), number)}" for _ in range(2))
        conditions = chance.choice(
            (Conditions(absent=True), Conditions(etags=("*",)), Conditions(etags=etags[:1]), Conditions(etags=etags))
        )
    return Call(number, "p", kind, began, conditions=conditions, tries=1)


def tries_everything(calls: list[Call]) -> bool:
    """The check without any cleverness."""
    todo = [call for call in calls if not call.void and not (call.result is None and call.kind in READS)]
    must = {call for call in todo if call.result is not None}
    seen: set[tuple[frozenset[Call], State]] = set()
    stack: list[tuple[frozenset[Call], State]] = [(frozenset(), state_of(NOTHING))]
    while stack:
        config = stack.pop()
        if config in seen:
            continue
        seen.add(config)
        done, state = config
        if must <= done:
            return True
        limit = min(call.ended for call in must - done if call.ended is not None)
        for call in todo:
            if call in done or call.invoked > limit:
                continue
            if call.kind in READS:
                if shows(call, state):
                    stack.append((done | {call}, state))
                continue
            told, after = apply_call(call, state)
            if call.result is None or agrees(told, call.result):
                stack.append((done | {call}, after))
    return False


def spoilt(seed: int, calls: list[Call]) -> None:
    """Change one answer to that of another call of its kind."""
    chance = random.Random(seed)
    answered = [call for call in calls if call.result is not None]
    for _ in range(50 if answered else 0):
        one, other = chance.choice(answered), chance.choice(answered)
        if one.kind == other.kind and one.result != other.result:
            one.result = other.result
            return


def any_history(seed: int) -> list[Call]:
    """Short, of any shape, and in two of five cases with an answer that belongs elsewhere."""
    chance = random.Random(seed)
    calls = made(
        seed,
        chance.randint(6, 14),
        clients=chance.randint(2, 5),
        unknown=chance.choice((0.0, 0.1, 0.3, 0.5)),
        final=chance.random() < 0.5,
        long=chance.choice((1.5, 4, 10)),
        highest=chance.choice((1, 2, 4)),
    )
    if chance.random() < 0.4:
        spoilt(seed, calls)
    return calls


def of_heads(calls: list[Call]) -> list[Call]:
    """What worlds judge where versions come and go: nothing tells a number."""
    for call in calls:
        if call.result is not None and call.result[0] == 412:
            call.result = (412,)
    return [without_numbers(call) for call in calls]


def any_history_of_heads(seed: int) -> list[Call]:
    """As :func:`any_history`."""
    chance = random.Random(seed)
    calls = of_heads(
        made(
            seed,
            chance.randint(6, 12),
            clients=chance.randint(2, 5),
            unknown=chance.choice((0.0, 0.1, 0.3, 0.5)),
            final=chance.random() < 0.5,
            long=chance.choice((1.5, 4, 10)),
            heads=True,
        )
    )
    if chance.random() < 0.5:
        spoilt(seed, calls)
    return calls


@pytest.mark.parametrize("numbers", [True, False])
def test_agrees_with_a_search_that_tries_everything(numbers: bool) -> None:
    verdicts: Counter[bool] = Counter()
    for seed in range(6000):
        calls = any_history(seed) if numbers else any_history_of_heads(seed)
        expected = tries_everything(calls)
        assert linearizable(calls) == expected, "\n".join(map(str, [f"seed {seed}", *calls]))
        verdicts[expected] += 1
    assert min(verdicts.values()) > 1000, verdicts


@pytest.mark.parametrize("unknown", [0.03, 0.1, 0.2])
def test_histories_of_heads_with_many_unknown_outcomes(unknown: float) -> None:
    """As the worlds have them where versions come and go: what cannot be told apart is searched once."""
    for seed in range(10):
        calls = of_heads(made(seed, 200, clients=8, unknown=unknown, heads=True))
        finding = search(calls)
        assert finding.verdict is True and finding.looked < 20_000, (seed, finding.looked, finding.stuck)


def test_a_search_is_given_up_soon() -> None:
    """What it looks at and keeps is bounded, whatever the history."""
    calls = made(3, 60, clients=30, unknown=0.9, final=False)
    finding = search([*calls, read(1000, 1000, 77, "never")], looks_max=5000)
    assert finding.verdict is None and finding.stuck is not None
    assert finding.looked <= 5100 and finding.widest <= 5000


def test_long_histories_with_many_unknown_outcomes() -> None:
    """Several times what a key sees in a run of tests/nemesis."""
    for seed in range(10):
        calls = made(seed, 500, clients=8, unknown=0.03)
        finding = search(calls)
        print(f"seed {seed}: {finding.looked} worlds looked at, at most {finding.widest} at once")
        assert finding.verdict is True, (seed, finding.looked, finding.stuck)


def test_a_long_history_with_one_wrong_answer() -> None:
    """It is found, and the search ends where it is."""
    for seed in range(10):
        calls = made(seed, 500, clients=8, unknown=0.02)
        reads = [call for call in calls if call.kind == "read" and call.result is not None and call.number > 250]
        reads[0].result = ("read", Seen(10_000, "never"))
        finding = search(calls)
        assert finding.verdict is False, (seed, finding.looked)
        assert finding.stuck is reads[0]


# ---- histories that are wrong in a known way


def put(number: int, began: float, ended: float | None, version: int | None, **options: Any) -> Call:
    result = None if version is None else ("ok", version)
    return Call(number, "p", "put", began, ended=ended, result=result, **options)


def read(number: int, began: float, version: int, etag: str | None) -> Call:
    return Call(number, "p", "read", began, ended=began + 0.5, result=("read", Seen(version, etag)))


def test_a_lost_update() -> None:
    """Two writers were both told that they replaced version 1."""
    when_1 = Conditions(version=1)
    calls = [put(1, 0, 1, 1), put(2, 2, 5, 2, conditions=when_1), put(3, 2, 5, 3, conditions=when_1)]
    assert linearizable(calls) is False
    calls[2].result = (412, 2, "e2")
    assert linearizable(calls) is True
    calls[2].result = (412, 1, "e1")
    assert linearizable(calls) is False, "refused, and told the very version that was asked for"


def test_a_stale_read() -> None:
    puts = [put(1, 0, 1, 1), put(2, 2, 3, 2)]
    assert linearizable([*puts, read(3, 2.8, 1, "e1")]) is True
    assert linearizable([*puts, read(3, 4, 1, "e1")]) is False
    assert linearizable([*puts, read(3, 2.1, 2, "e2"), read(4, 2.7, 1, "e1")]) is False, "time runs backwards"


def test_a_resurrected_delete() -> None:
    calls = [put(1, 0, 1, 1), Call(2, "p", "delete", 2, ended=3, result=("ok",))]
    assert linearizable([*calls, read(3, 4, 0, None)]) is True
    assert linearizable([*calls, read(3, 4, 0, None), read(4, 5, 1, "e1")]) is False
    restore = Call(5, "p", "restore", 2.5)
    assert linearizable([*calls, restore, read(3, 4, 0, None), read(4, 5, 1, "e1")]) is True, "it may happen late"


def test_a_version_chosen_twice() -> None:
    assert linearizable([put(1, 0, 9, 1), put(2, 0, 9, 1)]) is False
    rows = ("read", (Seen(2, "e2"), ((2, "e2", True), (1, "e1", True))))
    final = Call(-1, "p", "read-all", 10, ended=11, result=rows)
    assert linearizable([put(1, 0, 9, 1), put(2, 0, 9, 2), final]) is True
    assert linearizable([put(1, 0, 9, 2), put(2, 0, 9, 2), final]) is False


def test_a_void_write_that_is_there() -> None:
    void = Call(1, "p", "put", 0, ended=1, void=True)
    assert linearizable([void, read(2, 2, 0, None)]) is True
    assert linearizable([void, read(2, 2, 1, "e1")]) is False


def test_a_delete_that_is_still_to_come_is_not_taken_as_done() -> None:
    """A restore that found nothing to do, or undid the delete under way: both must stay possible."""
    calls = [
        put(1, 0, 1, 1),
        Call(2, "p", "delete-version", 2, version=1, ended=6, result=("ok", 1)),
        Call(3, "p", "restore", 3, version=1, ended=4, result=("done", 1)),
    ]
    for lives in (True, False):
        told = Call(4, "p", "read-version", 7, version=1, ended=8, result=("read", ("e1", lives)))
        assert linearizable([*calls, told]) is True


# ---- a whole run's history, doctored


@pytest.fixture
def history() -> list[Call]:
    calls: list[Call] = []
    for key in range(6):
        for call in made(key + 100, 120, clients=4, unknown=0.05):
            call.path = f"k{key}"
            call.number += 1000 * key * (1 if call.number > 0 else -1)
            if call.kind == "put":
                call.content = f"etag-of-{call.path}-{call.number}"
            calls.append(call)
    return calls


def _verdict(calls: list[Call]) -> Verdict:
    verdict = Verdict()
    check(facts_of(calls), verdict)
    return verdict


def replayed(calls: list[Call]) -> Iterator[Call]:
    """The same calls on one store each, one after the other, so that the etags are those of :func:`history`."""
    stores: dict[str, Store] = {}
    for call in sorted(calls, key=lambda call: call.invoked):
        if call.result is not None:
            call.result = stores.setdefault(call.path, Store()).do(call)
            call.ended = call.invoked + 1e-9
            yield call


@pytest.mark.parametrize("name", sorted(DOCTORS))
def test_a_doctored_history_is_found(name: str, history: list[Call]) -> None:
    good = list(replayed(history))
    assert _verdict(good).good, list(_verdict(good).details())
    DOCTORS[name](good, random.Random(1))
    verdict = _verdict(good)
    assert not verdict.good
    assert verdict.not_linearizable or verdict.twice or verdict.lost, verdict.counts()


def test_a_saved_history_is_read_back(history: list[Call], tmp_path: Any) -> None:
    save(history, tmp_path / "history.jsonl")
    back = load(tmp_path / "history.jsonl")
    assert [str(call) for call in back] == [str(call) for call in history]
    assert [call.result for call in back] == [call.result for call in history]
