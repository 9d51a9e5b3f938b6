"""The shortcuts that somebody will want to take one day. Each is one rule switched off, and each must be caught.

They run on worlds that pass without them. Those of rfc/0009 are hunted where promises are held, all others where none are:
there a seed means what it meant before there were held promises. Some name the kind of world, and a few what else suits them in
its shape; who does what when is never staged. The seed that catches one is run again with the rule kept, and has to pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sim.model.rules import ALL_RULES, Rules
from sim.model.run import Outcome, run_seed
from sim.model.shape import Kind

SEEDS_MAX = 10_000
"""Within so many seeds a mutant has to be caught."""

QUIET: dict[str, Any] = {
    "nodes": 4,
    "pause": 6.0,
    "loss": 0.0,
    "slow_share": 0.02,
    "crashes": 0,
    "power_cuts": 0,
    "cuts": 0,
    "killed": 0.0,
    "old_programs": 0.0,
}
"""Of 'one writer': a held promise lives long enough to be misused only where little else goes on. The home has no copy."""

OFTEN_COLLECTED: dict[str, Any] = {
    "calls": 30,
    "pause": 6.0,
    "mix": ("put", "put-if-absent", *("delete",) * 3),
    "moves": 6,
    "moves_abandoned": 0.0,
    "learner_phase": 0.0,
    "route_delay": 2.0,
    "blind": 0.0,
    "sync_delay": 20.0,
    "tidy": 1.0,
    "retention": 0.0,
    "deaf": 0.0,
    "learn_delay": 0.0,
    "loss": 0.0,
    "slow_share": 0.02,
    "crashes": 0,
    "power_cuts": 0,
    "disks_lost": 0,
    "cuts": 0,
    "killed": 0.0,
    "old_programs": 0.0,
    "own_copy_looked_at": False,
}
"""Of 'moves and garbage': stubs go soon, copies move all the time, and the new ones stay blank for long."""


OFTEN_LOST: dict[str, Any] = {
    "moves": 0,
    "calls": 16,
    "losses": 4,
    "losses_again": 0.5,
    "crashes": 0,
    "power_cuts": 0,
    "outages": 0,
    "blind": 0.0,
    "killed": 0.0,
    "skew": 0.0,
    "deaf": 0.6,
    "cuts": 0,
}
"""Of 'lost copies': copies are lost all the time, and little else goes on."""

LATE_ACCEPTS: dict[str, Any] = {
    **OFTEN_LOST,
    "voters": 3,
    "nodes": 4,
    "paths": 1,
    "pause": 12.0,
    "mix": ("put", "put", "get"),
    "collections": 0,
    "losses": 8,
    "losses_down": 0.3,
    "page_delay": 0.1,
    "route_delay": 40.0,
    "slow": 7.0,
    "slow_share": 0.0,
    "slow_links": 0.4,
    "home": 0.8,
    "loss": 0.0,
    "doubling": 0.0,
    "learn_delay": 0.0,
}
"""A COMMIT is under way for longer than it takes to lose a copy and to have another one read its page."""

TWO_MUTE: dict[str, Any] = {
    **OFTEN_LOST,
    "voters": 5,
    "nodes": 5,
    "paths": 1,
    "losses": 3,
    "losses_again": 1.0,
    "losses_down": 0.3,
    "loss": 0.05,
    "slow_share": 0.0,
    "deaf": 1.0,
    "cuts": 6,
    "cut_nodes": 2,
    "cuts_spare": 0.0,
    "page_delay": 15.0,
    "collections": 0,
    "pause": 6.0,
    "mix": ("put", "put", "get"),
}
"""Two of five are lost at a time, and what is chosen is on hardly more than a majority."""

COLLECTED_AND_LOST: dict[str, Any] = {
    **OFTEN_COLLECTED,
    **OFTEN_LOST,
    "calls": 18,
    "paths": 1,
    "tidy": 1.0,
    "deaf": 0.0,
    "collections": 4,
    "learns_by_node": True,
}
"""Stubs go soon, and copies are lost all the time."""

LEARNING_AND_COLLECTING: dict[str, Any] = {
    **OFTEN_COLLECTED,
    "moves": 8,
    "voters": 3,
    "nodes": 5,
    "page_delay": 0.5,
    "learns_by_node": True,
    "losses": 0,
}
"""Of 'learners first': stubs go soon, and nodes leave and come again."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One shortcut.

    Attributes:
        name: as the command line knows it.
        rule: the switch of :class:`~sim.model.rules.Rules` that is off.
        says: the shortcut in words.
        only: the kind of world in which it is hunted; None: in all.
        holding: whether promises are held in those worlds (rfc/0009).
        fixed: what else of their shape is not left to the seed, because it shows the mutant sooner.
    """

    name: str
    rule: str
    says: str
    only: Kind | None = None
    holding: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rules(self) -> Rules:
        """The protocol with this shortcut."""
        return replace(ALL_RULES, **{self.rule: False})

    def run(self, seed: int, *, kept: bool = False, tracing: bool = False) -> Outcome:
        """One seed in a world of its own. ``kept``: with all rules after all."""
        return run_seed(
            seed,
            ALL_RULES if kept else self.rules,
            only=self.only,
            holding=self.holding,
            fixed=self.fixed,
            tracing=tracing,
        )


MUTANTS: tuple[Mutant, ...] = (
    # The table of design/commit-protocol.md.
    Mutant("accept-ignores-promise", "accepts_heed_promises", "COMMIT ignores a newer promise"),
    Mutant("read-one", "reads_ask_majority", "a read asks one replica"),
    Mutant("no-write-id", "write_ids", "a retry without the write id"),
    Mutant("amnesia", "incarnations", "a replica that lost its state still votes"),
    Mutant("gc-no-ballot-floor", "collecting_raises_ballots", "tombstone GC without a ballot floor", "garbage"),
    Mutant("gc-no-version-floor", "collecting_raises_versions", "tombstone GC without a version floor"),
    Mutant("read-undecided", "reads_finish", "a read shows an undecided record without finishing it"),
    Mutant("plain-2pc", "ballots", "plain 2PC, max+1, majorities both ways"),
    Mutant("promise-lost", "promises_survive", "a promise that a restart forgets"),
    Mutant("refusal-from-undecided", "refusals_rest_on_chosen", "412 answered from an undecided record"),
    Mutant("no-predecessor", "records_carry_predecessor", "a record without its predecessor"),
    # More about one register.
    Mutant("build-on-undecided", "builds_on_chosen", "a record built on one that is not known to be chosen"),
    Mutant("accept-not-durable", "accepts_are_durable", "an accept is told before it is durable"),
    Mutant("clock-decides", "ballots_decide", "the latest wall clock decides which record is current"),
    Mutant("old-write-ids-forgotten", "old_write_ids", "write ids that left the record are forgotten"),
    Mutant("hasty-client", "clients_wait", "a client repeats a write while its first try may still be running"),
    # Held promises (rfc/0009).
    Mutant(
        "held-refuses",
        "held_only_proposes",
        "412 answered from what is held",
        "one writer",
        holding=True,
        fixed={**QUIET, "mix": ("put", "put-if-etag", "put-if-absent", "delete", "delete")},
    ),
    Mutant("held-twice", "held_used_once", "a held promise is used twice", "one writer", holding=True),
    Mutant(
        "held-across-epochs",
        "held_in_one_epoch",
        "a held promise is used in the next epoch, its ballot adapted",
        "moves",
        holding=True,
    ),
    Mutant(
        "held-of-old-epoch",
        "ballots_of_their_epoch",
        "a held promise is used in the next epoch as it is, and copies take it",
        "moves and garbage",
        holding=True,
        fixed=OFTEN_COLLECTED,
    ),
    Mutant(
        "held-by-few",
        "held_by_quorum",
        "a promise is held though fewer than a read quorum gave it",
        "one writer",
        holding=True,
        fixed={**QUIET, "old_programs": 0.5},
    ),
    Mutant(
        "held-for-retries",
        "held_for_first_tries",
        "a retry that the held record does not know begins from it",
        "one writer",
        holding=True,
    ),
    Mutant(
        "next-lost",
        "next_is_covered",
        "a promised `next` that a restart forgets",
        "one writer",
        holding=True,
        # The home goes on while all copies restart, and `next` is far above what the ceiling covers.
        fixed={**QUIET, "power_cuts": 4, "leap": 12},
    ),
    Mutant(
        "next-repeated",
        "next_is_not_repeated",
        "a COMMIT that comes twice promises `next` over a newer promise",
        "one writer",
        holding=True,
        # The second COMMIT has to come between a rival's PREPARE and his COMMIT, and the home's next write as well.
        fixed={**QUIET, "nodes": 3, "pause": 3.0, "home": 0.5, "doubling": 0.5, "slow": 8.0, "slow_share": 0.2},
    ),
    # Epochs.
    Mutant(
        "old-epochs-answered", "old_epochs_refused", "PREPARE and COMMIT of an old epoch are answered", "stale routes"
    ),
    Mutant("old-reads-answered", "old_queries_refused", "reads of an old epoch are answered", "stale routes"),
    Mutant("epoch-lost", "epochs_survive", "an epoch that a restart forgets", "stale routes"),
    Mutant("route-overwritten", "routes_by_compare", "a route is put without comparing"),
    Mutant("no-joint", "moves_are_joint", "the voters are swapped without a JOINT epoch"),
    Mutant("joint-writes-old", "joint_writes_both", "JOINT writes need a majority of the old set only"),
    Mutant("joint-reads-old", "joint_reads_both", "JOINT reads and PREPARE ask the old set only", "stale routes"),
    Mutant("final-at-once", "final_awaits_sync", "FINAL without a sync"),
    Mutant("final-new-only", "final_counts_kept", "FINAL once the new voters are synced, though the set shrank"),
    # Learners and their sync.
    Mutant("learners-count", "learners_do_not_count", "a learner's answer counts"),
    Mutant(
        "sync-of-old-epoch",
        "syncs_are_of_this_epoch",
        "a sync from before this JOINT epoch counts",
        "moves",
    ),
    Mutant("sync-no-fence", "syncs_fence", "a sync is answered without leaving the old epoch", "stale routes"),
    Mutant("sync-from-one", "syncs_ask_majority", "a sync reads one old voter"),
    Mutant("sync-leaves-undecided", "syncs_finish", "a sync leaves out what is undecided", "moves and garbage"),
    Mutant("sync-no-rows", "syncs_copy_rows", "a sync takes registers and no rows"),
    Mutant("sync-no-write-ids", "syncs_copy_write_ids", "a sync takes registers and no write ids", "moves and garbage"),
    Mutant("sync-no-floors", "syncs_copy_floors", "a sync takes registers and no floors", "moves and garbage"),
    Mutant(
        "copies-keep-memory", "copies_start_blank", "a copy that is named anew keeps what it had", "moves and garbage"
    ),
    Mutant(
        "strangers-heard",
        "strangers_unheard",
        "what an unnamed copy reports is weighed, though not counted",
        "moves and garbage",
    ),
    Mutant(
        "learn-any-copy",
        "learns_are_addressed",
        "a LEARN is taken by whichever copy the node has by then",
        "moves and garbage",
    ),
    # Copies that lost their memory (rfc/0012).
    Mutant(
        "readmit-unsynced",
        "readmitted_are_mute",
        "a readmitted copy answers before it is synced",
        "lost copies",
        fixed=OFTEN_LOST,
    ),
    Mutant(
        "readmit-no-fence",
        "readmissions_fence",
        "a page is answered without leaving the old epoch",
        "lost copies",
        fixed=LATE_ACCEPTS,
    ),
    Mutant(
        "readmit-from-few",
        "readmissions_ask_majority",
        "a page is read from one less than a majority",
        "lost copies",
        fixed=OFTEN_LOST,
    ),
    Mutant(
        "survivor-no-fence",
        "readmissions_fence",
        "the last word of one of two voters is taken before it has left the old epoch",
        "lost copies",
        fixed={**LATE_ACCEPTS, "voters": 2, "nodes": 3},
    ),
    Mutant(
        "survivor-waits",
        "survivors_decide",
        "what one of two voters has undecided waits for a round of both",
        "lost copies",
        fixed={**OFTEN_LOST, "voters": 2, "nodes": 3},
    ),
    Mutant(
        "mute-counts",
        "mute_ones_show_nothing",
        "a mute copy is of the majority that another is synced from",
        "lost copies",
        fixed=TWO_MUTE,
    ),
    Mutant(
        "mute-learns",
        "mute_ones_hear_nothing",
        "a mute copy takes LEARNs",
        "lost copies",
        fixed={**COLLECTED_AND_LOST, "learn_delay": 30.0},
    ),
    Mutant(
        "since-forgotten",
        "since_is_kept",
        "a later route does not say from when on a member counts",
        "lost copies",
        fixed={"crashes": 0, "losses": 4, "losses_again": 0.5, "moves": 4, "moves_abandoned": 0.2, "page_delay": 10.0},
    ),
    Mutant(
        "gc-with-mute",
        "collects_with_voices",
        "a stub goes while a copy is mute",
        "lost copies",
        fixed={**COLLECTED_AND_LOST, "page_delay": 10.0},
    ),
    Mutant(
        "readmit-leaves-undecided",
        "syncs_finish",
        "a page leaves out what is undecided",
        "lost copies",
        fixed=OFTEN_LOST,
    ),
    Mutant(
        "readmit-no-rows", "syncs_copy_rows", "a page brings registers and no rows", "lost copies", fixed=OFTEN_LOST
    ),
    Mutant(
        "readmit-no-write-ids",
        "syncs_copy_write_ids",
        "a page brings registers and no write ids",
        "lost copies",
        fixed={**OFTEN_LOST, "loss": 0.2, "killed": 0.2},
    ),
    Mutant(
        "readmit-no-floors",
        "syncs_copy_floors",
        "a readmitted copy votes without the floors",
        "lost copies",
        fixed={**COLLECTED_AND_LOST, "learn_delay": 30.0},
    ),
    # Moves as the code makes them (rfc/0013).
    Mutant(
        "joint-learner-sync",
        "syncs_are_of_this_epoch",
        "FINAL counts what its members read as learners",
        "learners first",
    ),
    Mutant(
        "learners-final-at-once",
        "final_awaits_sync",
        "FINAL without a sync, the learners being filled",
        "learners first",
    ),
    Mutant(
        "learners-final-new-only",
        "final_counts_kept",
        "FINAL once the former learners are synced, though the set shrank",
        "learners first",
    ),
    Mutant(
        "learner-keeps-memory",
        "copies_start_blank",
        "a learner begins with what the node had of the slot before",
        "learners first",
        fixed=LEARNING_AND_COLLECTING,
    ),
    Mutant(
        "learner-answers-blank",
        "readmitted_are_mute",
        "a learner answers in JOINT before it was filled",
        "learners first",
    ),
    # Garbage.
    Mutant("gc-majority", "collects_at_all", "a stub goes that a majority holds, not all"),
    Mutant("gc-in-joint", "collects_stable", "a stub goes in a JOINT epoch", "moves and garbage"),
    Mutant("gc-with-learners", "collects_without_learners", "a stub goes while there are learners", "lagging learners"),
    Mutant("gc-without-compare", "collects_if_equal", "a stub's removal does not look at what is there"),
    Mutant("gc-forgets-promises", "collecting_keeps_promises", "a stub goes and takes the promises along", "garbage"),
    Mutant("gc-forgets-write-ids", "collecting_keeps_write_ids", "a stub goes and takes the write ids along"),
)

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


def hunt(mutant: Mutant, seeds_max: int = SEEDS_MAX) -> Outcome | None:
    """The first seed that catches the mutant; None if it survives."""
    for seed in range(1, seeds_max + 1):
        outcome = mutant.run(seed)
        if outcome.faults:
            kept = mutant.run(seed, kept=True)
            assert not kept.faults, f"seed {seed} ({kept.kind}) fails with all rules kept: {kept.faults}"
            return outcome
    return None
