"""A kind of session, of which at most one is under way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

from amberblob.errors import AmberError, ClusterError, PeerError
from antientropy.driving import Running, World
from antientropy.ground import Ground
from antientropy.needs import Steps

T = TypeVar("T")


class Turns(Protocol):
    """Work that is done a turn at a time."""

    @property
    def hurried(self) -> bool:
        """Whether clients are better served by this being over soon than by its making room for them."""
        ...

    async def turn(self) -> bool:
        """Do a bounded piece of it; whether there was any."""
        ...


class Lane(ABC, Generic[T]):
    """One kind of session; at most one is under way."""

    hurried = False

    def __init__(self, ground: Ground, world: World) -> None:
        self._ground = ground
        self._world = world
        self._running: Running[T] | None = None

    @property
    def busy(self) -> bool:
        """Whether a session is under way."""
        return self._running is not None

    def now_s(self) -> float:
        """Monotonic time."""
        return self._world.clock.monotonic_s()

    async def turn(self) -> bool:
        """Begin a session if one is due, or meet one need of the one under way. Whether there was anything to do.

        Raises:
            StorageError, NotReady: the own disk, or there are no routes; the session has ended.
        """
        if self._running is None:
            session = self.begin()
            if session is None:
                return False
            self._running = Running(self._world, session)
        running = self._running
        if running.due_s > self.now_s():
            return False
        advanced = False
        try:
            await running.advance()
            advanced = True
        except (PeerError, ClusterError) as error:
            self._running = None
            self.failed(error)
            return True
        finally:
            if not advanced:
                self._running = None
        if running.over:
            self._running = None
            self.ended(running.result)
        return True

    @abstractmethod
    def begin(self) -> Steps[T] | None:
        """The session that is due; None: none is."""

    @abstractmethod
    def ended(self, result: T) -> None:
        """It came to its end."""

    @abstractmethod
    def failed(self, error: AmberError) -> None:
        """It could not go on."""
