"""What goes to the archive, what may go from the disk, and which goes first."""

import math

import pytest

from amberblob.clock import SeededRandomness
from amberblob.config import ArchiveRule, ArchiveSection, Duration, SizeBytes
from amberblob.manifest import Version
from archive.policy import Candidate, Candidates, Disk, Judgement, Policy, Rule, Water, Why, room_wanted
from archive.savings import RuleSavings, Savings, add_up
from chunkstore.interface import ArchiveView

DAY = 86_400_000
NOW = 1_800_000_000_000


def version(number: int = 1, *, age_days: float = 10, size: int = 1000, manifest: bool = False) -> Version:
    return Version(
        version=number,
        blob_id=f"blob{number}",
        size=size,
        etag="0" * 64,
        created_at_ms=NOW - round(age_days * DAY),
        content_type="",
        meta={},
        chunks=(),
        manifest_id="1" * 64 if manifest else None,
        chunk_count=1,
    )


def view(path: str = "a/b", of: Version | None = None, **more: object) -> ArchiveView:
    values: dict[str, object] = {
        "path": path,
        "version": of or version(),
        "is_head": True,
        "tombstoned_at_ms": None,
        "uploaded": 0,
        "verified": 0,
        "chunk_count": 1,
        "evicted": False,
        "wanted": False,
    }
    return ArchiveView(**(values | more))  # type: ignore[arg-type]


def policy(*rules: ArchiveRule) -> Policy:
    return Policy.of(ArchiveSection(target="s3://bucket", rules=rules))


def judge(rule: ArchiveRule, seen: ArchiveView, *, read: int = 0, now: int = NOW) -> Judgement:
    return policy(rule).judge(seen, read or seen.version.created_at_ms, now)


EVICTING = ArchiveRule(action="archive-and-evict")


def test_the_longest_prefix_wins():
    rules = policy(
        ArchiveRule(prefix="a", action="archive"),
        ArchiveRule(prefix="a/b", action="keep"),
        ArchiveRule(prefix="a/b/c", action="write-through"),
    )
    found = {path: rules.rule(path) for path in ("a", "a/b", "a/bc", "a/b/c1", "x")}
    assert {path: rule and rule.action for path, rule in found.items()} == {
        "a": "archive", "a/b": "keep", "a/bc": "keep", "a/b/c1": "write-through", "x": None,
    }  # fmt: skip
    assert [rules.write_through(path) for path in ("a/b/c1", "a/b", "x")] == [True, False, False]
    assert rules.judge(view("x"), 0, NOW).send is Why.NO_RULE
    assert rules.judge(view("a/b"), 0, NOW) == Judgement(rule=rules.rule("a/b"), send=Why.KEPT, evict=Why.KEPT)
    assert rules.prefixes() == ("a",)
    assert not rules.evicts and policy(EVICTING).evicts


def test_without_a_target_there_are_no_rules():
    nothing = Policy.of(ArchiveSection(rules=(ArchiveRule(action="write-through"),)))
    assert nothing.rules == () and not nothing.write_through("a") and nothing.prefixes() == ()


def test_prefixes_that_need_no_look_are_left_out():
    rules = policy(
        *(ArchiveRule(prefix=prefix) for prefix in ("b/", "a", "b/c", "a1", "c")),
        ArchiveRule(prefix="d", action="keep"),
    )
    assert rules.prefixes() == ("a", "b/", "c")


@pytest.mark.parametrize(
    ("rule", "seen", "why", "due"),
    [
        (ArchiveRule(older_than=Duration(11 * 86_400)), view(), Why.YOUNG, NOW + DAY),
        (ArchiveRule(older_than=Duration(10 * 86_400)), view(), Why.DUE, 0),
        (ArchiveRule(not_read_for=Duration(86_400)), view(), Why.READ_LATELY, NOW + DAY - 1000),
        (ArchiveRule(not_read_for=Duration(1)), view(), Why.DUE, 0),
        (ArchiveRule(older_than=Duration(11 * 86_400), not_read_for=Duration(2 * 86_400)), view(), Why.YOUNG, NOW + 2 * DAY - 1000),
        (ArchiveRule(larger_than=SizeBytes(1001)), view(), Why.SMALL, 0),
        (ArchiveRule(larger_than=SizeBytes(1000)), view(), Why.DUE, 0),
        (ArchiveRule(versions="old"), view(), Why.CURRENT, 0),
        (ArchiveRule(versions="old"), view(is_head=False), Why.DUE, 0),
        (ArchiveRule(versions="old"), view(tombstoned_at_ms=NOW), Why.DUE, 0),
        (ArchiveRule(), view(uploaded=1), Why.DONE, 0),
        (ArchiveRule(), view(uploaded=1, chunk_count=2), Why.DUE, 0),
        (ArchiveRule(), view(wanted=True), Why.NO_BYTES, 0),
        (ArchiveRule(action="write-through"), view(), Why.DUE, 0),
    ],
)  # fmt: skip
def test_what_is_sent(rule, seen, why, due):
    judged = judge(rule, seen, read=NOW - 1000)
    assert (judged.send, judged.due_at_ms) == (why, due)
    assert judged.evict is (Why.STAYS if not seen.evicted else Why.DONE)


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (view(verified=1, uploaded=1), Why.DUE),
        (view(verified=0, uploaded=1), Why.NOT_VERIFIED),
        (view(verified=2, uploaded=3, chunk_count=3), Why.NOT_VERIFIED),
        (view(verified=1, uploaded=1, evicted=True), Why.DONE),
        (view(verified=1, uploaded=1, wanted=True), Why.DUE),
        # Three chunks and a manifest, of which two are the same: the view cannot know that three rows are all.
        (view(of=version(manifest=True), verified=3, uploaded=3, chunk_count=4), Why.DUE),
        (view(of=version(manifest=True), verified=2, uploaded=3, chunk_count=4), Why.NOT_VERIFIED),
        (view(of=version(manifest=True), verified=0, uploaded=0, chunk_count=4), Why.NOT_VERIFIED),
        (view(verified=3, uploaded=3, chunk_count=4), Why.NOT_VERIFIED),
    ],
)
def test_bytes_go_only_when_verified_rows_cover_them(seen, why):
    assert judge(EVICTING, seen).evict is why


def test_conditions_hold_for_evicting_too():
    covered = view(verified=1, uploaded=1)
    rule = ArchiveRule(action="archive-and-evict", not_read_for=Duration(86_400))
    assert judge(rule, covered, read=NOW - DAY + 1).evict is Why.READ_LATELY
    assert judge(rule, covered, read=NOW - DAY).evict is Why.DUE


def test_every_reason_is_said():
    young = ArchiveRule(prefix="a/", action="archive-and-evict", older_than=Duration(30 * 86_400), evict_above=80)
    assert judge(young, view()).text() == "the rule for 'a/' leaves it alone until it is 30d old"
    rule = Rule.of(young)
    for why in Why:
        for of_evicting in (False, True):
            text = Judgement(rule=rule, send=why, evict=why).text(of_evicting=of_evicting)
            assert text and "None" not in text
    assert "fuller than 80 %" in Judgement(rule=rule, send=Why.DONE, evict=Why.DUE).text(of_evicting=True)
    assert "no rule" in policy(young).judge(view("x"), 0, NOW).text()


def test_water_falls_from_the_high_mark_to_the_low_one():
    rule = Rule.of(ArchiveRule(action="archive-and-evict", evict_above=80, evict_to=70))
    water = Water()
    fullness = [75, 80, 81, 75, 71, 70, 75, 80, 81, 70]
    lets_go = [water.lets_go(rule, Disk(used=percent, total=100)) for percent in fullness]
    assert lets_go == [False, False, True, True, True, False, False, False, True, False]
    always = Rule.of(ArchiveRule(action="archive-and-evict"))
    assert water.lets_go(always, Disk(used=0, total=100))
    single = Rule.of(ArchiveRule(action="archive-and-evict", evict_above=50))
    assert [Water().lets_go(single, Disk(used=used, total=100)) for used in (50, 51)] == [False, True]


def test_how_much_room_is_wanted():
    rule = Rule.of(ArchiveRule(action="archive-and-evict", evict_above=80, evict_to=70))
    assert [room_wanted(rule, Disk(used=used, total=1000)) for used in (800, 801, 900)] == [0, 101, 200]
    assert room_wanted(Rule.of(EVICTING), Disk(used=1, total=1000)) is None


def candidate(number: int, *, read: int, old: bool = False) -> Candidate:
    rule = Rule.of(EVICTING)
    return Candidate(slot=0, path=f"p{number}", version=version(number), rule=rule, old=old, last_read_ms=read)


def test_old_versions_go_first_and_each_goes_once():
    candidates = Candidates(SeededRandomness(1))
    for number in range(100):
        candidates.offer(candidate(number, read=number, old=number % 4 == 0))
    taken = [candidates.take() for _ in range(len(candidates))]
    assert candidates.take() is None and len(candidates) == 0
    assert [one.old for one in taken if one] == [True] * 25 + [False] * 75
    assert {one.path for one in taken if one} == {f"p{number}" for number in range(100)}


def test_the_colder_of_two_goes():
    """By chance alone the mean rank of the first half of those that went would be half of all; pick of two brings it below 0.42."""
    candidates = Candidates(SeededRandomness(2))
    for number in range(2000):
        candidates.offer(candidate(number, read=(number * 7919) % 2000))
    first = [taken.last_read_ms for _ in range(1000) if (taken := candidates.take())]
    assert sum(first) / len(first) / 2000 < 0.42
    two = Candidates(SeededRandomness(3), limit=1)
    two.offer(candidate(1, read=5))
    assert (last := two.take()) and last.path == "p1"


def test_of_more_candidates_than_fit_each_has_the_same_chance():
    seen = [0] * 40
    for seed in range(400):
        candidates = Candidates(SeededRandomness(seed), limit=10)
        for number in range(40):
            candidates.offer(candidate(number, read=0))
        assert len(candidates) == 10
        while taken := candidates.take():
            seen[int(taken.path[1:])] += 1
    expected = 400 * 10 / 40
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in seen)


def test_a_dry_run_adds_up_by_rule():
    rules = policy(
        ArchiveRule(prefix="a/", action="archive-and-evict", older_than=Duration(5 * 86_400), evict_above=80, evict_to=70),
        ArchiveRule(prefix="k/", action="keep"),
    )  # fmt: skip
    savings = Savings(rules, Disk(used=9000, total=10_000))
    views = [
        (view("a/1", version(1, size=400)), True),
        (view("a/1", version(2, age_days=1, size=300)), True),
        (view("a/2", version(3, size=4000), uploaded=1, verified=1, chunk_count=2), True),
        (view("a/3", version(4, size=50), uploaded=1, verified=1, evicted=True), True),
        (view("a/4", version(5, size=60), uploaded=1, verified=1, wanted=True), True),
        (view("a/5", version(6, size=70)), False),
        (view("k/1", version(7, size=10)), True),
        (view("x/1", version(8, size=11)), True),
    ]
    for seen, sends in views:
        savings.add(seen, rules.judge(seen, seen.version.created_at_ms, NOW), sends=sends)
    first, second, third = savings.rules()
    assert first == RuleSavings(
        prefix="a/", action="archive-and-evict", objects=5, versions=6, bytes=4880, send_versions=2, send_bytes=2400,
        archived_bytes=2110, free_versions=3, free_bytes=4470, room_bytes=2000, evicted_bytes=50,
        left={"young": 1, "done": 2},
    )  # fmt: skip
    assert (second.versions, second.send_bytes, second.free_bytes, second.left) == (1, 0, 0, {"kept": 1})
    assert (third.action, third.bytes, third.left) == ("", 11, {"no-rule": 1})
    total = add_up([[first, second], [first]])
    assert total[0].send_bytes == 4800 and total[0].left == {"young": 2, "done": 4} and total[1] == second
    assert first.send_bytes == 2400
