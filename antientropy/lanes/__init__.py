"""The four kinds of session that a node runs, one of each at a time (and several syncs): when one begins, and what becomes of its result.

``lane`` is what they have in common; ``compares``, ``follows``, ``remakes`` and ``syncs`` are the four.
"""
