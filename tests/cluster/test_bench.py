"""The benchmark runs from end to end, with proxies between the nodes. What it measured is not judged."""

from __future__ import annotations

import pytest

from bench.app import main
from bench.results import load

pytestmark = pytest.mark.cluster


@pytest.mark.timeout(600)
def test_quick_run_of_one_scenario(tmp_path):
    kept = tmp_path / "bench.json"
    assert main(["--quick", "--only", "slow", "--json", str(kept), "--folder", str(tmp_path)]) == 0
    (section,) = load(kept).sections
    assert not section.problem
    rows = {(row.subject, row.metric): row.series.median for row in section.rows}
    assert all(value == 0 for (_, metric), value in rows.items() if metric == "errors")
    # There and back, for the majority that a write needs: the delay is where it should be.
    assert rows["PUT through the far node, alone", "latency"] >= 200
