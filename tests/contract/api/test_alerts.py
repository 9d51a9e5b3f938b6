"""deploy/prometheus/alerts.yaml speaks of metrics that there are, and the operations guide of every alert."""

from __future__ import annotations

import re

import pytest
import yaml

from amberblob.config import load_config
from tests.cluster.harness import ROOT, Api

RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]


async def test_every_metric_and_label_value_exists(api: Api, name: str):
    await api.put(name, b"x", node=0)
    await api.get(name, node=0)
    await api.head(name, node=0)
    await api.delete(name, node=0)
    text = (await api("GET", "/metrics", node=0)).body.decode()
    shown = set(re.findall(r"^(\w+)[ {]", text, re.MULTILINE))
    for alert in ALERTS:
        used = set(re.findall(r"\b(?:amberblob_\w+|process_\w+|up)\b", alert["expr"]))
        if used and all(metric.startswith("amberblob_archive_") for metric in used):
            continue  # only nodes with an archive tell them: tests/cluster/test_archive.py looks for that
        assert used and used - {"up"} <= shown, f"{alert['alert']}: {used - shown}"
        for label, values in re.findall(r'(operation|status|state)(?:=~?|!=)"([^"]+)"', alert["expr"]):
            for value in values.split("|"):
                # Nobody should have seen a 5xx here.
                assert value == "5xx" or f'{label}="{value}"' in text, f"{alert['alert']}: {label}={value}"


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_it_says_what_and_how_bad(alert):
    assert set(alert) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"AmberBlob[A-Z]\w+", alert["alert"])
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(alert["annotations"]) == {"summary", "description"}
    assert re.fullmatch(r"\d+[smhd]", alert.get("for", "1m"))
    for opened, closed in ("()", "{}", "[]"):
        assert alert["expr"].count(opened) == alert["expr"].count(closed)


def test_the_guide_has_each_of_them():
    guide = (ROOT / "docs" / "operations.md").read_text()
    names = [alert["alert"] for alert in ALERTS]
    assert len(set(names)) == len(names)
    assert set(re.findall(r"^\| `(AmberBlob\w+)`", guide, re.MULTILINE)) == set(names)


def test_thresholds_fit_the_defaults():
    """An alert that fires in health would teach people to look away."""
    repair = load_config(ROOT / "deploy" / "node.example.toml", {}).repair
    exprs = {alert["alert"]: alert["expr"] for alert in ALERTS}
    assert repair.compare_every_s * 3 < int(exprs["AmberBlobNotCompared"].split(">")[1])
    assert repair.scrub_days * 2 < 30 and "30 * 86400" in exprs["AmberBlobNotScrubbed"]
