"""Objects of the whole cluster, whichever node is asked: what ``node.http`` calls (``node.service``).

Reading order: ``service`` (composes the rest), ``put`` (and ``upload``: bodies to all replicas at once),
``change`` (delete, restore), ``lookup`` (which version), ``bytes`` (its bytes, verified), ``listing``, ``explain``.
"""
