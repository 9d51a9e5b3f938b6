"""Every rule of the protocol that the model can be told to break, one switch each.

All switches on is the protocol. A mutant (:mod:`sim.model.mutants`) is one switch off; it has to be caught.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules; the comments tell what each demands."""

    # ---- one register (design/commit-protocol.md, rfc/0002)
    accepts_heed_promises: bool = True
    """COMMIT is refused below a newer promise."""
    ballots: bool = True
    """There are promises at all. Off: plain two-phase commit of "the highest version plus one"."""
    ballots_decide: bool = True
    """Of several records the one with the highest ballot is current. Off: the one with the latest clock."""
    reads_ask_majority: bool = True
    reads_finish: bool = True
    """A read does not show a record that is not known to be chosen; it finishes it first."""
    refusals_rest_on_chosen: bool = True
    """412 and 404 rest on a chosen record."""
    builds_on_chosen: bool = True
    """A record is only built on one that is known to be chosen (rfc/0002, "History")."""
    records_carry_predecessor: bool = True
    write_ids: bool = True
    """A retry bears its write id and is answered with what the first try did."""
    old_write_ids: bool = True
    """Write ids that a record has no room for go to a table beside the rows."""
    clients_wait: bool = True
    """A client repeats a write that was not answered only once no round of the first try can be running."""

    # ---- held promises (rfc/0009)
    held_only_proposes: bool = True
    """What is held may begin a COMMIT. Off: 412 and 404 are answered from it too."""
    held_used_once: bool = True
    held_in_one_epoch: bool = True
    """What is held is of use in its own epoch only. Off: its ballot is written anew for the present one."""
    ballots_of_their_epoch: bool = True
    """A copy takes no ballot of another epoch than its request's. Off: it does, and what is held is sent under any route."""
    held_by_quorum: bool = True
    """A read quorum has promised. Off: a write quorum has accepted, whoever of it promised."""
    held_for_first_tries: bool = True
    """A retry begins with PREPARE. Off: it begins from what is held, if that record does not have its write id."""
    next_is_covered: bool = True
    """``next`` is under the promise ceiling before it is told."""
    next_is_not_repeated: bool = True
    """A COMMIT that comes twice promises nothing anew. Off: ``next`` again, whatever was promised since."""

    # ---- one copy: what survives
    accepts_are_durable: bool = True
    """An accept is durable before it is told."""
    promises_survive: bool = True
    """A restart refuses everything up to the promise ceiling."""
    epochs_survive: bool = True
    """The epoch that a copy has adopted is durable before it answers in it."""
    incarnations: bool = True
    """A copy that lost its memory is another copy. Off: it comes back empty and votes."""

    # ---- epochs (rfc/0007)
    old_epochs_refused: bool = True
    """A copy answers no PREPARE and no COMMIT of an epoch below its own."""
    old_queries_refused: bool = True
    """A copy answers no read of an epoch below its own either."""
    routes_by_compare: bool = True
    """A route changes only by compare-and-set. Off: the last writer wins, and two routes may bear one epoch."""
    moves_are_joint: bool = True
    """Two different sets of voters never follow each other without a JOINT epoch of both."""
    joint_writes_both: bool = True
    """A COMMIT in a JOINT epoch needs a majority of each set. Off: of the old one."""
    joint_reads_both: bool = True
    """PREPARE and reads in a JOINT epoch need a majority of each set. Off: of the old one, as the design says."""
    final_awaits_sync: bool = True
    """No FINAL before copies of the new set are synced."""
    final_counts_kept: bool = True
    """A majority of the new set is synced before FINAL. Off: only those that are new, as the design says."""
    syncs_are_of_this_epoch: bool = True
    """A sync counts for the JOINT epoch in which it began, not for a later one."""
    syncs_fence: bool = True
    """Whoever answers a sync has durably left the old epoch."""
    syncs_ask_majority: bool = True
    syncs_finish: bool = True
    """A sync takes over what is chosen; what is undecided is finished first. Off: it is left out."""
    syncs_copy_rows: bool = True
    syncs_copy_write_ids: bool = True
    syncs_copy_floors: bool = True
    learners_do_not_count: bool = True
    strangers_unheard: bool = True
    """What a copy reports that the route does not name is not even weighed. Off: it is, though it does not count."""
    learns_are_addressed: bool = True
    """A LEARN is for one copy, by incarnation. Off: whichever copy the node has by then takes it."""
    copies_start_blank: bool = True
    """A copy that is named anew starts with nothing, whatever the node had of the slot before."""

    # ---- copies that lost their memory (rfc/0012)
    readmitted_are_mute: bool = True
    """A copy that was readmitted has no voice before it is synced. Off: it answers at once, blank as it is."""
    readmissions_fence: bool = True
    """Whoever answers with a page has durably left the epochs below."""
    readmissions_ask_majority: bool = True
    """Each page is read from a majority of the voters. Off: from one copy less."""
    survivors_decide: bool = True
    """Of two voters, what the one that has its memory accepted last is chosen for the one that has not. Off: both wait for each other."""
    mute_ones_show_nothing: bool = True
    """A mute copy is none of the majority that another is synced from. Off: it is."""
    mute_ones_hear_nothing: bool = True
    """A mute copy takes no LEARN."""
    since_is_kept: bool = True
    """Later routes say as well from when on a member has to be synced. Off: the next one has forgotten it."""

    # ---- garbage
    collects_with_voices: bool = True
    """No collection while a copy is mute. Off: it is enough that all others hold the stub."""
    collects_at_all: bool = True
    """Every voter holds the stub before it goes. Off: a majority does."""
    collects_stable: bool = True
    """No collection in a JOINT epoch."""
    collects_without_learners: bool = True
    collects_if_equal: bool = True
    """A copy removes its register only if it holds that very stub."""
    collecting_raises_ballots: bool = True
    collecting_raises_versions: bool = True
    collecting_keeps_promises: bool = True
    collecting_keeps_write_ids: bool = True


ALL_RULES = Rules()
