"""One node's copies of slots: the driver under ``node.protocol.replica``, and the answerer of its peers.

The rule that everything here keeps: an answer goes out only when all that the register and its slot say is
durable (``store.position`` then ``store.durable``), because what an answer shows, somebody may count.

Reading order: ``replica`` (which request goes where), ``copies`` (which copies have a voice; what makes an answer durable), then an
operation each: ``prepare`` and ``commit`` (and ``bodies``: a COMMIT whose bytes are not here), ``learning`` (LEARN, and stubs that are
forgotten), ``questions`` (what registers, histories and listings hold), ``streams`` (bytes in and out), ``inspection`` (for ``explain``).
What is asked about the archive, and by those who compare copies, is answered elsewhere (``node.archive.answers``, ``node.repairs``).
"""

from node.replica.replica import Replica

__all__ = ["Replica"]
