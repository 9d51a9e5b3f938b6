"""What a replica makes durable: the entries of a disk's commit journal.

The replica's state machine (``node.protocol.replica``) decides on them, a disk (``chunkstore``) applies
them. Applying is idempotent and happens in journal order per slot.
"""

from __future__ import annotations

import msgspec

from amberblob.archives import ArchivedChunk
from amberblob.ballot import Ballot
from amberblob.manifest import Record, Version, WriteMark


class Accepted(msgspec.Struct, gc=False, frozen=True, array_like=True, tag="a"):
    """The register of ``path`` now holds ``record``, accepted at ``ballot``, not known to be chosen.

    ``record.previous`` is known to be chosen (a record is only ever built on a chosen one): its row goes to
    ``blobs``, and every write id in ``record.writes`` but the last goes to ``write_ids``, in the same transaction.
    ``body`` holds the bytes of ``record.head`` when they are inline and travel with the record.
    When the record adds a version, its blob becomes REFERENCED.
    """

    slot: int
    path: str
    ballot: Ballot
    record: Record
    body: bytes | None = None


class Chosen(msgspec.Struct, gc=False, frozen=True, array_like=True, tag="c"):
    """The record accepted at ``ballot`` is chosen.

    Without ``record``: the register already holds that ballot, mark it (anything else in it: nothing to do).
    With ``record``: a replica that missed the accept installs it as accepted and chosen, whether or not the
    bytes are here, but never over a higher ballot: what was accepted above stays, only the rows are added. Then, in one transaction: the rows of ``record.added`` and ``record.previous``, the
    tombstones of the path's rows as ``record.live`` says, the write ids, one line of ``commit_log``.
    """

    slot: int
    path: str
    ballot: Ballot
    record: Record | None = None


class Reserved(msgspec.Struct, gc=False, frozen=True, array_like=True, tag="r"):
    """Promises of the slot may use counters up to ``ceiling``; after a restart the slot's floor is this."""

    slot: int
    ceiling: int


class EpochSeen(msgspec.Struct, gc=False, frozen=True, array_like=True, tag="e"):
    """The slot has seen ``epoch``; messages of a lower one are refused from now on."""

    slot: int
    epoch: int


class Staged(msgspec.Struct, gc=False, frozen=True, array_like=True, tag="s"):
    """The blob's bytes are about to be renamed into place; nothing refers to them yet.

    Has no effect on a blob that was given up, unless ``revived``: then its bytes were fetched anew for a record that
    another replica accepted, and it may be referred to after all.
    """

    slot: int
    blob_id: str
    at_ms: int
    revived: bool = False


class Aborted(msgspec.Struct, gc=False, frozen=True, array_like=True, tag="x"):
    """The blob will never be referred to: a later COMMIT of it is refused, its files may go.

    Has no effect on a blob that is REFERENCED.
    """

    slot: int
    blob_id: str


class Installed(msgspec.Struct, gc=False, frozen=True, array_like=True, tag="i"):
    """A repair: what another replica knows to be chosen of a path (rfc/0012).

    ``record`` (known to be chosen at ``ballot``) is installed as :class:`Chosen` does it; None: only rows. Then, in
    the same transaction: every row of ``rows`` that is not here and not expired, the write ids, the tombstones as the newest chosen
    record says, one line of ``commit_log`` if anything changed. With ``replace`` a row or chosen record here that has the same
    version or revision and other content is replaced: what is here failed its check. Bytes that are not here are wanted.
    """

    slot: int
    path: str
    ballot: Ballot | None
    record: Record | None
    rows: tuple[Version, ...] = ()
    writes: tuple[WriteMark, ...] = ()
    replace: bool = False


class Synced(msgspec.Struct, gc=False, frozen=True, array_like=True, tag="y"):
    """This copy holds what a majority held in ``epoch``; its floors are at least these from now on.

    ``incarnation`` is that of the copy, filled in by the disk that takes the entry: a database that began anew since then,
    and that the journal is replayed into, holds nothing of it.
    """

    slot: int
    epoch: int
    ballot_floor: Ballot
    version_floor: int
    incarnation: str = ""


class Forgotten(msgspec.Struct, gc=False, frozen=True, array_like=True, tag="f"):
    """The stub of a deleted path goes, if the register holds exactly this ballot, chosen, with no live version.

    In the same transaction the slot's floors are raised: ``ballot_floor`` to ``ballot``, ``version_floor`` to ``version_max``.
    They are raised whether or not the register was removed. Write ids stay until their own retention is over.
    """

    slot: int
    path: str
    ballot: Ballot
    version_max: int


class Archived(msgspec.Struct, gc=False, frozen=True, array_like=True, tag="v"):
    """Where the archive has chunks of a blob (rfc/0016): merged with the rows that are there (:func:`amberblob.archives.merge`).

    Of a blob that no row of ``blobs`` has, they wait for it; such a blob counts as staged at ``at_ms`` (epoch milliseconds).
    With ``evicted`` the rows stand for the bytes: a blob that is wanted, or that no row has yet, and every chunk of which has a verified
    row, is marked evicted. (One whose bytes are here stays as it is.) Has no effect on a blob that has expired; nor on one that was given
    up, unless with ``evicted`` and all of ``chunks`` verified: then it may be referred to after all, as one whose bytes were fetched anew.
    """

    slot: int
    blob_id: str
    chunks: tuple[ArchivedChunk, ...]
    at_ms: int
    evicted: bool = False


class Evicted(msgspec.Struct, gc=False, frozen=True, array_like=True, tag="z"):
    """The copy gives up the bytes of a version and lives by its rows, if verified rows cover all of ``chunk_ids`` then.

    ``chunk_ids``: every chunk of the version, each once (with its manifest's id, if it has one). Its inline body goes in the same
    transaction, its files after that. A wanted version is wanted no more.
    """

    slot: int
    path: str
    version: int
    blob_id: str
    chunk_ids: tuple[str, ...]


Mutation = (
    Accepted | Chosen | Reserved | EpochSeen | Staged | Aborted | Installed | Synced | Forgotten | Archived | Evicted
)
