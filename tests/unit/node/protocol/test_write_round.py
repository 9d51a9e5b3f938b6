"""The coordinator's round: what moves it from phase to phase, and what does not."""

from __future__ import annotations

import pytest

from amberblob.ballot import Ballot
from amberblob.errors import (
    InsufficientStorage,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    QuorumUnavailable,
)
from amberblob.manifest import Record
from amberblob.wire import (
    AcceptedReply,
    Commit,
    Done,
    Failed,
    HistoryReply,
    HistoryRow,
    Prepare,
    Promised,
    QueryHistory,
    Refused,
)
from node.protocol.operations import (
    NO_HISTORY,
    Conditions,
    Delete,
    DeleteVersion,
    Finish,
    History,
    NeedHistory,
    Put,
)
from node.protocol.quorum import Electorate
from node.protocol.write import (
    UNREACHABLE_TRIES_MAX,
    Applied,
    AwaitRoute,
    BytesElsewhere,
    Finished,
    Phase,
    Rejected,
    Send,
    Spread,
    Wait,
    WriteRound,
    extend_history,
)
from tests.unit.node.protocol.model import PATH, draft
from tests.unit.node.protocol.test_operations import proposed, record, row

PUT = Put(draft=draft("B"))


def electorate(nodes: str = "abc", write_quorum: int = 0, read_quorum: int = 0) -> Electorate:
    return Electorate(
        slot=0,
        epoch=4,
        voters={node: f"{node}/1" for node in nodes},
        write_quorum=write_quorum or len(nodes) // 2 + 1,
        read_quorum=read_quorum,
    )


def begin(operation=PUT, voters: Electorate | None = None, *, counter: int = 0, write_id: str = "w", **options):
    round_ = WriteRound(
        electorate=voters or electorate(),
        node="a",
        path=PATH,
        operation=operation,
        operation_id="op",
        write_id=write_id,
        now_ms=1,
        counter=counter,
        **options,
    )
    return round_, round_.start()


def token(actions) -> int:
    return next(action.token for action in actions if isinstance(action, Send | Wait))


def sent(actions, kind: type) -> dict:
    found = {action.node: action.request for action in actions if isinstance(action, Send)}
    assert all(isinstance(request, kind) for request in found.values()), actions
    return found


def ended(actions):
    assert actions and isinstance(actions[-1], Finished), actions
    assert all(isinstance(action, Spread) for action in actions[:-1])
    return actions[-1].outcome


def promise(node: str, accepted: Ballot | None = None, of: Record | None = None, chosen=False, **more) -> Promised:
    more.setdefault("version_floor", 0)
    return Promised(
        incarnation=more.pop("incarnation", f"{node}/1"), accepted=accepted, record=of, chosen=chosen, **more
    )


def accept(node: str) -> AcceptedReply:
    return AcceptedReply(incarnation=f"{node}/1")


def refuse(node: str, reason="ballot", counter: int = 0) -> Refused:
    return Refused(incarnation=f"{node}/1", reason=reason, ballot=Ballot(4, counter, "z", "z"), epoch=4)


OLD = Ballot(4, 1, "z", "old")
OTHER = proposed(Put(draft=draft("Z")), write_id="z")


def to_committing(round_: WriteRound, actions) -> list:
    at = token(actions)
    assert round_.answer("a", at, promise("a")) == []
    actions = round_.answer("b", at, promise("b"))
    assert round_.phase is Phase.COMMITTING
    return actions


# ---- the straight way


def test_a_put_that_meets_no_trouble():
    round_, actions = begin(counter=7, body=b"x")
    prepares = sent(actions, Prepare)
    assert set(prepares) == set("abc") and round_.phase is Phase.PREPARING
    assert prepares["a"].ballot == Ballot(4, 8, "a", "op") and prepares["a"].epoch == 4
    assert prepares["a"].write_id == "", "a first try has nothing to find"
    actions = to_committing(round_, actions)
    commits = sent(actions, Commit)
    assert set(commits) == set("abc") and round_.sent_commit
    assert commits["c"].ballot == prepares["a"].ballot and commits["c"].body == b"x" and commits["c"].holders == ()
    at = token(actions)
    assert round_.answer("c", at, accept("c")) == []
    actions = round_.answer("a", at, accept("a"))
    outcome = ended(actions)
    assert isinstance(outcome, Applied) and outcome.fresh and outcome.mark.version == 1
    assert outcome.holders == ("a", "c") and outcome.ballot == prepares["a"].ballot
    assert round_.phase is Phase.FINISHED
    spread = {action.node: action.item for action in actions[:-1]}
    assert spread["a"].record is None and spread["c"].record is None, "they have it"
    assert spread["b"].record == outcome.record and spread["b"].holders == ("a", "c")


def test_a_retry_asks_for_its_write_id():
    _, actions = begin(may_be_retry=True)
    assert {request.write_id for request in sent(actions, Prepare).values()} == {"w"}


def test_once_a_commit_was_sent_the_round_itself_asks_for_its_write_id():
    round_, actions = begin()
    at = token(to_committing(round_, actions))
    round_.failed("a", at, "timeout")
    wait = round_.failed("b", at, "timeout")
    assert round_.phase is Phase.WAITING
    assert {r.write_id for r in sent(round_.wake(token(wait)), Prepare).values()} == {"w"}


def test_staged_bytes_are_committed_only_where_they_are():
    round_, actions = begin(holders=frozenset("ac"))
    actions = to_committing(round_, actions)
    commits = sent(actions, Commit)
    assert set(commits) == set("ac") and commits["a"].body is None
    actions = round_.failed("c", token(actions), "timeout")
    assert isinstance(actions[0], Wait), "b does not have the bytes: no write quorum without c"


def test_a_delete_goes_to_all_and_bears_no_body():
    round_, actions = begin(Delete(), body=b"x", holders=frozenset("ab"))
    at = token(actions)
    current = record(live=((1, 1),), head=1)
    round_.answer("a", at, promise("a", OLD, current, True))
    commits = sent(round_.answer("b", at, promise("b", OLD, current, True)), Commit)
    assert set(commits) == set("abc") and commits["a"].body is None


def test_the_highest_version_floor_counts():
    round_, actions = begin()
    at = token(actions)
    round_.answer("a", at, promise("a", version_floor=3))
    commits = sent(round_.answer("b", at, promise("b", version_floor=9)), Commit)
    assert commits["a"].record.version_max == 10


def test_a_write_quorum_above_a_majority_is_waited_for():
    round_, actions = begin(voters=electorate(write_quorum=3))
    at = token(to_committing(round_, actions))
    assert round_.answer("a", at, accept("a")) == []
    assert round_.answer("b", at, accept("b")) == []
    assert isinstance(ended(round_.answer("c", at, accept("c"))), Applied)


def test_a_read_quorum_above_a_majority_is_waited_for():
    round_, actions = begin(voters=electorate(read_quorum=3))
    at = token(actions)
    round_.answer("a", at, promise("a"))
    assert round_.answer("b", at, promise("b")) == []
    sent(round_.answer("c", at, promise("c")), Commit)


# ---- refusals and answers without writing


def test_a_refusal_by_the_current_record_ends_at_once():
    round_, actions = begin(Put(draft=draft("B"), conditions=Conditions(absent=True)))
    at = token(actions)
    round_.answer("a", at, promise("a", OLD, OTHER, True))
    outcome = ended(round_.answer("b", at, promise("b")))
    assert isinstance(outcome, Rejected) and isinstance(outcome.error, PreconditionFailed)
    assert not round_.sent_commit


def test_nothing_is_refused_by_an_undecided_record():
    round_, actions = begin(Delete())
    at = token(actions)
    round_.answer("a", at, promise("a", OLD, record(op="delete", version_max=1)))
    sent(round_.answer("b", at, promise("b")), Commit)
    assert round_.phase is Phase.FINISHING
    round_, actions = begin(Delete())
    at = token(actions)
    round_.answer("a", at, promise("a"))
    outcome = ended(round_.answer("b", at, promise("b")))
    assert isinstance(outcome.error, NotFound), "an empty majority is decided"


def test_finish_of_nothing():
    round_, actions = begin(Finish())
    at = token(actions)
    round_.answer("a", at, promise("a"))
    actions = round_.answer("b", at, promise("b"))
    assert actions == [Finished(Applied(None, None, None, fresh=False))]


def test_an_earlier_try_is_answered_as_it_was():
    round_, actions = begin(may_be_retry=True, write_id="z")
    at = token(actions)
    round_.answer("a", at, promise("a", OLD, OTHER, True))
    outcome = ended(round_.answer("b", at, promise("b")))
    assert isinstance(outcome, Applied) and not outcome.fresh and outcome.mark == OTHER.writes[-1]


def test_an_earlier_try_is_confirmed_on_the_write_quorum():
    round_, actions = begin(may_be_retry=True, write_id="z", voters=electorate(write_quorum=3))
    at = token(actions)
    round_.answer("a", at, promise("a", OLD, OTHER, True))
    actions = round_.answer("b", at, promise("b", OLD, OTHER, True))
    commits = sent(actions, Commit)
    assert round_.phase is Phase.FINISHING and set(commits) == set("abc")
    assert commits["a"].record == OTHER and commits["a"].holders == ("a", "b")
    at = token(actions)
    round_.answer("a", at, accept("a"))
    assert round_.answer("b", at, accept("b")) == []
    outcome = ended(round_.answer("c", at, accept("c")))
    assert isinstance(outcome, Applied) and not outcome.fresh and outcome.mark == OTHER.writes[-1]


# ---- finishing a stranger's record


def to_finishing(operation=PUT, **options):
    round_, actions = begin(operation, counter=1, **options)
    at = token(actions)
    round_.answer("a", at, promise("a", OLD, OTHER))
    return round_, round_.answer("b", at, promise("b"))


def test_an_undecided_record_is_proposed_again_as_it_is():
    round_, actions = to_finishing(body=b"mine", holders=frozenset("ab"))
    commits = sent(actions, Commit)
    assert round_.phase is Phase.FINISHING and not round_.sent_commit
    assert set(commits) == set("abc"), "not only where our own bytes are"
    assert commits["b"].record == OTHER and commits["b"].body is None and commits["b"].holders == ("a",)
    assert commits["b"].ballot == Ballot(4, 2, "a", "op")
    at = token(actions)
    assert round_.answer("a", at, accept("a")) == []
    actions = round_.answer("b", at, accept("b"))
    assert [action.node for action in actions if isinstance(action, Spread)] == ["a", "b", "c"]
    prepares = {a.node: a.request for a in actions if isinstance(a, Send)}
    assert {p.ballot.counter for p in prepares.values()} == {3}, "our own record needs a ballot of its own"


def test_finish_ends_when_the_record_is_chosen():
    round_, actions = to_finishing(Finish())
    at = token(actions)
    round_.answer("b", at, accept("b"))
    outcome = ended(round_.answer("c", at, accept("c")))
    assert outcome.record == OTHER and outcome.mark is None and not outcome.fresh and outcome.holders == ("b", "c")


def test_a_finish_that_fails_begins_anew_and_is_no_unknown_outcome():
    round_, actions = to_finishing()
    at = token(actions)
    assert round_.failed("a", at, "timeout") == []
    actions = round_.failed("b", at, "timeout")
    assert isinstance(actions[0], Wait) and round_.phase is Phase.WAITING
    outcome = ended(round_.deadline())
    assert isinstance(outcome.error, QuorumUnavailable), "none of our own was sent"


def test_above_a_majority_nothing_is_built_on_what_is_not_everywhere():
    round_, actions = begin(voters=electorate(write_quorum=3), counter=1)
    at = token(actions)
    round_.answer("a", at, promise("a", OLD, OTHER, True))
    actions = round_.answer("b", at, promise("b", OLD, OTHER, True))
    assert round_.phase is Phase.FINISHING and not round_.sent_commit
    at = token(actions)
    for node in "ab":
        assert round_.answer(node, at, accept(node)) == []
    actions = round_.answer("c", at, accept("c"))
    assert round_.phase is Phase.PREPARING
    mine = Ballot(4, 2, "a", "op")
    at = token([action for action in actions if isinstance(action, Send)])
    round_.answer("a", at, promise("a", mine, OTHER))
    round_.answer("b", at, promise("b", mine, OTHER))
    assert round_.phase is Phase.COMMITTING, "this round has brought it there itself"


# ---- what goes wrong


def test_a_lost_race_begins_anew_above_what_was_seen():
    round_, actions = begin(counter=3)
    at = token(actions)
    nudge = round_.answer("a", at, refuse("a", counter=40))
    assert nudge == [Wait(0, at, contested=True)] and round_.phase is Phase.PREPARING
    wait = round_.answer("c", at, refuse("c", counter=12))
    assert wait == [Wait(1, wait[0].token, contested=True)] and round_.phase is Phase.WAITING
    assert round_.wake(at) == [], "the nudge is of a phase that is over"
    actions = round_.wake(wait[0].token)
    assert {p.ballot for p in sent(actions, Prepare).values()} == {Ballot(4, 41, "a", "op")}
    assert round_.counter == 41


def test_a_silent_replica_does_not_hold_up_a_round_that_another_refused():
    round_, actions = begin(counter=3)
    at = token(actions)
    round_.answer("a", at, promise("a"))
    (nudge,) = round_.answer("b", at, refuse("b", counter=40))  # c says nothing: a majority may yet come
    actions = round_.wake(nudge.token)
    assert {p.ballot for p in sent(actions, Prepare).values()} == {Ballot(4, 41, "a", "op")}


def test_unreachable_replicas_end_a_round_that_sent_nothing():
    round_, actions = begin()
    for attempt in range(1, UNREACHABLE_TRIES_MAX + 1):
        at = token(actions)
        assert round_.failed("b", at, "timeout") == []
        actions = round_.failed("c", at, "down")
        if attempt < UNREACHABLE_TRIES_MAX:
            assert actions == [Wait(attempt, actions[0].token)]
            actions = round_.wake(actions[0].token)
    outcome = ended(actions)
    assert isinstance(outcome.error, QuorumUnavailable)
    assert "timeout" in outcome.error.detail and "down" in outcome.error.detail


def test_races_are_no_sign_of_missing_replicas():
    round_, actions = begin()
    for attempt in range(1, 10):
        at = token(actions)
        round_.failed("b", at, "timeout")
        actions = round_.answer("c", at, refuse("c", counter=10 * attempt))
        assert isinstance(actions[0], Wait)
        actions = round_.wake(actions[0].token)
    detail = ended(round_.deadline()).error.detail
    assert "others who write the same path came first" in detail and "/cluster" not in detail


def test_after_a_commit_failure_is_unknown():
    round_, actions = begin()
    at = token(to_committing(round_, actions))
    round_.answer("a", at, accept("a"))
    outcome = ended(round_.deadline())
    assert isinstance(outcome.error, OutcomeUnknown) and outcome.error.extra["write_id"] == "w"
    assert round_.deadline() == [], "it ends once"


def test_after_a_commit_unreachable_replicas_do_not_end_the_round():
    round_, actions = begin()
    wait = []
    at = token(to_committing(round_, actions))
    for _ in range(UNREACHABLE_TRIES_MAX + 3):
        round_.failed("b", at, "timeout")
        wait = round_.failed("c", at, "timeout")
        assert isinstance(wait[0], Wait)
        at = token(round_.wake(wait[0].token))
    assert isinstance(ended(round_.deadline()).error, OutcomeUnknown)


def test_full_disks_are_told_as_such():
    round_, actions = begin()
    for _ in range(UNREACHABLE_TRIES_MAX):
        at = token(actions)
        round_.answer("a", at, refuse("a", "disk-full"))
        actions = round_.answer("b", at, refuse("b", "disk-full"))
        if isinstance(actions[0], Wait):
            actions = round_.wake(actions[0].token)
    outcome = ended(actions)
    assert isinstance(outcome.error, InsufficientStorage) and outcome.error.extra["full"] == ["a", "b"]


def test_one_full_disk_is_no_reason():
    round_, actions = begin()
    at = token(actions)
    round_.answer("a", at, refuse("a", "disk-full"))
    round_.failed("b", at, "timeout")
    assert isinstance(ended(round_.deadline()).error, QuorumUnavailable)


@pytest.mark.parametrize(
    "bad",
    [
        Failed(code="peer-timeout", detail="slow"),
        Done(),
        accept("a"),
        promise("a", incarnation="a/2"),
        refuse("a", "epoch"),
        refuse("a", "not-a-member"),
        refuse("a", "disk-failed"),
    ],
)
def test_what_is_no_promise(bad):
    round_, actions = begin()
    at = token(actions)
    assert round_.answer("a", at, bad) == []
    assert round_.answer("b", at, promise("b")) == [], "a is no vote"
    sent(round_.answer("c", at, promise("c")), Commit)
    round_, actions = begin()
    at = token(actions)
    round_.answer("b", at, Done())
    assert isinstance(round_.answer("a", at, bad)[0], Wait)


def test_a_promise_that_comes_twice_counts_once():
    round_, actions = begin()
    at = token(actions)
    assert round_.answer("a", at, promise("a")) == []
    assert round_.answer("a", at, promise("a")) == []
    assert round_.phase is Phase.PREPARING


def test_an_accept_that_comes_twice_counts_once():
    round_, actions = begin()
    at = token(to_committing(round_, actions))
    assert round_.answer("a", at, accept("a")) == []
    assert round_.answer("a", at, accept("a")) == []
    assert round_.phase is Phase.COMMITTING


# ---- stale tokens


def test_answers_to_an_earlier_phase_are_dropped():
    round_, actions = begin()
    first = token(actions)
    second = token(to_committing(round_, actions))
    assert second != first
    for event in (
        lambda: round_.answer("c", first, promise("c")),
        lambda: round_.answer("c", first, refuse("c", counter=99)),
        lambda: round_.answer("c", first, accept("c")),
        lambda: round_.failed("c", first, "timeout"),
        lambda: round_.failed("b", first, "timeout"),
        lambda: round_.wake(first),
        lambda: round_.wake(second),
    ):
        assert event() == []
    assert round_.phase is Phase.COMMITTING and round_.counter == 2, "one for the round, one for the next"
    assert round_.failed("c", second, "timeout") == []


def test_while_waiting_and_after_the_end_nothing_but_its_own_wake_counts():
    round_, actions = begin()
    at = token(actions)
    round_.failed("a", at, "down")
    wait = round_.failed("b", at, "down")[0]
    for stale in (at, wait.token):
        assert round_.answer("c", stale, promise("c")) == []
        assert round_.failed("c", stale, "timeout") == []
    assert round_.wake(at) == []
    assert sent(round_.wake(wait.token), Prepare)
    assert round_.wake(wait.token) == [], "woken twice"
    ended(round_.deadline())
    for late in (at, wait.token, wait.token + 1, wait.token + 2):
        assert round_.answer("a", late, promise("a")) == []
        assert round_.failed("a", late, "x") == []
        assert round_.wake(late) == []


# ---- reading history within a round


def history_reply(node: str, *versions: int, more=False, accepted=OLD, of=None, chosen=True) -> HistoryReply:
    return HistoryReply(
        incarnation=f"{node}/1",
        accepted=accepted,
        record=of,
        chosen=chosen,
        rows=tuple(HistoryRow(row(version), None) for version in versions),
        more=more,
    )


def to_reading():
    current = record(live=((1, 9),), head=9)
    round_, actions = begin(DeleteVersion(version=9), counter=1)
    at = token(actions)
    round_.answer("a", at, promise("a", OLD, current, True))
    actions = round_.answer("b", at, promise("b", OLD, current, True))
    queries = sent(actions, QueryHistory)
    assert round_.phase is Phase.READING and set(queries) == set("abc")
    assert (queries["a"].below, queries["a"].version) == (9, None)
    return round_, token(actions)


def test_history_is_taken_from_a_majority():
    round_, at = to_reading()
    assert round_.answer("a", at, history_reply("a", 1)) == []
    commits = sent(round_.answer("b", at, history_reply("b", 4)), Commit)
    assert commits["a"].record.head == row(4), "the union of what they have"


def test_history_goes_on_page_by_page():
    round_, at = to_reading()
    round_.answer("a", at, history_reply("a"))
    commits = sent(round_.answer("b", at, history_reply("b")), Commit)
    assert commits["a"].record.head is None and commits["a"].record.live == ()
    round_, at = to_reading()
    # b's page was full: below 8 it did not look. (8 itself is dead in no record here, so it is the newest.)
    round_.answer("a", at, history_reply("a", 2))
    commits = sent(round_.answer("b", at, history_reply("b", 8, more=True)), Commit)
    assert commits["a"].record.head == row(8)


def test_history_of_a_race_that_was_lost_is_not_used():
    round_, at = to_reading()
    round_.answer("a", at, history_reply("a", 1))
    above = Ballot(4, 99, "z", "z")
    actions = round_.answer("b", at, history_reply("b", 1, accepted=above))
    assert isinstance(actions[0], Wait) and round_.phase is Phase.WAITING


def test_history_that_no_majority_tells():
    round_, at = to_reading()
    round_.failed("a", at, "timeout")
    actions = round_.failed("c", at, "timeout")
    assert isinstance(actions[0], Wait)
    assert isinstance(ended(round_.deadline()).error, QuorumUnavailable)


# ---- extend_history


def test_extend_history_adds_the_rows_of_all():
    known = extend_history(NO_HISTORY, NeedHistory(below=9), [history_reply("a", 4, 2), history_reply("b", 5, 4)])
    assert set(known.rows) == {2, 4, 5} and known.complete_down_to == 0 and known.asked == frozenset()


def test_a_full_page_is_trusted_down_to_the_highest_lower_end():
    replies = [history_reply("a", 8, 6, more=True), history_reply("b", 7, 3, more=True), history_reply("c", 1)]
    known = extend_history(NO_HISTORY, NeedHistory(below=9), replies)
    assert set(known.rows) == {1, 3, 6, 7, 8} and known.complete_down_to == 6


def test_a_single_version_changes_nothing_about_how_far_was_looked():
    before = History(rows={9: row(9)}, asked=frozenset({7}), complete_down_to=5)
    known = extend_history(before, NeedHistory(version=3), [history_reply("a"), history_reply("b", 3)])
    assert set(known.rows) == {3, 9} and known.asked == {3, 7} and known.complete_down_to == 5


def test_the_records_own_rows_are_rows_too():
    newest = record(live=((1, 9),), head=9, previous=8)
    for chosen, wanted in ((True, {8, 9}), (False, {8})):
        known = extend_history(NO_HISTORY, NeedHistory(below=10), [history_reply("a", of=newest, chosen=chosen)])
        assert set(known.rows) == wanted, "what is not known to be chosen is no row; what it was built on is"


# ---- refused for its epoch


def outdated(node: str, epoch: int = 5) -> Refused:
    return Refused(incarnation=f"{node}/1", reason="epoch", ballot=Ballot(epoch, 0, "", ""), epoch=epoch)


def later(epoch: int = 5, **lost: str) -> Electorate:
    voters = {node: f"{node}/1" for node in "abc"} | lost
    return Electorate(slot=0, epoch=epoch, voters=voters, write_quorum=2)


def test_a_refusal_for_the_epoch_asks_for_the_route_once():
    round_, actions = begin()
    at = token(actions)
    assert round_.answer("a", at, outdated("a")) == [AwaitRoute(5)], "two may still promise"
    again = round_.answer("b", at, outdated("b"))
    assert [type(action) for action in again] == [Wait]
    actions = round_.wake(again[0].token)
    assert round_.answer("a", token(actions), outdated("a", 7)) == [AwaitRoute(7)]


def test_a_majority_that_does_not_know_of_the_newer_route_is_enough():
    round_, actions = begin()
    at = token(actions)
    round_.answer("c", at, outdated("c"))
    to_committing(round_, actions)


def test_a_round_begins_anew_with_the_voters_of_the_newer_route():
    round_, actions = begin(write_id="w")
    to_committing(round_, actions)
    old = round_.counter
    actions = round_.reroute(later(6, c="c/2"))
    asked = sent(actions, Prepare)
    assert set(asked) == set("abc") and {p.epoch for p in asked.values()} == {6}
    prepare = asked["a"]
    assert prepare.ballot.epoch == 6 and prepare.ballot.counter > old and prepare.write_id == "w", "its COMMIT is out"
    at = token(actions)
    assert round_.answer("c", at, promise("c")) == [], "the copy that was"
    round_.answer("a", at, promise("a"))
    actions = round_.answer("b", at, promise("b"))
    assert {c.epoch for c in sent(actions, Commit).values()} == {6}


def test_a_route_that_is_no_newer_and_a_round_that_ended_change_nothing():
    round_, _ = begin()
    assert round_.reroute(later(4)) == []
    round_.deadline()
    assert round_.reroute(later()) == []


def test_refusals_for_the_epoch_are_no_sign_of_missing_replicas():
    round_, actions = begin()
    for _ in range(UNREACHABLE_TRIES_MAX + 3):
        at = token(actions)
        round_.answer("a", at, outdated("a"))
        (wait,) = round_.answer("b", at, outdated("b"))
        assert isinstance(wait, Wait) and not wait.contested
        actions = round_.wake(wait.token)
    assert isinstance(ended(round_.deadline()).error, QuorumUnavailable)
    round_, actions = begin()
    at = token(to_committing(round_, actions))
    round_.answer("a", at, outdated("a"))
    round_.answer("b", at, outdated("b"))
    assert isinstance(ended(round_.deadline()).error, OutcomeUnknown)


def test_what_was_on_a_write_quorum_of_the_older_route_is_brought_there_again():
    voters = electorate(write_quorum=3)
    round_, actions = begin(Put(draft=draft("B")), voters)
    at = token(actions)
    for node in "ab":
        actions = round_.answer(node, at, promise(node, OLD, OTHER, chosen=True))
    at = token(actions)
    for node in "abc":
        actions = round_.answer(node, at, accept(node))
    brought = round_._full_ballot
    assert brought is not None
    newer = Electorate(slot=0, epoch=5, voters=voters.voters | {"c": "c/2"}, write_quorum=3)
    at = token(round_.reroute(newer))
    for node in "ab":
        actions = round_.answer(node, at, promise(node, brought, OTHER, chosen=True))
    assert round_.phase is Phase.FINISHING


def test_staged_bytes_are_where_the_copies_are_that_took_them():
    round_, _ = begin(holders=frozenset("ab"))
    actions = round_.reroute(later(c="c/2"))
    at = token(actions)
    for node in "ab":
        actions = round_.answer(node, at, promise(node))
    told = {node: request.holders for node, request in sent(actions, Commit).items()}
    assert told == {"a": (), "b": (), "c": ("a", "b")}, "who lacks them is told where they are"
    round_, _ = begin(holders=frozenset("ab"))
    error = ended(round_.reroute(later(b="b/2"))).error
    assert isinstance(error, BytesElsewhere) and "does not have the bytes" in error.detail


def test_staged_bytes_that_were_lost_after_the_commit_leave_it_unknown():
    round_, actions = begin(holders=frozenset("ab"))
    to_committing(round_, actions)
    assert sent(round_.reroute(later(b="b/2")), Prepare)
    assert isinstance(ended(round_.deadline()).error, OutcomeUnknown)


# ---- finish again


def test_finish_again_proposes_what_is_chosen_at_the_new_ballot():
    round_, actions = begin(Finish(again=True), counter=9)
    at = token(actions)
    round_.answer("a", at, promise("a", OLD, OTHER, chosen=True))
    actions = round_.answer("b", at, promise("b", OLD, OTHER, chosen=True))
    commits = sent(actions, Commit)
    assert set(commits) == set("abc")
    assert all(c.record == OTHER and c.ballot > OLD and c.holders == ("a", "b") for c in commits.values())
    at = token(actions)
    round_.answer("a", at, accept("a"))
    actions = round_.answer("b", at, accept("b"))
    outcome = ended(actions)
    assert isinstance(outcome, Applied) and outcome.ballot == commits["a"].ballot and not outcome.fresh
    told = {action.node: action.item for action in actions if isinstance(action, Spread)}
    assert told["c"].record == OTHER and told["c"].ballot == commits["a"].ballot


def test_finish_again_of_nothing_writes_nothing():
    round_, actions = begin(Finish(again=True))
    at = token(actions)
    round_.answer("a", at, promise("a"))
    assert ended(round_.answer("b", at, promise("b"))).record is None


def test_who_must_be_heard_is_given_a_ballot_that_it_takes():
    """Its floor is far above: without it the round would end, and it would learn nothing."""
    round_, actions = begin(Finish(again=True), hear="c")
    at = token(actions)
    round_.answer("a", at, promise("a", OLD, OTHER, chosen=True))
    round_.answer("b", at, promise("b", OLD, OTHER, chosen=True))
    (wait,) = round_.answer("c", at, refuse("c", counter=70))
    assert isinstance(wait, Wait) and wait.contested
    prepares = sent(round_.wake(wait.token), Prepare)
    assert prepares["c"].ballot.counter == 71


def test_to_finish_a_majority_is_enough_whatever_reads_are_to_ask():
    """Else a copy that is to be filled, which is mute until all is decided, would never be."""
    round_, actions = begin(Finish(), electorate(read_quorum=3))
    at = token(actions)
    assert round_.answer("c", at, refuse("c", "unsynced")) == []
    round_.answer("a", at, promise("a", OLD, OTHER))
    actions = round_.answer("b", at, promise("b"))
    assert set(sent(actions, Commit)) == set("abc")


def test_who_may_still_promise_is_waited_for_also_to_finish():
    """What it accepted may be above all others, and would be found undecided by the same readers ever again."""
    round_, actions = begin(Finish(), electorate(read_quorum=3))
    at = token(actions)
    round_.answer("a", at, promise("a", OLD, OTHER))
    assert round_.answer("b", at, promise("b")) == []
    assert set(sent(round_.failed("c", at, "away"), Commit)) == set("abc")
