"""The scenarios: our cluster and one rival at a time, both on this machine, measured in turn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench.cluster import Cluster
from bench.pairs import Pace, Store, compare, ours
from bench.results import Recorder
from bench.rivals.radosgw import RadosGateway
from bench.rivals.swift import Swift
from bench.scenarios import Plan, Scenario

_SETTLE_S = 1.0
_TRANSFERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """One that we stand beside: its title, and what sets it up in a folder. Setting up raises NotInstalled."""

    title: str
    start: Callable[[Path], AbstractContextManager[Store]]


RIVALS: dict[str, Rival] = {
    "swift": Rival(title="OpenStack Swift", start=Swift),
    "radosgw": Rival(title="Ceph radosgw", start=RadosGateway),
}


def beside(rival: Rival) -> Scenario:
    """PUT and GET of 4 KiB and 64 MiB, ours and theirs in turn, with the ratios of neighbours."""

    def scenario(plan: Plan, folder: Path, to: Recorder) -> None:
        theirs = folder / "theirs"
        theirs.mkdir()
        setup = rival.start(theirs)  # it may not be installed: that is known before anything starts
        with Cluster(folder / "ours") as cluster, setup as store:
            pace = Pace(window_s=plan.window_s, settle_s=_SETTLE_S, transfers=_TRANSFERS)
            compare(ours(cluster), store, to, plan.rounds(), pace)

    return scenario


SCENARIOS: dict[str, tuple[str, Scenario]] = {
    name: (f"Beside {rival.title}", beside(rival)) for name, rival in RIVALS.items()
}
