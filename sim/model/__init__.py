"""The commit protocol in the small: a few registers, a hostile network, and membership that changes under them.

It is the specification of what ``node.protocol`` does and of what membership changes and garbage collection will do:
a change of the protocol is made here first, and the code follows. One seed is one world: it decides how many nodes
there are, what is lost, delayed, doubled, cut and crashed, who moves which copy where, and what the clients ask. When
it is over, :mod:`sim.model.check` asks whether what the clients were told can be explained.

Reading order:

1. :mod:`sim.model.rules`: every rule that the protocol keeps, one switch each. A mutant is a rule switched off.
2. :mod:`sim.model.values`: ballots, records, routes. Who makes a quorum.
3. :mod:`sim.model.replica`: what one copy keeps, what it answers, what survives a restart.
4. :mod:`sim.model.coordinator`: the rounds: PREPARE, COMMIT, LEARN; held promises (rfc/0009); the reads.
5. :mod:`sim.model.membership`: routes, JOINT epochs, learners, sync. Its docstring is the specification.
6. :mod:`sim.model.readmission`: how a copy that lost its memory becomes a voter again on its own node. A specification too.
7. :mod:`sim.model.garbage`: when the stub of a deleted path may go.
8. :mod:`sim.model.world` (time, network, crashes), :mod:`sim.model.client`, :mod:`sim.model.shape` (what a seed draws),
   :mod:`sim.model.run` (one seed from beginning to end).
9. :mod:`sim.model.check`: linearizability, history, progress. :mod:`sim.model.mutants`: the table.

``python -m sim.model --seeds 100000 --mutants`` is the proof that CI runs.

Not modelled: bodies and their staging (a record's bytes are taken to be where the record is), write quorums above a
majority, disks that lie, DELETE of one version and restore (one record each, like the rest), listing of many paths.
"""
