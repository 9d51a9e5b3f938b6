"""Where the archive keeps its objects, behind one interface.

Read ``interface`` (what a target promises), ``factory`` (which one is opened); then ``memory``, ``folder`` with ``folderfiles``, ``folderopen`` and ``strands``, and S3: ``s3`` (requests
and credentials, alone with boto3), ``s3keys``, ``s3target``, ``s3upload``, ``s3stream``. ``failures`` and ``names`` are pure, ``retrying`` knows no target.
"""
