"""Proof by adversity: AmberBlob's protocol and its real nodes in worlds that a seed decides. Not shipped.

Reading order: :mod:`sim.history` (what clients asked and were told), :mod:`sim.linearizability` (whether that can be
explained), ``sim.model`` (the protocol in the small, with membership changes and garbage collection, and its
mutants), and the world of whole nodes that ``python -m sim --seed N`` runs. docs/testing.md tells what each promises.
"""
