"""Who is alive, and who owns what?

A registry is a small store of keys with compare-and-set, watch and lease. AmberBlob keeps in it the cluster's
identity, its nodes and, per slot, the route: which members vote. It is off the data path: while it is down,
reads and writes go on by the last routes seen, and only membership cannot change.

Read in this order:

1. :mod:`registry.interface`: what a registry does, whatever it is built on.
2. :mod:`registry.routes`: the values kept in it, and :class:`~registry.routes.RouteTable`, what a node works by.
3. :mod:`registry.placement`: which node gets which slot (pure).
4. :mod:`registry.bootstrap`: how a cluster comes to be, and how a node enters it.
5. :mod:`registry.view`: how a running node follows the registry, and outlives it.
6. :mod:`registry.readmit`: how a copy that lost its memory is named in the routes again.
7. :mod:`registry.moves`: the steps by which a slot moves; :mod:`registry.planning`: where slots are to go (pure);
   :mod:`registry.membership`: what operators ask for: join, drain, remove, forget.
8. :mod:`registry.trust`: what a registry must not show after what was seen; :mod:`registry.lineage`: the same for one client.
9. The leaves: :mod:`registry.embedded` (one machine, SQLite), :mod:`registry.etcd`, :mod:`registry.redis`, :mod:`registry.memory`
   (tests and simulation), with :mod:`registry.common`; :func:`registry.factory.open_registry` picks one by the URL's scheme.

This package must not know what a blob, a ballot or a disk's layout is, nor how nodes talk: it is a sibling of
``chunkstore`` and ``amberblob.client``, and imports only the shared language in ``amberblob``.
"""

from __future__ import annotations

from registry.factory import open_registry
from registry.interface import Registry
from registry.routes import ClusterInfo, Member, NodeInfo, Route, RouteTable

__all__ = ["ClusterInfo", "Member", "NodeInfo", "Registry", "Route", "RouteTable", "open_registry"]
