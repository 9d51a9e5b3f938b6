"""How fast is it, beside what this disk and this wire allow? ``make bench`` answers, ``docs/performance.md`` shows.

Every figure is measured next to its floor, in the same run on the same machine: a ratio says more than a number
of a machine that the reader does not have. A timing is never a pass or a fail.

Reading order: :mod:`app` (the run), :mod:`results` (what is measured: series, rows, the document), then
:mod:`scenarios` (what is done), :mod:`cluster` (the processes), :mod:`worker` and :mod:`load` (the load generator),
:mod:`bulk` (large bodies), :mod:`floors`, :mod:`fill` (a million objects), :mod:`report` (tables).
Beside others: :mod:`pairs` (two stores in turn), :mod:`versus` (another commit of ours), :mod:`rivals` (other stores).

It starts processes of its own, speaks to them over HTTP alone and reads ``/proc``; only :mod:`fill` knows the store.
"""
