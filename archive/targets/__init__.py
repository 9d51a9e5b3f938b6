"""Where the archive keeps its objects: ``interface`` is what a target promises; ``s3`` and ``folder`` keep it, ``factory`` opens one."""
