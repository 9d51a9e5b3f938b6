"""One disk: where are my bytes, and why are they safe?

Reading order: :mod:`interface` (what a node asks of a disk), :mod:`store` (the composition), :mod:`core` (the
way of an entry), then by interest:

* journal: :mod:`codec` (pure: frames, torn or corrupt), :mod:`segments` (files), :mod:`journal` (group commit)
* databases: :mod:`schema`, :mod:`rowcodec`, :mod:`sqlite`, :mod:`slotdb`, :mod:`applying` and :mod:`batchtables` (what
  an entry does), :mod:`pool` (lost slots), :mod:`index` (listing), :mod:`applier` (batches, checkpoints), :mod:`dbthread`
* comparing with other copies: :mod:`digestdb` (kept up by :mod:`applying`), :mod:`comparedb`, :mod:`paging`, :mod:`comparison`
* memory: :mod:`rules` (pure: what a mutation does), :mod:`overlay`, :mod:`pathfilter` (pure: which paths are new),
  :mod:`filling`, :mod:`bodycache`
* bytes: :mod:`staging` (the way in), :mod:`files`, :mod:`blobs`
* mending: :mod:`bulk` (many blobs at once, what is whole); scrub: :mod:`scrubdb`, :mod:`scrubbing`; garbage: :mod:`garbagedb`
  (what is referred to), :mod:`garbage`
* the archive: :mod:`archiverules` (pure: how rows merge), :mod:`archiverows` (rows and what they cover), :mod:`archivetables` (what
  an entry does), :mod:`archivedb` (questions), :mod:`archiving` (giving up bytes)
* the disk itself: :mod:`identity`, :mod:`space`, :mod:`fileops`, :mod:`recovery`, :mod:`doctor`
* the twin for tests and simulations, in layers: :mod:`memory_state`, :mod:`memory_base`, :mod:`memory_repair`,
  :mod:`memory_upkeep`, :mod:`memory_archive`, :mod:`memory_damage` (what goes wrong with it), :mod:`memory`

It must not know of peers, ballots' meaning, HTTP or the registry: it keeps what it is told to keep. The format
and the reasons are in rfc/0003-on-disk-format.md.
"""

from chunkstore.interface import BlobState, ReplicaStore, ScanPage, Staging
from chunkstore.memory import MemoryStore
from chunkstore.store import DiskStore

__all__ = ["BlobState", "DiskStore", "MemoryStore", "ReplicaStore", "ScanPage", "Staging"]
