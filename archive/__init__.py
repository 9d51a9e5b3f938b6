"""What is cold goes to a bucket, and comes back by itself (rfc/0016).

Read ``frames`` and ``packs`` (what lies in the bucket, pure), ``targets`` (S3 and folders behind one interface), ``upload``, ``objects`` and ``groups`` (how chunks
get there), ``policy`` and ``heat`` (what is cold, pure), ``reading``, ``cache`` and ``verifying`` (how a chunk comes back), ``state`` (what a node notes down). It must not know of peers, routes or HTTP:
``node.archive`` brings it together with those.
"""
