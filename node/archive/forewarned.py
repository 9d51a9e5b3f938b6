"""What whoever begins a job is told before: what rules that are in place will make of it."""

from __future__ import annotations

from collections.abc import Sequence

from amberblob.archivejobs import JobWanted
from archive.policy import Policy, Rule

NAMED_MAX = 3
"""Rules that a warning names."""


def warnings_for(wanted: JobWanted, policy: Policy) -> tuple[str, ...]:
    """In sentences; mostly there are none.

    A restored version counts neither as read nor as new, so a rule that has let its bytes go does it again; only one that waits for a full
    disk may leave it. What is recovered is in the archive alone, and no rule brings it back.
    """
    undoing = policy.undoing(wanted.prefix)
    if wanted.kind == "restore" and undoing:
        chooses = any(
            rule.older_than_ms or rule.not_read_for_ms or rule.larger_than or rule.only_old for rule in undoing
        )
        partly = ", as far as age, size and version fit" if chooses else ""
        return (
            f"{_named(undoing)} will take what is brought back off the disks again, within minutes{partly}. If it is to stay there: change that first "
            '(action = "archive", or an evict_above) on every node.',
        )
    if wanted.kind == "recover" and (rules := policy.below(wanted.prefix)):
        then = f"; {_named(undoing)} will take them off the disks again then" if undoing else ""
        return (
            f"{_named(rules)} will count for what is recovered, too. No rule brings bytes back: they are in the archive alone until "
            f"amberblob archive restore{then}.",
        )
    return ()


def _named(rules: Sequence[Rule]) -> str:
    """``the rule for 'logs/'``, or ``the rules for 'a/', 'b/' and 2 more``."""
    names = [repr(rule.prefix) if rule.prefix else "all paths" for rule in rules[:NAMED_MAX]]
    more = f" and {len(rules) - NAMED_MAX} more" if len(rules) > NAMED_MAX else ""
    return f"the rule{'s' if len(rules) > 1 else ''} for {', '.join(names)}{more}"
