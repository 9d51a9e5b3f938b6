"""The names of the keys: everything of a cluster lies under its name, so that clusters can share a registry::

<name>/cluster          ClusterInfo
<name>/plan             which nodes the first routes were laid out over; decides the race of first starts
<name>/nodes/<node id>  NodeInfo, durable
<name>/routes/<slot>    Route, slot in five digits
<name>/alive/<node id>  Liveness, under a lease
<name>/membership       Membership: what operators want of the nodes
<name>/moves/<slot>     Move: where a slot is to go, slot in five digits
"""

from __future__ import annotations

from dataclasses import dataclass

from amberblob.limits import SLOT_COUNT_MAX

_SLOT_DIGITS = 5
assert SLOT_COUNT_MAX <= 10**_SLOT_DIGITS


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of the cluster called ``name`` (a valid node id in form: checked by the configuration)."""

    name: str

    @property
    def root(self) -> str:
        return f"{self.name}/"

    @property
    def cluster(self) -> str:
        return f"{self.name}/cluster"

    @property
    def plan(self) -> str:
        return f"{self.name}/plan"

    @property
    def nodes(self) -> str:
        return f"{self.name}/nodes/"

    @property
    def routes(self) -> str:
        return f"{self.name}/routes/"

    @property
    def alive(self) -> str:
        return f"{self.name}/alive/"

    @property
    def membership(self) -> str:
        return f"{self.name}/membership"

    @property
    def moves(self) -> str:
        return f"{self.name}/moves/"

    def move(self, slot: int) -> str:
        return f"{self.moves}{slot:0{_SLOT_DIGITS}d}"

    def node(self, node_id: str) -> str:
        return self.nodes + node_id

    def alive_node(self, node_id: str) -> str:
        return self.alive + node_id

    def route(self, slot: int) -> str:
        return f"{self.routes}{slot:0{_SLOT_DIGITS}d}"
