"""The demonstration, ``make demo``: a real cluster, real files, a real SIGKILL, and every byte compared.

Reading order: ``data`` (the files that are stored, what the cluster should hold, and the comparison), ``cluster`` (the
processes), ``traffic`` (clients that count, many operations at a time), ``report`` (what is shown), ``steps`` (the
story), ``__main__`` (the options).

It is a user of the product: it starts ``amberblob dev`` and ``amberblob serve`` as processes and speaks to them through
:mod:`amberblob.client` alone. It must not import the daemon, the registry or the disks.
"""
