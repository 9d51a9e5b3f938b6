"""How a running node follows the registry, and outlives it.

:class:`RouteWatcher` keeps the newest :class:`~registry.routes.RouteTable` at hand. While the registry is down it
keeps the last one, tries again, and says since when. It never takes a route of an older epoch than it has seen,
also across restarts (the cache file).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import assert_never

import structlog

from amberblob.clock import Clock, Randomness
from amberblob.errors import NotReady, RegistryUnavailable
from registry.backoff import Backoff
from registry.bootstrap import register_node
from registry.cache import save_cache
from registry.interface import Change, Compacted, Registry
from registry.keys import Keys
from registry.liveness import TTL_S, Heartbeat
from registry.routes import Liveness, NodeInfo, RouteTable, advance, encode
from registry.snapshot import Picture, picture_of, touches_table
from registry.trust import RegistryRefused, check_picture, check_revision

_log = structlog.get_logger(__name__)

Listener = Callable[[RouteTable], None]

TABLES_APART_S = 0.05
"""Changes of the table that follow each other faster are taken in together: thousands of moves are written and done one by one, and each
new table costs every node time in proportion to the number of slots."""


class RouteWatcher:
    """The registry as one node sees it.

    Args:
        registry: not closed here.
        cluster_name: whose keys to follow.
        clock, randomness: for "since when", and for jitter.
        table: what to begin with: from the cache, or from ``ensure_routes``. None: not known yet.
        cache_path: where every new table is kept; None: nowhere.
        me: this node, to give its sign of life; None: only watch.
        arriving: see :func:`~registry.bootstrap.register_node`.
        alive_ttl_s: after how many seconds without a sign of life this node counts as gone.

    Everything belongs to one event loop.
    """

    def __init__(
        self,
        registry: Registry,
        cluster_name: str,
        *,
        clock: Clock,
        randomness: Randomness,
        table: RouteTable | None = None,
        cache_path: Path | None = None,
        me: NodeInfo | None = None,
        arriving: Callable[[], Awaitable[None]] | None = None,
        alive_ttl_s: float = TTL_S,
    ) -> None:
        self._registry = registry
        self._keys = Keys(cluster_name)
        self._clock = clock
        self._randomness = randomness
        self._table = table
        self._cached: RouteTable | None = None
        self._cache_path = cache_path
        self._me = me
        self._arriving = arriving
        self._alive_ttl_s = alive_ttl_s
        self._alive: frozenset[str] = frozenset()
        self._listeners: list[Listener] = []
        self._have_table = asyncio.Event()
        if table is not None:
            self._have_table.set()
        self._registry_error: str | None = "not asked yet"
        self._refused = False
        self._revision = 0
        self._since_ms = clock.wall_ms()
        self._tasks: list[asyncio.Task[None]] = []
        self._keeper: asyncio.Task[None] | None = None
        self._to_keep = asyncio.Event()
        self._ending = False

    # -- what is known

    @property
    def table(self) -> RouteTable | None:
        """The newest table seen; None while there was none."""
        return self._table

    def require_table(self) -> RouteTable:
        """The newest table seen. Raises NotReady while there was none."""
        if self._table is None:
            raise NotReady("This node has not seen the cluster's routes yet; is the registry up?")
        return self._table

    async def wait_table(self, *, timeout_s: float) -> RouteTable:
        """The newest table, waiting for the first one. Raises NotReady after ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._have_table.wait()
        return self.require_table()

    @property
    def alive(self) -> frozenset[str]:
        """Nodes that give a sign of life, as last seen. A hint: see :attr:`registry_ok`."""
        return self._alive

    @property
    def registry_ok(self) -> bool:
        """Whether the table follows the registry at this time."""
        return self._registry_error is None

    @property
    def follows(self) -> bool:
        """Whether news of routes come in: :attr:`registry_ok`, and not before the start or since the stop."""
        return bool(self._tasks) and self.registry_ok

    @property
    def registry_error(self) -> str | None:
        """Why it does not; None when it does."""
        return self._registry_error

    @property
    def registry_refused(self) -> bool:
        """Whether it answers, and is not trusted: it came back empty, older, or is another cluster's (:mod:`registry.trust`)."""
        return self._refused

    @property
    def registry_since_ms(self) -> int:
        """Since when :attr:`registry_ok` is as it is, milliseconds since the Unix epoch."""
        return self._since_ms

    def add_listener(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with every new table from now on; returns what removes it. It must not block or raise."""
        self._listeners.append(listener)

        def remove() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return remove

    # -- its life

    def start(self) -> None:
        """Begin to follow, and to give a sign of life. Needs a running event loop; once."""
        assert not self._tasks, "started twice"
        self._tasks.append(asyncio.create_task(self._follow(), name="registry-follow"))
        self._keeper = asyncio.create_task(self._keep_on(), name="registry-cache")
        if self._me is not None:
            heartbeat = Heartbeat(
                self._registry,
                self._keys.alive_node(self._me.node_id),
                encode(Liveness(disk_id=self._me.disk_id, started_at_ms=self._me.started_at_ms)),
                randomness=self._randomness,
                ttl_s=self._alive_ttl_s,
                enroll=self._enroll,
            )
            self._tasks.append(asyncio.create_task(heartbeat.run(), name="registry-heartbeat"))

    async def stop(self) -> None:
        """End; this node's sign of life is taken back if the registry answers, and the newest table is in the cache. May be called twice."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            self._ending = True
            self._to_keep.set()
            await keeper

    # -- following

    async def _follow(self) -> None:
        backoff = Backoff(self._randomness)
        while True:
            try:
                await self._follow_once(backoff)
            except RegistryUnavailable as error:
                self._note(str(error), refused=isinstance(error, RegistryRefused))
                await asyncio.sleep(backoff.next_s())
            except Exception as error:
                # A fault of this program: do not stop following for it.
                _log.exception("following the registry failed")
                self._note(repr(error))
                await asyncio.sleep(backoff.next_s())

    async def _follow_once(self, backoff: Backoff) -> None:
        """From a snapshot on until the watch ends. Returns when a new snapshot is to be read at once."""
        snapshot = await self._registry.range(self._keys.root)
        check_revision(self._revision, snapshot.revision)
        picture = picture_of(snapshot, self._keys)
        self._take(picture)
        self._revision = snapshot.revision
        self._alive = frozenset(picture.alive)
        self._note(None)
        backoff.reset()
        changed = asyncio.Event()
        tasks = [
            asyncio.create_task(self._watch_on(picture, snapshot.revision, changed), name="registry-watch"),
            asyncio.create_task(self._take_on(picture, changed), name="registry-take"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            # What was not taken yet is in the next snapshot.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch_on(self, picture: Picture, revision: int, changed: asyncio.Event) -> None:
        """Keep the picture up to date from a revision on. Returns when a new snapshot is to be read at once."""
        async with aclosing(self._registry.watch(self._keys.root, revision + 1)) as items:
            async for item in items:
                match item:
                    case Change():
                        picture.apply(item)
                        self._alive = frozenset(picture.alive)
                        if touches_table(item, self._keys):
                            changed.set()
                        self._revision = item.revision
                    case Compacted():
                        return
                    case _:
                        assert_never(item)
        raise RegistryUnavailable("The registry client is closed.")

    async def _take_on(self, picture: Picture, changed: asyncio.Event) -> None:
        """Take the picture whenever it changed: the first time at once, and then all that came in meanwhile together."""
        while True:
            await changed.wait()
            changed.clear()
            self._take(picture)
            await asyncio.sleep(TABLES_APART_S)

    async def _enroll(self) -> None:
        """Register this node, should the registry not know it as it is (it was down at start, or lost something).

        Only while the table follows it: into one that was not looked at yet, or is refused, nothing is written.

        Raises: RegistryRefused when it shows less than was seen. A sign of life ends also because another registry, or an older one,
        has come in this one's place; the watch may hear of that later, and a key put there would let the revision grow until
        nothing was to be seen any more.
        """
        if self._registry_error is not None:
            raise RegistryUnavailable(self._registry_error)
        revision, table = self._revision, self._table
        snapshot = await self._registry.range(self._keys.root)
        check_revision(revision, snapshot.revision)
        check_picture(table, picture_of(snapshot, self._keys))
        if self._me is not None and self._table is not None:
            await register_node(self._registry, self._table.cluster, self._me, arriving=self._arriving)

    def _take(self, picture: Picture) -> None:
        """Work by what the picture shows, if it is complete and new; tell the listeners; have it kept in the cache.

        Raises: RegistryRefused when it shows less than was seen.
        """
        check_picture(self._table, picture)
        read = picture.table()
        if read is not None:
            table = advance(self._table, read)
            if table != self._table:
                self._table = table
                self._have_table.set()
                for listener in list(self._listeners):
                    listener(table)
        self._to_keep.set()

    async def _keep_on(self) -> None:
        """Keep the newest table in the cache, until the end. Nobody waits for that: on a busy disk it may take longer than routes live."""
        while True:
            await self._to_keep.wait()
            self._to_keep.clear()
            try:
                await self._keep()
            except Exception:
                # A fault of this program: the next table is tried all the same.
                _log.exception("route cache not written")
            if self._ending and not self._to_keep.is_set():
                return

    async def _keep(self) -> None:
        if self._cache_path is None or self._table is None or self._table == self._cached:
            return
        table = self._table
        try:
            await asyncio.to_thread(save_cache, self._cache_path, table)
            self._cached = table
        except OSError as error:
            _log.warning("route cache not written", path=str(self._cache_path), error=str(error))

    def _note(self, error: str | None, *, refused: bool = False) -> None:
        """Remember how the registry is, and say so when that changes."""
        if (error is None, refused) != (self._registry_error is None, self._refused):
            self._since_ms = self._clock.wall_ms()
            if error is None:
                _log.info("registry reached")
            elif refused:
                _log.error("registry refused, going on with the last routes", error=error)
            else:
                _log.warning("registry lost, going on with the last routes", error=error)
        self._registry_error = error
        self._refused = refused
