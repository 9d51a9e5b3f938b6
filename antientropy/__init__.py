"""Replicas agree again (rfc/0012): what one copy lacks is found and fetched from those that have it.

Reading order: ``needs`` (what a session asks for, as data), ``checks`` (what a peer may tell), ``mending`` (what a copy
does about what another one says), ``taking``, then the sessions themselves: ``compare``, ``follow``, ``sync``, ``remake``. They are pure: no loop, no clock, no socket,
no disk. ``answers`` is the other end of them, ``driving`` runs them, ``worker`` with its ``lanes`` says which one when.
``pull`` puts missing bytes in place, verified, from the best of the ``holders``; ``wants``, ``room`` and ``failures`` say what, how much
at once and when again. ``pace`` makes all of it yield to clients. ``step`` is what background work looks like.

This package knows disks (``chunkstore``) and roles that ask and fetch, not sockets; what a round is, it is told.
"""
