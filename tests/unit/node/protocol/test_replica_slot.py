"""One copy's state machine: promises, ceilings, floors, accepts, what it learns."""

from __future__ import annotations

import msgspec
import pytest

from amberblob.ballot import BALLOT_ZERO, EMPTY_REGISTER, Ballot, Register, SlotState, floor_ballot
from amberblob.limits import PROMISE_RESERVE
from amberblob.manifest import WriteMark
from amberblob.mutations import Accepted, Chosen, EpochSeen, Forgotten, Reserved
from amberblob.wire import AcceptedReply, Commit, Done, Learnt, Prepare, Promised, Refused
from amberblob.wire_repair import ForgetStub
from chunkstore import rules
from node.protocol.operations import Delete, Put
from node.protocol.replica import BytesHere, Persist, ReplicaSlot, Respond
from tests.unit.node.protocol.model import draft
from tests.unit.node.protocol.test_operations import proposed

HERE = BytesHere(durable=True)
ABSENT = BytesHere(durable=False)

RECORD = proposed(Put(draft=draft("B")))
DELETED = proposed(Delete(), RECORD, write_id="v")


def ballot(counter: int, node: str = "a", epoch: int = 1) -> Ballot:
    return Ballot(epoch, counter, node, "o")


class Copy:
    """A ReplicaSlot, and a disk for its slot state and one register per path."""

    def __init__(self, *, promises_max: int = 4096, **state) -> None:
        self.state = SlotState(slot=0, incarnation="i", **state)
        self.promises_max = promises_max
        self.registers: dict[str, Register] = {}
        self.persisted: list = []
        self.restart()

    def restart(self) -> None:
        self.slot = ReplicaSlot(self.state, promises_max=self.promises_max)

    def _do(self, path, actions):
        self.persisted = []
        reply = None
        for action in actions:
            if isinstance(action, Persist):
                assert reply is None, "an answer went out before what it rests on was durable"
                mutation = action.mutation
                self.persisted.append(mutation)
                held = self.registers.get(path, EMPTY_REGISTER)
                match mutation:
                    case Accepted():
                        self.registers[path] = rules.accept(held, mutation)
                    case Chosen():
                        self.registers[path] = rules.choose(held, mutation)
                    case Forgotten():
                        self.state = rules.change_slot(self.state, mutation)
                        if rules.forget(held, mutation):
                            del self.registers[path]
                    case _:
                        self.state = rules.change_slot(self.state, mutation)
            else:
                assert isinstance(action, Respond)
                reply = action.reply
        return reply

    def prepare(self, at: Ballot, path: str = "p", epoch: int | None = None, prior: WriteMark | None = None):
        message = Prepare(slot=0, path=path, epoch=at.epoch if epoch is None else epoch, ballot=at, write_id="w")
        return self._do(path, self.slot.prepare(self.state, message, self.registers.get(path, EMPTY_REGISTER), prior))

    def commit(self, at: Ballot, record=RECORD, here=HERE, path: str = "p", epoch: int | None = None, body=None):
        message = Commit(
            slot=0, path=path, epoch=at.epoch if epoch is None else epoch, ballot=at, record=record, body=body
        )
        return self._do(path, self.slot.commit(self.state, message, self.registers.get(path, EMPTY_REGISTER), here))

    def learn(self, at: Ballot, record=None, path: str = "p"):
        item = Learnt(0, path, at.epoch, at, record)
        return self._do(path, self.slot.learn(self.state, item, self.registers.get(path, EMPTY_REGISTER)))

    def forget(self, at: Ballot, path: str = "p", version_max: int = 1, **changes):
        changes = {"epoch": 1, "incarnation": "i", **changes}
        message = ForgetStub(slot=0, path=path, ballot=at, version_max=version_max, **changes)
        return self._do(path, self.slot.forget(self.state, message, self.registers.get(path, EMPTY_REGISTER)))


def refused(reply, reason: str) -> Ballot:
    assert isinstance(reply, Refused), reply
    assert reply.reason == reason
    assert reply.incarnation == "i"
    return reply.ballot


# ---- promises


def test_a_promise_bars_lower_and_equal_ballots():
    copy = Copy()
    assert isinstance(copy.prepare(ballot(5)), Promised)
    assert refused(copy.prepare(ballot(4)), "ballot") == ballot(5)
    assert refused(copy.prepare(ballot(5)), "ballot") == ballot(5), "a PREPARE that comes twice"
    assert isinstance(copy.prepare(ballot(5, "b")), Promised), "the same counter, but a higher ballot"
    assert isinstance(copy.prepare(ballot(1), path="q"), Promised), "another path"


def test_a_promise_tells_everything():
    copy = Copy(version_floor=7)
    mark = WriteMark("w", "put", 1, 0)
    assert copy.prepare(ballot(1), prior=mark) == Promised(
        incarnation="i", accepted=None, record=None, chosen=False, version_floor=7, prior=mark
    )
    copy.commit(ballot(1))
    told = copy.prepare(ballot(2))
    assert (told.accepted, told.record, told.chosen, told.prior) == (ballot(1), RECORD, False, None)
    copy.learn(ballot(1))
    assert copy.prepare(ballot(3)).chosen


def test_the_first_promise_reserves_counters_and_the_next_ones_do_not():
    copy = Copy()
    copy.prepare(ballot(1))
    assert [m for m in copy.persisted if isinstance(m, Reserved)] == [Reserved(0, 1 + PROMISE_RESERVE)]
    copy.prepare(ballot(1 + PROMISE_RESERVE))
    assert not any(isinstance(m, Reserved) for m in copy.persisted)
    copy.prepare(ballot(2 + PROMISE_RESERVE))
    assert [m for m in copy.persisted if isinstance(m, Reserved)] == [Reserved(0, 2 + 2 * PROMISE_RESERVE)]


def test_a_refused_prepare_persists_nothing():
    copy = Copy()
    copy.prepare(ballot(5))
    copy.prepare(ballot(4))
    assert copy.persisted == []
    copy.state = msgspec.structs.replace(copy.state, epoch=3)
    copy.prepare(ballot(99999, epoch=2))
    assert copy.persisted == []


def test_after_a_restart_nothing_up_to_the_ceiling_is_taken():
    copy = Copy()
    copy.prepare(ballot(5))
    ceiling = copy.state.promise_ceiling
    copy.restart()
    assert copy.slot.counter_seen == ceiling, "a coordinator here starts above it"
    for counter in (1, 5, 6, ceiling):
        assert refused(copy.prepare(ballot(counter, "zz")), "ballot") == floor_ballot(1, ceiling)
        assert refused(copy.commit(ballot(counter, "zz")), "ballot") == floor_ballot(1, ceiling)
    assert isinstance(copy.prepare(ballot(ceiling + 1)), Promised)
    assert isinstance(copy.commit(ballot(ceiling + 1)), AcceptedReply)


def test_a_restart_that_never_promised_has_no_floor():
    copy = Copy()
    copy.restart()
    assert isinstance(copy.prepare(ballot(1)), Promised)
    assert copy.slot.counter_seen == 1


def test_an_accept_after_a_restart_needs_a_ballot_above_the_ceiling_though_accepted_before():
    copy = Copy()
    copy.prepare(ballot(5))
    copy.commit(ballot(5))
    copy.restart()
    assert isinstance(copy.commit(ballot(5)), AcceptedReply), "a COMMIT that comes twice changes nothing"
    assert copy.persisted == []
    assert refused(copy.commit(ballot(6)), "ballot") > ballot(6)


def test_the_floor_of_a_slot_is_for_every_path():
    copy = Copy(ballot_floor=ballot(9))
    assert refused(copy.prepare(ballot(9)), "ballot") == ballot(9)
    assert refused(copy.commit(ballot(9), path="q"), "ballot") == ballot(9)
    assert isinstance(copy.prepare(ballot(10)), Promised)
    copy.state = msgspec.structs.replace(copy.state, ballot_floor=ballot(20))
    assert refused(copy.commit(ballot(10)), "ballot") == ballot(20), "collected since the promise"


def test_folded_promises_still_hold():
    copy = Copy(promises_max=2)
    for counter, path in ((5, "p"), (3, "q"), (4, "r"), (1, "s")):
        reply = copy.prepare(ballot(counter), path=path)
        if path != "s":
            assert isinstance(reply, Promised)
    # "p" was folded when "r" came: its promise of 5 bars every path now.
    assert refused(reply, "ballot") == ballot(5)
    assert refused(copy.commit(ballot(4), path="p"), "ballot") == ballot(5)
    assert refused(copy.prepare(ballot(5), path="p"), "ballot") == ballot(5)
    assert refused(copy.commit(ballot(3), path="q"), "ballot") == ballot(5), "refuses more than it has to, no less"
    assert isinstance(copy.prepare(ballot(6), path="p"), Promised)


def test_a_promise_that_is_renewed_is_the_last_to_be_folded():
    copy = Copy(promises_max=2)
    copy.prepare(ballot(1), path="p")
    copy.prepare(ballot(2), path="q")
    copy.prepare(ballot(3), path="p")
    copy.prepare(ballot(4), path="r")  # folds "q"
    assert isinstance(copy.commit(ballot(3), path="p"), AcceptedReply)
    assert isinstance(copy.commit(ballot(4), path="r"), AcceptedReply)


def test_a_folded_promise_of_its_own_is_not_kept():
    """The promise of ``p`` is in the floor: its COMMIT at exactly that ballot is refused, and comes again higher."""
    copy = Copy(promises_max=1)
    copy.prepare(ballot(1), path="p")
    copy.prepare(ballot(1), path="q")
    assert refused(copy.commit(ballot(1), path="p"), "ballot") == ballot(1)


def test_an_accept_needs_no_place_in_the_table():
    copy = Copy(promises_max=1)
    copy.prepare(ballot(1), path="p")
    copy.commit(ballot(1), path="p")
    copy.prepare(ballot(1), path="q")
    assert isinstance(copy.commit(ballot(1), path="q"), AcceptedReply)
    assert isinstance(copy.prepare(ballot(2), path="p"), Promised)


# ---- epochs


def test_an_older_epoch_is_refused_and_a_newer_one_remembered():
    copy = Copy(epoch=3)
    for reply in (copy.prepare(ballot(9, epoch=2)), copy.commit(ballot(9, epoch=2))):
        refused(reply, "epoch")
        assert reply.epoch == 3
    assert isinstance(copy.prepare(ballot(1, epoch=4)), Promised)
    assert EpochSeen(0, 4) in copy.persisted and copy.state.epoch == 4
    refused(copy.prepare(ballot(9, epoch=3)), "epoch")


def test_a_commit_can_be_the_first_to_tell_of_an_epoch():
    copy = Copy(epoch=3)
    assert isinstance(copy.commit(ballot(1, epoch=4)), AcceptedReply)
    assert copy.persisted[0] == EpochSeen(0, 4) and copy.state.epoch == 4


def test_a_ballot_is_of_its_messages_epoch():
    copy = Copy()
    refused(copy.prepare(ballot(1, epoch=2), epoch=3), "epoch")
    refused(copy.commit(ballot(1, epoch=3), epoch=2), "epoch")
    assert copy.state.epoch == 0


def test_the_floor_after_a_restart_is_of_the_highest_epoch_seen():
    copy = Copy()
    copy.prepare(ballot(5, epoch=1))
    copy.prepare(ballot(5, epoch=2))
    copy.restart()
    assert refused(copy.prepare(ballot(6, epoch=2)), "ballot") == floor_ballot(2, copy.state.promise_ceiling)
    assert isinstance(copy.prepare(ballot(1, epoch=3)), Promised), "a higher epoch is above every counter"


# ---- accepts


def test_an_accept_at_the_promised_ballot_and_above_but_not_below():
    copy = Copy()
    copy.prepare(ballot(5))
    assert refused(copy.commit(ballot(4)), "ballot") == ballot(5)
    assert refused(copy.commit(ballot(4, "zz")), "ballot") == ballot(5)
    assert isinstance(copy.commit(ballot(5)), AcceptedReply)
    assert copy.persisted[-1] == Accepted(0, "p", ballot(5), RECORD)
    assert isinstance(copy.commit(ballot(7), DELETED), AcceptedReply), "without a promise of its own"
    assert refused(copy.commit(ballot(6)), "ballot") == ballot(7)


def test_a_commit_that_comes_late_does_not_undo_a_newer_one():
    copy = Copy()
    copy.commit(ballot(5))
    copy.commit(ballot(8), DELETED)
    refused(copy.commit(ballot(5)), "ballot")
    assert copy.registers["p"].record == DELETED


def test_what_was_accepted_bars_what_was_promised_before():
    copy = Copy()
    copy.prepare(ballot(5))
    copy.commit(ballot(5))
    assert refused(copy.prepare(ballot(5)), "ballot") == ballot(5)
    assert refused(copy.prepare(ballot(3)), "ballot") == ballot(5)


def test_an_accept_without_bytes_is_refused():
    copy = Copy()
    copy.prepare(ballot(1))
    refused(copy.commit(ballot(1), here=ABSENT), "bytes-missing")
    assert copy.persisted == [] and "p" not in copy.registers
    assert isinstance(copy.commit(ballot(1), here=HERE), AcceptedReply), "the promise is still there"


def test_an_inline_body_is_bytes_enough():
    copy = Copy()
    assert isinstance(copy.commit(ballot(1), here=ABSENT, body=b"x"), AcceptedReply)
    assert copy.persisted[-1] == Accepted(0, "p", ballot(1), RECORD, b"x")
    assert isinstance(copy.commit(ballot(2), here=HERE, body=b"x"), AcceptedReply)
    assert copy.persisted == [Accepted(0, "p", ballot(2), RECORD, None)], "not stored twice"


def test_a_blob_that_was_given_up_is_refused():
    copy = Copy()
    for durable, body in ((True, None), (False, None), (False, b"x")):
        refused(copy.commit(ballot(1), here=BytesHere(durable=durable, aborted=True), body=body), "aborted")
    assert "p" not in copy.registers


def test_a_record_that_adds_nothing_needs_no_bytes():
    copy = Copy()
    assert isinstance(copy.commit(ballot(1), DELETED, here=BytesHere(durable=False, aborted=True)), AcceptedReply)


def test_what_is_only_learnt_is_no_accept_until_its_bytes_are_here():
    copy = Copy()
    copy.learn(ballot(3), RECORD)
    refused = copy.commit(ballot(3), here=ABSENT)
    assert isinstance(refused, Refused) and refused.reason == "bytes-missing"
    assert isinstance(copy.commit(ballot(3), here=BytesHere(durable=True)), AcceptedReply)
    assert copy.persisted == []


def test_counters_that_were_met():
    copy = Copy()
    copy.prepare(ballot(5))
    copy.prepare(ballot(3))
    assert copy.slot.counter_seen == 5
    copy.commit(ballot(7))
    copy.learn(ballot(9))
    assert copy.slot.counter_seen == 9
    refused(copy.commit(ballot(12, epoch=0), epoch=1), "epoch")
    assert copy.slot.counter_seen == 12


# ---- what is learnt


def test_learn_marks_what_is_held_once():
    copy = Copy()
    copy.commit(ballot(3))
    copy.learn(ballot(3))
    assert copy.persisted == [Chosen(0, "p", ballot(3))] and copy.registers["p"].chosen
    copy.learn(ballot(3))
    assert copy.persisted == []


def test_learn_without_the_record_does_nothing_to_another_ballot():
    copy = Copy()
    copy.learn(ballot(3))
    assert copy.persisted == []
    copy.commit(ballot(5))
    copy.learn(ballot(3))
    copy.learn(ballot(6))
    assert copy.persisted == [] and not copy.registers["p"].chosen


def test_learn_with_the_record_installs_it_over_promises_and_lower_ballots():
    copy = Copy()
    copy.commit(ballot(2))
    copy.prepare(ballot(9))
    copy.learn(ballot(3), DELETED)
    assert copy.registers["p"] == Register(ballot(3), DELETED, True)
    assert refused(copy.prepare(ballot(8)), "ballot") == ballot(9), "the promise stays"


def test_learn_never_overwrites_a_higher_ballot():
    copy = Copy()
    copy.commit(ballot(5), DELETED)
    copy.learn(ballot(3), RECORD)
    assert copy.persisted == [Chosen(0, "p", ballot(3), RECORD)], "for its rows"
    assert copy.registers["p"] == Register(ballot(5), DELETED, False)


def test_what_was_collected_is_not_learnt_again():
    copy = Copy(ballot_floor=ballot(5))
    copy.learn(ballot(5), RECORD)
    assert copy.persisted == []
    copy.learn(ballot(6), RECORD)
    assert copy.registers["p"].chosen


def test_what_is_held_below_the_floor_is_marked_all_the_same():
    """Another path's stub was collected above it. It would stay undecided for ever: finishing it again finds it chosen."""
    copy = Copy()
    copy.commit(ballot(3))
    copy.state = msgspec.structs.replace(copy.state, ballot_floor=ballot(5))
    copy.learn(ballot(2), DELETED)
    copy.learn(ballot(4), DELETED)
    assert copy.persisted == [] and copy.registers["p"] == Register(ballot(3), RECORD, False)
    copy.learn(ballot(3), RECORD)
    assert copy.persisted == [Chosen(0, "p", ballot(3))]
    assert copy.registers["p"] == Register(ballot(3), RECORD, True)


@pytest.mark.parametrize("counter", [0, 1])
def test_floor_ballots_are_above_every_ballot_of_their_counter(counter):
    assert (
        Ballot(1, counter, "zzzz", "7ZZZZZZZZZZZZZZZZZZZZZZZZZ")
        < floor_ballot(1, counter)
        < Ballot(1, counter + 1, "", "")
    )
    assert Ballot(0, 0, "a", "o") > BALLOT_ZERO


# ---- questions bear an epoch


@pytest.mark.parametrize(
    "seen,asked,does", [(0, 1, None), (1, 1, None), (0, 2, 2), (1, 2, 2), (3, 2, "epoch"), (3, 9, 9)]
)
def test_a_question_is_fenced_by_its_epoch(seen, asked, does):
    action = ReplicaSlot.enter(SlotState(slot=0, incarnation="i", epoch=seen), 0, asked)
    if does is None:
        assert action is None
    elif does == "epoch":
        assert isinstance(action, Respond) and refused(action.reply, "epoch") == BALLOT_ZERO
        assert action.reply.epoch == seen
    else:
        assert action == Persist(EpochSeen(0, does))


# ---- stubs are forgotten

STUB = msgspec.structs.replace(DELETED, op="expire", revision=3, expired=((1, 1),), previous=None)


def with_stub(at: Ballot, *, chosen: bool = True) -> Copy:
    copy = Copy(epoch=1)
    copy.prepare(at)
    copy.commit(at, STUB)
    if chosen:
        copy.learn(at)
    return copy


def test_a_stub_goes_and_both_floors_rise():
    copy = with_stub(ballot(7))
    assert copy.forget(ballot(7)) == Done()
    assert copy.persisted == [Forgotten(0, "p", ballot(7), 1)]
    assert (copy.registers, copy.state.ballot_floor, copy.state.version_floor) == ({}, ballot(7), 1)
    assert copy.forget(ballot(7)) == Done(), "the answer may have been lost"
    assert copy.prepare(ballot(8)).version_floor == 1


def test_a_stub_that_is_not_that_one_stays():
    copy = with_stub(ballot(7))
    for at, changes, reason in (
        (ballot(6), {}, "ballot"),
        (ballot(8), {}, "ballot"),
        (ballot(7), {"epoch": 2}, "epoch"),
        (ballot(7), {"incarnation": "j"}, "unsynced"),
        (ballot(7), {"version_max": 0}, "ballot"),
    ):
        reply = copy.forget(at, **changes)
        refused(reply, reason)
        assert copy.persisted == [] and copy.registers["p"].record == STUB
    copy.state = msgspec.structs.replace(copy.state, epoch=2)
    refused(copy.forget(ballot(7)), "epoch")
    undecided = with_stub(ballot(7), chosen=False)
    refused(undecided.forget(ballot(7)), "ballot")
    alive = Copy(epoch=1)
    alive.prepare(ballot(7))
    alive.commit(ballot(7))
    alive.learn(ballot(7))
    refused(alive.forget(ballot(7)), "ballot")
    assert alive.registers["p"].record == RECORD


def test_what_comes_late_does_not_bring_a_stub_back():
    """The promise stays, so the ballot alone would let its own COMMIT pass once more."""
    copy = with_stub(ballot(7))
    copy.forget(ballot(7))
    assert copy.slot.promises("p", ballot(7))
    assert refused(copy.commit(ballot(7), STUB), "ballot") == ballot(7)
    refused(copy.commit(ballot(6)), "ballot")
    copy.learn(ballot(7), STUB)
    copy.learn(ballot(6), RECORD)
    assert copy.registers == {} and copy.persisted == []


def test_promises_stay_when_a_stub_goes():
    copy = with_stub(ballot(7))
    copy.prepare(ballot(9))
    copy.forget(ballot(7))
    assert refused(copy.commit(ballot(8)), "ballot") == ballot(9)
    assert isinstance(copy.commit(ballot(9), STUB), AcceptedReply)
