"""How nodes talk to each other: messages and byte streams over a few persistent TCP connections.

It knows how bytes reach a peer and who the peer is. It must not know what a message means: no ballots, no
slots, no disks. Read in this order:

* :mod:`~node.transport.interface` what the rest of the node sees (``Peers``, ``PeerHandler``)
* :mod:`~node.transport.frames`, :mod:`~node.transport.handshake`, :mod:`~node.transport.windows` the pure
  parts: the codec, who may talk to whom, and how much may be on its way
* :mod:`~node.transport.streams` bytes with flow control, whatever carries them
* :mod:`~node.transport.connection` one TCP connection; :mod:`~node.transport.caller` its dialling end,
  :mod:`~node.transport.answerer` its listening end
* :mod:`~node.transport.link` a connection that comes back
* :mod:`~node.transport.clients`, :mod:`~node.transport.local`, :mod:`~node.transport.server` the faces

Why it is so: rfc/0004-peer-transport.md.
"""

from node.transport.clients import PeerClients
from node.transport.handshake import Identity
from node.transport.server import PeerServer

__all__ = ["Identity", "PeerClients", "PeerServer"]
