"""What operators ask of the cluster's nodes, as this node carries it to the registry; the answer of ``POST /cluster/membership``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from amberblob.clock import Clock
from node.service import MembershipAction
from registry.interface import Registry
from registry.membership import Action, Outcome, change
from registry.routes import ClusterInfo


class ChangeMembership(Protocol):
    """See :meth:`node.service.NodeStatus.change_membership`."""

    async def __call__(
        self, action: MembershipAction, nodes: tuple[str, ...], *, dry_run: bool, force: bool
    ) -> dict[str, Any]: ...


class MembershipChanges:
    """Changes what is wanted of nodes.

    Args:
        seen_epoch: the highest epoch of a slot that this node has seen: a registry that shows an older state is refused.
    """

    def __init__(
        self, registry: Registry, cluster: ClusterInfo, clock: Clock, *, seen_epoch: Callable[[int], int]
    ) -> None:
        self._registry = registry
        self._cluster = cluster
        self._clock = clock
        self._seen_epoch = seen_epoch

    async def __call__(
        self, action: MembershipAction, nodes: tuple[str, ...], *, dry_run: bool, force: bool
    ) -> dict[str, Any]:
        """See :class:`ChangeMembership`."""
        outcome = await change(
            self._registry,
            self._cluster,
            Action(action),
            nodes,
            now_ms=self._clock.wall_ms,
            force=force,
            dry_run=dry_run,
            seen_epoch=self._seen_epoch,
        )
        return outcome_json(outcome, dry_run=dry_run)


def outcome_json(outcome: Outcome, *, dry_run: bool) -> dict[str, Any]:
    """The plan, for people and programs."""
    plan, membership = outcome.plan, outcome.membership
    named = sorted({*membership.nodes, *plan.before, *plan.after})
    return {
        "action": membership.action,
        "dry_run": dry_run,
        "generation": membership.generation,
        "voters": plan.voters,
        "moves": len(plan.targets),
        "copies": plan.copies,
        "warnings": list(outcome.warnings),
        "nodes": [
            {
                "node": node,
                "state": state.value if (state := membership.nodes.get(node)) is not None else "spare",
                "slots_before": plan.before.get(node, 0),
                "slots_after": plan.after.get(node, 0),
            }
            for node in named
        ],
    }
