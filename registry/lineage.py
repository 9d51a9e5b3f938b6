"""Whether a store that answers is still the one that answered before: neither another one, nor set back. Pure.

A store is set back when somebody restores a backup, starts it with an empty folder, or lets a replica that had not heard
of everything take its place. Routes that others act on may then be unknown to it, and it would give their epochs again.
"""

from __future__ import annotations

from registry.trust import RegistryRefused


class Lineage:
    """The newest revision of the store that this client has seen, and the store's identity.

    A client asks :meth:`seen` before each call and :meth:`check` after it: a linearizable answer is never older than what
    was known when the call began. (What was learnt while it ran may be newer.)

    Args:
        where: for messages, without secrets.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._revision = 0
        self._store_id = ""

    def seen(self) -> int:
        """The newest revision seen; 0 before the first."""
        return self._revision

    def check(self, seen: int, revision: int, store_id: str) -> None:
        """Take in an answer.

        Args:
            seen: what :meth:`seen` told before the call.
            store_id: what a store keeps for life and no other has; empty: not known.

        Raises:
            RegistryRefused: the store is not the one that this client knew, or older. It says so until the right one
                is back; a new client (the process begun anew) begins without memory.
        """
        if self._store_id and store_id and store_id != self._store_id:
            raise RegistryRefused(
                f"The registry {self._where} is another one than before (store {store_id}, it was {self._store_id}): it was "
                "made anew, or restored. Bring the right one back; if this is its newest state, restart the nodes one by one."
            )
        if revision < seen:
            raise RegistryRefused(
                f"The registry {self._where} is older than it was: it shows revision {revision}, and {seen} was seen. It came "
                "back empty or from a backup. Bring its newest state back; if this is it, restart the nodes one by one."
            )
        self._revision = max(self._revision, revision)
        self._store_id = self._store_id or store_id
