"""Replicas agree again. So far: pulling the bytes that one copy lacks from those that have them.

``pull`` says what is missing and puts it in place, verified; who asks for it, and when, is the node's affair.
This package knows disks (``chunkstore``) and a role that fetches (:class:`antientropy.pull.Source`), not sockets.
"""
