"""Others of our kind on the same machine, under the same generator, three copies each.

A rival is installed by ``make bench-rivals`` (:mod:`install`), set up in a temporary folder on free ports of this
machine alone, and gone after its scenario: no service, no systemd, nothing in ``/etc`` or ``/var``. What they have in
common is in :mod:`common`; :mod:`swift` and :mod:`radosgw` say of each how it is set up and what it promises when it
answers a PUT; :mod:`beside` measures.
"""
