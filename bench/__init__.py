"""How fast is it, beside what this disk and this wire allow? ``make bench`` answers, ``docs/performance.md`` shows.

Every figure is measured next to its floor, in the same run on the same machine: a ratio says more than a number
of a machine that the reader does not have. A timing is never a pass or a fail.

Reading order: :mod:`app` (the run), :mod:`results` (what is measured: series, rows, the document), :mod:`scenarios`
(what is done), :mod:`cluster` (the processes), :mod:`proxied` and :mod:`delay` (one node far away); then the load
generator: :mod:`job` (what it is told; it knows no server in particular), :mod:`openloop`, :mod:`worker` (one process),
:mod:`load` (all of them), :mod:`bulk` (large bodies); then :mod:`floors`, :mod:`fill` (a million objects),
:mod:`targets` (what is aimed at), :mod:`report` (tables) and :mod:`plot` (the picture). Beside others: :mod:`pairs`
(two stores in turn), :mod:`rivals` (other stores), :mod:`versus` (another commit of ours).

It starts processes of its own, speaks to them over HTTP alone and reads ``/proc``; only :mod:`fill` knows the store,
and :mod:`delay` how a peer greets.
"""
