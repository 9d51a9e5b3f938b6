"""The commit protocol's decisions, as pure state machines: events in, actions out.

Reading order: ``quorum`` (who counts), ``operations`` (what a write makes of the current record),
``replica`` (what one copy answers), ``write`` (the coordinator's round), ``read`` (the quorum read).

Nothing here may know asyncio, a clock, chance, a socket or a file: the driver (``node.driver``) carries the
actions out, and a simulation can carry out the very same ones.
"""
