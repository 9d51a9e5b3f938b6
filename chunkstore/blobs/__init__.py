"""The bytes of a disk, as the event loop sees them: chunk files and inline bodies.

Reading order: ``blobs`` (the parts), ``work`` (threads, and one at a time for each blob), ``states`` (is it durable?), then an operation
each: ``arriving`` (staged and published), ``reading``, ``mending`` (put back), ``givingup``.
"""

from chunkstore.blobs.blobs import Blobs

__all__ = ["Blobs"]
