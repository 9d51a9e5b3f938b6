"""The coordinator's round: PREPARE, COMMIT, LEARN for one write (or for finishing what somebody else began). Pure.

States and what moves between them::

    IDLE ──start──▶ PREPARING ──majority promised, current decided──▶ (decide)
                        │                                              ├─ Answer, Refuse ──▶ FINISHED
                        │                                              ├─ NeedHistory ──▶ READING ──majority──▶ (decide)
                        │                                              └─ Propose ──▶ COMMITTING ──write quorum──▶ FINISHED
                        ├─ current undecided ──▶ FINISHING ──majority──▶ WAITING ──▶ PREPARING with a higher ballot
                        └─ majority impossible ──▶ WAITING ──▶ PREPARING
    IDLE ──start, a promise is held──▶ COMMITTING
    COMMITTING or FINISHING, quorum impossible ──▶ WAITING ──▶ PREPARING
    any, refused for its epoch ──this node's route shows it──▶ PREPARING with the new electorate
    any ──deadline──▶ FINISHED (unavailable if no COMMIT of our own record was ever sent, else unknown)

While the slot moves (rfc/0013), a majority, a read quorum and a write quorum are one of each of the two sets of voters. The round
does not know the difference: it asks the electorate.

A new record is only ever built on one that is *known* to be chosen: an undecided one is first proposed again
as it is. That costs a round in a rare case, and buys that an accepted record vouches for its predecessor.

A definite refusal (412, 409, 404) is safe to give even when an earlier try of the same write, with a ballot b, may
have left a record somewhere. That record was built on a chosen record R. The refusal rests on a chosen record Q that
is not R, because on R the same operation would be proposed again. Were Q chosen below b, the promises that b rested
on would have shown it or a successor, so R would be that successor, and the majority asked now would show R or later,
not Q. So Q is chosen above b, every later majority sees it, and nobody finds our record to be the newest.

Every attempt has a ballot of its own: (epoch, counter, this node, ULID of the operation), the counter growing.
Answers to an earlier phase bear its token and are dropped.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import msgspec

from amberblob.ballot import Ballot
from amberblob.errors import AmberError, InsufficientStorage, OutcomeUnknown, QuorumUnavailable, StaleRoute
from amberblob.limits import VERSION_MAX
from amberblob.manifest import Record, Version, WriteMark
from amberblob.wire import (
    AcceptedReply,
    Commit,
    Failed,
    HistoryReply,
    Learnt,
    Prepare,
    Promised,
    QueryHistory,
    Refused,
    Reply,
    Request,
)
from node.protocol.hold import Hold
from node.protocol.operations import (
    NO_HISTORY,
    Answer,
    Finish,
    History,
    NeedHistory,
    Operation,
    Propose,
    Refuse,
    Situation,
    decide,
)
from node.protocol.quorum import Electorate, Finding, Vote, weigh

UNREACHABLE_TRIES_MAX = 3
"""Attempts that may fail because too few replicas answer, before a write that sent no COMMIT gives up (503)."""

HISTORY_PAGE = 100


class Send(msgspec.Struct, frozen=True):
    """Send the request to the node; give its answer or failure back with the same token."""

    node: str
    request: Request
    token: int


class Wait(msgspec.Struct, frozen=True):
    """Call ``wake(token)`` after a jittered pause that grows with ``attempt`` (0, 1, 2, …).

    ``contested``: a race was lost, so the pause is to be short; else replicas are missing. Before waking, raise
    ``counter`` to what the slot has met meanwhile: a rival may have gone far ahead.
    """

    attempt: int
    token: int
    contested: bool = False


class AwaitRoute(msgspec.Struct, frozen=True):
    """Call ``reroute(electorate)`` once this node's route of the slot shows ``epoch`` or a later one.

    ``unheard()`` when it is not to be expected soon.
    """

    epoch: int


class Spread(msgspec.Struct, frozen=True):
    """Tell the node that a record is chosen, some time soon.

    ``bare`` is enough, and much cheaper, if by the time of sending the node is among ``accepted``, which may still grow.
    """

    node: str
    item: Learnt
    bare: Learnt | None = None
    accepted: Collection[str] = ()


class Finished(msgspec.Struct, frozen=True):
    """The end of the round. Comes once, and nothing but Spread comes with it."""

    outcome: Outcome


class Applied(msgspec.Struct, frozen=True):
    """The chosen record, as of this write's end.

    Attributes:
        record: the current record; None when the path never had one.
        ballot: where it is accepted.
        mark: what this write did; set when it was applied, now or at an earlier try with the same write id.
        fresh: it was applied by this round.
        holders: nodes that accepted the record.
    """

    record: Record | None
    ballot: Ballot | None
    mark: WriteMark | None
    fresh: bool
    holders: tuple[str, ...] = ()


class Rejected(msgspec.Struct, frozen=True):
    """The write was not applied, or (OutcomeUnknown) nobody knows."""

    error: AmberError


Outcome = Applied | Rejected
Action = Send | Wait | AwaitRoute | Spread | Finished


class BytesElsewhere(QuorumUnavailable):
    """The route changed, too few of its voters have the staged bytes, and no COMMIT was sent: bring them there, and write again."""


class Phase(enum.Enum):
    IDLE = "idle"
    PREPARING = "preparing"
    READING = "reading"
    FINISHING = "finishing"
    COMMITTING = "committing"
    WAITING = "waiting"
    FINISHED = "finished"


@dataclass(slots=True)
class _Tally:
    """The answers of one phase."""

    promised: dict[str, Promised] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    promised_next: set[str] = field(default_factory=set)
    """Those of them that promised the ballot that came along."""
    history: dict[str, HistoryReply] = field(default_factory=dict)
    contested: set[str] = field(default_factory=set)
    """Voters that promised somebody above us."""
    out: dict[str, str] = field(default_factory=dict)
    """Voters that will not answer well in this phase, and why."""


class WriteRound:
    """One operation on one path, from start to outcome. Feed events, carry out the returned actions.

    Args:
        electorate: the slot's voters.
        node: this node's id; part of the ballot.
        path: the object's name.
        operation: what to do.
        operation_id: a fresh ULID; makes the ballots unique.
        write_id: the client's or, without one, ``operation_id``.
        now_ms: the coordinator's hybrid time.
        counter: the highest ballot counter met in this slot so far.
        body: the bytes of an inline put.
        holders: for a put with staged bytes: the nodes that have them. COMMIT goes to these alone, until the route changes; from
            then on the other voters are asked, too, and told where to fetch the bytes.
        may_be_retry: the write id came from outside, so an earlier try may have sent a COMMIT elsewhere.
        repeat: somebody knows that an earlier try was sent, or cannot exclude it: what it did is looked for everywhere.
        hear: a voter whose promise must be among those that are weighed, if it answers at all: the one whose own
            undecided record is to be settled.
    """

    def __init__(
        self,
        *,
        electorate: Electorate,
        node: str,
        path: str,
        operation: Operation,
        operation_id: str,
        write_id: str,
        now_ms: int,
        counter: int,
        body: bytes | None = None,
        holders: frozenset[str] | None = None,
        may_be_retry: bool = False,
        repeat: bool = False,
        hear: str | None = None,
    ) -> None:
        self.hear = hear
        self.electorate = electorate
        """Whom it asks; changes when it was refused for its epoch."""
        self._outdated_by = 0
        self._lost_race = False
        self._node = node
        self.path = path
        self._operation = operation
        self._operation_id = operation_id
        self._write_id = write_id
        self._now_ms = now_ms
        self._body = body
        self._staged_at = holders
        self._fetches = False
        """Whether voters that lack staged bytes are to fetch them: the route changed since they were staged."""
        self.counter = counter
        """The highest ballot counter met; worth remembering for the slot's next round."""
        self.sent_commit = False
        """Whether a COMMIT of a record of our own went out: from then on a failure is an unknown outcome."""
        self._may_linger = may_be_retry
        self._repeat = repeat
        self._confirming: Applied | None = None
        self._fully = False
        self._full_ballot: Ballot | None = None
        self.phase = Phase.IDLE
        self._token = 0
        self._attempt = 0
        self._unreachable_tries = 0
        self._ballot = Ballot(electorate.epoch, 0, node, operation_id)
        self._tally = _Tally()
        self._finding = Finding(None, None, decided=True, holders=())
        self._version_floor = 0
        self._prior: WriteMark | None = None
        self._proposal: Record | None = None
        self._history = NO_HISTORY
        self._wanted = NeedHistory()
        self._last_failures: dict[str, str] = {}
        self._full: set[str] = set()
        self._next = self._ballot
        self.hold: Hold | None = None
        """The promise that is held when the round has ended well."""
        self._spread_of: tuple[int, set[str]] = (0, set())

    # ---- events

    def start(self, held: Hold | None = None) -> list[Action]:
        """Begin; at once with the COMMIT if a promise is held for this coordinator that will do."""
        assert self.phase is Phase.IDLE
        return (self._begin_held(held) if held is not None else []) or self._prepare()

    def _begin_held(self, held: Hold) -> list[Action]:
        """COMMIT at once, if a promise is held and the write proposes something; else nothing.

        Only a COMMIT proves that nothing came in between, so that nothing else is decided on what is held.
        """
        if self._may_linger or held.ballot.epoch != self.electorate.epoch:
            return []
        self._finding, self._version_floor = held.finding, held.version_floor
        decision = decide(self._operation, self._situation())
        if not isinstance(decision, Propose):
            return []
        self._attempt = 1
        self._ballot = held.ballot
        self._full_ballot = held.finding.ballot
        self.counter = max(self.counter, held.ballot.counter)
        return self._commit(decision.record)

    def wake(self, token: int) -> list[Action]:
        """The pause that :class:`Wait` asked for is over."""
        if token != self._token or self.phase is Phase.FINISHED:
            return []
        if self.phase is not Phase.WAITING and not self._tally.contested:
            return []
        # In the middle of a phase: somebody refused us for a higher ballot, and a silent replica keeps us waiting for
        # the majority that we could still have. A higher ballot does not need it.
        return self._prepare()

    def reroute(self, electorate: Electorate) -> list[Action]:
        """This node's route shows the epoch that :class:`AwaitRoute` asked for: begin anew with its voters.

        An earlier try's record is found as it is within an epoch: what may be chosen below is shown by the promises above, also when
        the sets of voters differ. Until the old set has no say any more, both have to be asked, and before it has none, a majority of
        the new one was filled from a majority of the old one in an epoch in which it takes nothing older.
        """
        if self.phase is Phase.FINISHED or electorate.epoch <= self.electorate.epoch:
            return []
        before, self.electorate = self.electorate, electorate
        self._full_ballot = None  # it was on a write quorum of other copies
        if self._staged_at is not None:
            self._staged_at = electorate.still(self._staged_at, before)
            self._fetches = True
            here = self._staged_at & electorate.voters.keys()
            if not self.sent_commit and not electorate.is_write_quorum(here):
                # Nobody knows of the write yet: whoever has the whole body in view brings it there better than many pulls.
                wanted, got = electorate.writes_short(here)
                lack = dict.fromkeys(electorate.voters.keys() - here, "does not have the bytes")
                return self._end(Rejected(BytesElsewhere.of(wanted, got, lack)))
        return self._prepare()

    def unheard(self) -> list[Action]:
        """The route that :class:`AwaitRoute` asked for will not come soon: end, unless a majority may still be had without it."""
        if self.phase is not Phase.WAITING or not self._is_outdated or self._lost_race:
            return []
        if self.sent_commit:
            return self._give_up()
        epochs = self.electorate.epoch, self._outdated_by
        return self._end(Rejected(StaleRoute.behind(self.electorate.slot, *epochs, self._last_failures)))

    @property
    def _is_outdated(self) -> bool:
        return self._outdated_by > self.electorate.epoch

    def answer(self, node: str, token: int, reply: Reply) -> list[Action]:
        """A node answered the request that bore this token."""
        if token != self._token or self.phase in (Phase.FINISHED, Phase.WAITING):
            return []
        if isinstance(reply, Failed):
            return self._lost(node, f"{reply.code}: {reply.detail}")
        if isinstance(reply, Refused):
            return self._refused(node, reply)
        if not isinstance(reply, Promised | AcceptedReply | HistoryReply):
            return self._lost(node, f"answered {type(reply).__name__} to {self.phase.value}")
        if not self.electorate.counts(node, reply.incarnation):
            return self._lost(node, "its copy of the slot lost its memory and is no voter until it is synced")
        phase = self.phase
        if phase is Phase.PREPARING and isinstance(reply, Promised):
            return self._on_promised(node, reply)
        if phase is Phase.READING and isinstance(reply, HistoryReply):
            return self._on_history(node, reply)
        if phase in (Phase.COMMITTING, Phase.FINISHING) and isinstance(reply, AcceptedReply):
            if reply.promised and phase is Phase.COMMITTING:
                self._tally.promised_next.add(node)
            return self._on_accepted(node)
        return self._lost(node, f"answered {type(reply).__name__} to {phase.value}")

    def failed(self, node: str, token: int, why: str) -> list[Action]:
        """The request that bore this token had no answer."""
        if token != self._token or self.phase in (Phase.FINISHED, Phase.WAITING):
            return []
        return self._lost(node, why)

    def deadline(self) -> list[Action]:
        """Time is up."""
        if self.phase is Phase.FINISHED:
            return []
        return self._give_up()

    # ---- phase one

    def _prepare(self) -> list[Action]:
        self._attempt += 1
        self.counter += 1
        self._ballot = Ballot(self.electorate.epoch, self.counter, self._node, self._operation_id)
        self._history = NO_HISTORY
        self._proposal = None
        self._confirming = None
        return self._enter(
            Phase.PREPARING,
            self.electorate.voters,
            Prepare(
                slot=self.electorate.slot,
                path=self.path,
                epoch=self.electorate.epoch,
                ballot=self._ballot,
                body_bytes=len(self._body or b""),
                # Looking far back costs a query on each replica; a first try of a fresh id has nothing to find.
                write_id=self._write_id if self._may_linger or self.sent_commit else "",
                repeated=self.sent_commit or self._repeat,
            ),
        )

    def _enter(self, phase: Phase, nodes: Iterable[str], request: Request) -> list[Action]:
        self.phase = phase
        self._token += 1
        self._tally = _Tally()
        return [Send(node, request, self._token) for node in nodes]

    def _on_promised(self, node: str, reply: Promised) -> list[Action]:
        self._tally.promised[node] = reply
        return self._weigh_promises()

    def _weigh_promises(self) -> list[Action]:
        tally = self._tally
        if not self._promised_enough(tally.promised):
            return []
        if self.hear is not None and self.hear not in tally.promised and self.hear not in tally.out:
            return []
        promises = tally.promised.items()
        self._finding = weigh(self.electorate, [Vote(name, p.accepted, p.record, p.chosen) for name, p in promises])
        self._version_floor = max(p.version_floor for _, p in promises)
        self._prior = self._remembered(reply for _, reply in promises)
        if not self._finding.decided:
            return self._finish()
        return self._decide()

    def _promised_enough(self, promised: Collection[str]) -> bool:
        """A configured read quorum is for what clients are told. To finish, a majority does where that cannot be had:

        a copy that lost its memory is filled only once all is decided, and until then no more than N-1 can promise.
        """
        electorate = self.electorate
        if electorate.is_read_quorum(promised):
            return True
        if not isinstance(self._operation, Finish) or electorate.read_quorum_possible(self._tally.out):
            return False
        return electorate.is_majority(promised)

    def _remembered(self, promises: Iterable[Promised]) -> WriteMark | None:
        """What our write id did, by any voter's word.

        Whoever accepted the successor of our record knows our mark: from its table, or from its record's list. The
        record may be an old one: every mark in it but the last belongs to a predecessor and so is chosen, and the
        last one is if the voter says so.
        """
        for promise in promises:
            if promise.prior is not None:
                return promise.prior
            record = promise.record
            mark = record.write(self._write_id) if record is not None else None
            if record is not None and mark is not None and (promise.chosen or mark != record.writes[-1]):
                return mark
        return None

    # ---- an undecided record first becomes chosen, as it is

    def _finish(self, *, fully: bool = False) -> list[Action]:
        """Propose the current record again as it is; ``fully``: until it is on a write quorum, not just chosen."""
        record = self._finding.record
        assert record is not None
        if record.write(self._write_id) is not None:
            self.sent_commit = True  # an earlier try's record is ours too
        self._proposal = record
        self._fully = fully
        return self._enter(
            Phase.FINISHING,
            self.electorate.voters,
            Commit(
                slot=self.electorate.slot,
                path=self.path,
                epoch=self.electorate.epoch,
                ballot=self._ballot,
                record=record,
                holders=self._finding.holders,
            ),
        )

    # ---- deciding

    def _decide(self) -> list[Action]:
        decision = decide(self._operation, self._situation())
        match decision:
            case Propose():
                if self._finding.record is not None and not self._on_write_quorum():
                    return self._finish(fully=True)
                return self._commit(decision.record)
            case NeedHistory():
                return self._read_history(decision)
            case Refuse():
                return self._end(Rejected(decision.error))
            case Answer():
                finding = self._finding
                applied = Applied(finding.record, finding.ballot, decision.mark, fresh=False, holders=finding.holders)
                if isinstance(self._operation, Finish):
                    if self._operation.again and finding.record is not None:
                        return self._finish()
                    return [*self._tell(), *self._end(applied)]
                # What was forgotten since has no copies to be counted.
                if decision.mark is not None and finding.record is not None and not self._on_write_quorum():
                    return self._confirm(applied)
                return self._end(applied)

    def _situation(self) -> Situation:
        return Situation(
            current=self._finding.record,
            version_floor=self._version_floor,
            prior=self._prior,
            write_id=self._write_id,
            now_ms=self._now_ms,
            history=self._history,
        )

    def _tell(self) -> list[Action]:
        """The record was chosen before, but somebody asked to have it finished: tell those that do not know."""
        finding, electorate = self._finding, self.electorate
        if finding.ballot is None:
            return []
        bare = Learnt(electorate.slot, self.path, electorate.epoch, finding.ballot)
        whole = Learnt(electorate.slot, self.path, electorate.epoch, finding.ballot, finding.record, finding.holders)
        told = {node for node, promise in self._tally.promised.items() if promise.chosen}
        return [
            Spread(node, bare if node in finding.holders else whole)
            for node in electorate.voters
            if not (node in finding.holders and node in told)
        ]

    def _on_write_quorum(self) -> bool:
        """Whether the current record is known to have all the copies that an acknowledgement promises.

        A chosen one is on a majority. If more is configured, it is known only of what this round brought there
        itself: a voter that merely learnt of a record reports it too, without its bytes. So that a superseded
        record has its copies, nothing is built on one that has not.
        """
        electorate = self.electorate
        return electorate.majority_writes or self._finding.ballot == self._full_ballot

    def _confirm(self, applied: Applied) -> list[Action]:
        """Our write was applied at an earlier try, perhaps by a majority only: bring it to the write quorum first."""
        self.sent_commit = True
        actions = self._finish(fully=True)
        self._confirming = applied
        return actions

    def _read_history(self, wanted: NeedHistory) -> list[Action]:
        self._wanted = wanted
        return self._enter(
            Phase.READING,
            self.electorate.voters,
            QueryHistory(
                slot=self.electorate.slot,
                path=self.path,
                epoch=self.electorate.epoch,
                version=wanted.version,
                below=wanted.below,
                limit=HISTORY_PAGE,
            ),
        )

    def _on_history(self, node: str, reply: HistoryReply) -> list[Action]:
        tally = self._tally
        tally.history[node] = reply
        if not self.electorate.is_read_quorum(tally.history):
            return []
        if any(r.accepted is not None and r.accepted > self._ballot for r in tally.history.values()):
            # Somebody went past us: what we hold is old, our COMMIT would be refused.
            return self._retry(contested=True)
        self._history = extend_history(self._history, self._wanted, tally.history.values())
        return self._decide()

    # ---- phase two

    def _commit(self, record: Record) -> list[Action]:
        self._proposal = record
        self.sent_commit = True
        staged = self._staged_at if record.op == "put" else None
        # No later attempt of this round uses the ballot that it asks to have promised.
        self.counter += 1
        self._next = Ballot(self.electorate.epoch, self.counter, self._node, self._operation_id)
        commit = Commit(
            slot=self.electorate.slot,
            path=self.path,
            epoch=self.electorate.epoch,
            ballot=self._ballot,
            record=record,
            body=self._body if record.op == "put" else None,
            next=self._next,
        )
        voters = self.electorate.voters
        if staged is None:
            return self._enter(Phase.COMMITTING, voters, commit)
        actions = self._enter(Phase.COMMITTING, [node for node in voters if node in staged], commit)
        lacking = [node for node in voters if node not in staged]
        if self._fetches:
            # They are voters since the body was staged: they fetch it before they accept.
            commit = msgspec.structs.replace(commit, holders=tuple(sorted(staged)))
            actions += [Send(node, commit, self._token) for node in lacking]
        else:
            self._tally.out = dict.fromkeys(lacking, "does not have the bytes")
        return actions

    def _on_accepted(self, node: str) -> list[Action]:
        tally = self._tally
        tally.accepted.add(node)
        if self.phase is Phase.FINISHING:
            if not self._enough(tally.accepted):
                return []
            spread = self._spread()
            if self._fully:
                self._full_ballot = self._ballot
            if self._confirming is not None:
                return [*spread, *self._end(self._confirming)]
            if isinstance(self._operation, Finish):
                return [*spread, *self._end(self._applied(None, fresh=False))]
            # Chosen now. A ballot carries one value only, so our own record needs the next one.
            return [*spread, *self._prepare()]
        if not self.electorate.is_write_quorum(tally.accepted):
            return []
        assert self._proposal is not None
        applied = self._applied(self._proposal.writes[-1], fresh=True)
        if self.electorate.is_read_quorum(tally.promised_next):
            finding = Finding(self._ballot, applied.record, decided=True, holders=applied.holders)
            self.hold = Hold(self._next, finding, self._version_floor, frozenset(tally.promised_next))
        return [*self._spread(), *self._end(applied)]

    def _enough(self, accepted: set[str]) -> bool:
        """Whether these accepts end a FINISHING."""
        return self.electorate.is_write_quorum(accepted) if self._fully else self.electorate.is_majority(accepted)

    def _applied(self, mark: WriteMark | None, *, fresh: bool) -> Applied:
        return Applied(self._proposal, self._ballot, mark, fresh=fresh, holders=tuple(sorted(self._tally.accepted)))

    def _spread(self) -> list[Action]:
        """LEARN for everyone: those that accepted need the ballot only, the others the record too."""
        assert self._proposal is not None
        holders = tuple(sorted(self._tally.accepted))
        bare = Learnt(self.electorate.slot, self.path, self.electorate.epoch, self._ballot)
        whole = Learnt(self.electorate.slot, self.path, self.electorate.epoch, self._ballot, self._proposal, holders)
        # An accept that is still under way may arrive before or after its LEARN: such a copy gets the whole record.
        accepted = self._tally.accepted
        self._spread_of = (self._token, accepted)
        return [
            Spread(node, bare) if node in accepted else Spread(node, whole, bare, accepted)
            for node in self.electorate.voters
        ]

    def accepted_late(self, node: str, token: int, incarnation: str) -> None:
        """An accept that came when the round was over: a bare LEARN is enough for its node, if none has left yet."""
        of, accepted = self._spread_of
        if token == of and self.electorate.counts(node, incarnation):
            accepted.add(node)

    # ---- what goes wrong

    def _refused(self, node: str, reply: Refused) -> list[Action]:
        self.counter = max(self.counter, reply.ballot.counter)
        if reply.reason == "disk-full":
            self._full.add(node)
        nudge: list[Action] = []
        newer: list[Action] = []
        if reply.reason == "ballot":
            if not self._tally.contested:
                nudge = [Wait(0, self._token, contested=True)]
            self._tally.contested.add(node)
            if node == self.hear and self.phase is Phase.PREPARING:
                # It is to accept what comes of this: a ballot below its bar is of no use, and now the bar is known.
                self._tally.out[node] = "refused: ballot"
                return self._retry(contested=True)
        if reply.reason == "epoch" and reply.epoch > max(self.electorate.epoch, self._outdated_by):
            # A majority may still be had where it is not known yet, but a silent voter is not to be waited for.
            self._outdated_by = reply.epoch
            newer = [AwaitRoute(reply.epoch)]
        detail = f" ({reply.detail})" if reply.detail else ""
        return [*newer, *(self._lost(node, f"refused: {reply.reason}{detail}") or nudge)]

    def _lost(self, node: str, why: str) -> list[Action]:
        tally = self._tally
        tally.out[node] = why
        if self.phase is Phase.COMMITTING or (self.phase is Phase.FINISHING and self._fully):
            possible = self.electorate.write_quorum_possible(tally.out)
        elif self.phase is Phase.FINISHING or isinstance(self._operation, Finish):
            possible = self.electorate.majority_possible(tally.out)
        else:
            possible = self.electorate.read_quorum_possible(tally.out)
        if not possible:
            return self._retry(contested=bool(tally.contested))
        settles = node == self.hear or isinstance(self._operation, Finish)
        return self._weigh_promises() if settles and self.phase is Phase.PREPARING else []

    def _retry(self, *, contested: bool) -> list[Action]:
        """Pause and begin anew. ``contested``: a race was lost, which is no sign that replicas are missing."""
        self._last_failures = dict(self._tally.out)
        self._lost_race = contested
        outdated = self._is_outdated
        if not contested and not outdated:
            self._unreachable_tries += 1
            if self._unreachable_tries >= UNREACHABLE_TRIES_MAX and not self.sent_commit:
                return self._give_up()
        self.phase = Phase.WAITING
        self._token += 1
        return [Wait(self._attempt, self._token, contested=contested and not outdated)]

    def _give_up(self) -> list[Action]:
        failures = self._tally.out or self._last_failures
        if self.sent_commit:
            return self._end(
                Rejected(
                    OutcomeUnknown(
                        "The write was sent to the replicas, but no majority is known to have accepted it "
                        f"({'; '.join(f'{n}: {w}' for n, w in sorted(failures.items())) or 'time ran out'}). "
                        "It may yet be applied: send it again with the same X-Amber-Write-Id to learn which.",
                        extra={"write_id": self._write_id, "failures": failures},
                    )
                )
            )
        if self._full and not self.electorate.write_quorum_possible(self._full):
            return self._end(Rejected(InsufficientStorage.of(self._full)))
        wanted, got = self.electorate.writes_short(self.electorate.voters.keys() - failures.keys())
        # What is told of is this try's, or the last one's if nobody said no to this one yet.
        raced = bool(self._tally.contested) if self._tally.out else self._lost_race
        return self._end(Rejected(QuorumUnavailable.of(wanted, got, failures, raced=raced)))

    def _end(self, outcome: Outcome) -> list[Action]:
        self.phase = Phase.FINISHED
        self._token += 1
        return [Finished(outcome)]


def extend_history(history: History, wanted: NeedHistory, replies: Iterable[HistoryReply]) -> History:
    """Add what a majority answered to one history query.

    A chosen and superseded row is on a majority (everyone who accepted its successor wrote it), so the union
    over a majority has every row. A full page is trusted only down to the highest lower end among the full
    pages: below that, some replica did not look.
    """
    replies = list(replies)
    rows: dict[int, Version] = dict(history.rows)
    for reply in replies:
        for row in reply.rows:
            rows[row.version.version] = row.version
        if reply.record is not None:
            for version in (reply.record.previous, reply.record.added if reply.chosen else None):
                if version is not None:
                    rows[version.version] = version
    if wanted.version is not None:
        return msgspec.structs.replace(history, rows=rows, asked=history.asked | {wanted.version})
    down_to = max((reply.rows[-1].version.version for reply in replies if reply.more and reply.rows), default=0)
    below = max(history.below, wanted.below if wanted.below is not None else VERSION_MAX)
    return msgspec.structs.replace(history, rows=rows, below=below, complete_down_to=down_to)
