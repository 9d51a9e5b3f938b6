"""What is done to the cluster: one function per scenario, each with a cluster in a folder of its own.

Each adds its values run by run; a floor is measured right before or after the value that it stands beside, because
on a shared machine nothing else is comparable. :mod:`common` says how much of everything, and what a load's rows are.
"""

from __future__ import annotations

from bench.scenarios.archiving import archive
from bench.scenarios.common import Plan, Scenario
from bench.scenarios.failure import dead, death, slow
from bench.scenarios.healing import heal
from bench.scenarios.kinds import kinds, open_loop, sizes
from bench.scenarios.large import huge, large
from bench.scenarios.listing import listing
from bench.scenarios.small import get_small, put_small
from bench.scenarios.startup import starts

__all__ = ["SCENARIOS", "Plan", "Scenario"]

SCENARIOS: dict[str, tuple[str, Scenario]] = {
    "put": ("PUT 4 KiB", put_small),
    "get": ("GET 4 KiB", get_small),
    "large": ("PUT and GET 64 MiB", large),
    "dead": ("One node dead", dead),
    "slow": ("One node slow", slow),
    "heal": ("A node is healed", heal),
    "archive": ("The archive", archive),
    "death": ("A node dies", death),
    "open": ("Open loop", open_loop),
    "sizes": ("PUT and GET by size and clients", sizes),
    "kinds": ("Other requests, 4 KiB", kinds),
    "huge": ("A body of gigabytes", huge),
    "start": ("Start and idle memory", starts),
    "list": ("Listing", listing),
}
"""In the order in which they run: most targets first, in case the time is over; last what may take all that is left."""
