"""Background work: bounded steps, one runner that owns loops, pauses and shutdown (``runner``).

``resolver`` finishes what a dead coordinator left, ``puller`` fetches bytes that this copy lacks, ``sweeper``
removes uploads that came to nothing.
"""
