"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A busy machine is slow now and then, which says nothing of what is tested; and what a run meets, the next one meets, too.
# Whoever asks for more examples by hand wants others each time.
settings.register_profile(
    "amberblob",
    deadline=None,
    derandomize=not int(os.environ.get("AMBERBLOB_TEST_EXAMPLES", "0")),
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("amberblob")
