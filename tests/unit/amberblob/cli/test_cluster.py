"""``amberblob cluster``: its screens, and ``heal`` with its waiting, in a pipe and on a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from amberblob.cli import heal, healing, watching
from amberblob.cli.app import run
from tests.unit.amberblob.cli.kit import Answering, run_on_terminal, standing_in

STATES = ("whole", "in-step", "healing", "degraded", "corrupt", "unavailable", "unrecoverable")
SINCE = "2026-01-31T12:00:00.000Z"


def row(slot: int, state: str = "healing", **more: Any) -> dict[str, Any]:
    well = state in ("whole", "in-step")
    copies = [{"node": f"node-{i}", "state": state if well else "whole", "root": "ab"} for i in (1, 2)]
    copies.append({"node": "node-3", "state": state if well else "wanting", "root": "ab"})
    plain = {
        "slot": slot, "state": state, "target": 3, "present": 3, "behind": 0, "undecided": 0, "damaged": 0, "wanted": 0,
        "wanted_bytes": 0, "objects": 7, "compared": well, "copies": copies,
    }  # fmt: skip
    return {**plain, **more}


def cluster(*rows: dict[str, Any], **heal_more: Any) -> dict[str, Any]:
    """What a node would say, of 4 slots: all are whole but those given."""
    counts = dict.fromkeys(STATES, 0)
    for one in rows:
        counts[one["state"]] += 1
    counts["whole"] += 4 - len(rows)
    worst = next(state for state in reversed(STATES) if counts[state])
    account = {
        "state": worst, "healed": worst == "whole", "at": "2026-01-31T12:00:00.000Z", "slots": counts,
        "slots_to_compare": sum(not one["compared"] for one in rows), "objects": 1200, "objects_below_target": 0,
        "bytes_below_target": 0, "versions_waiting": 0, "bytes_waiting": 0, "undecided": 0, "damaged": 0, "unrecoverable": 0,
        "rate_bytes_per_s": None, "seconds_left": None, "last_full_compare": "2026-01-31T11:58:20.000Z",
        "last_full_scrub": None, "silent_nodes": [], "by_slot": list(rows),
    }  # fmt: skip
    return {
        "name": "test", "slot_count": 4, "replicas": 3, "epoch": 2, "registry": {"ok": True, "error": None},
        "nodes": [{"node": f"node-{i}", "reachable": True} for i in (1, 2, 3)],
        "slots": {"total": 4, "degraded": 0}, "heal": {**account, **heal_more},
    }  # fmt: skip


class Told:
    """What the node answers to one GET after another (the last one for ever), and what it was asked."""

    def __init__(self) -> None:
        self.clusters: list[dict[str, Any]] = [cluster()]
        self.asked: list[str] = []
        self.healed: dict[str, Any] = {"since": SINCE, "nodes": ["node-1", "node-2"], "silent_nodes": ["node-3"]}
        self.url = ""


class Handler(Answering):
    told: Told

    def do_GET(self):
        self.told.asked.append(f"GET {self.path}")
        clusters = self.told.clusters
        self.json(clusters.pop(0) if len(clusters) > 1 else clusters[0])

    def do_POST(self):
        self.told.asked.append(f"POST {self.path}")
        self.json(self.told.healed, 202)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    made = Told()
    monkeypatch.setattr(heal, "POLL_S", 0.01)
    monkeypatch.setattr(watching, "LINE_S", 0.0)
    with standing_in(Handler, monkeypatch, told=made) as made.url:
        yield made


# ---- status


def status_of(told: Told, capsys: pytest.CaptureFixture[str], document: dict[str, Any]) -> tuple[int, dict[str, str]]:
    told.clusters = [document]
    status = run(["cluster", "status"])
    pairs = [line.split(": ", 1) for line in capsys.readouterr().out.splitlines()]
    assert all(len(pair) == 2 for pair in pairs)
    return status, {name: text for name, text in reversed(pairs)}


def test_the_status_of_a_healed_cluster(told, capsys):
    status, screen = status_of(told, capsys, cluster())
    assert status == 0
    assert screen == {
        "cluster": "test, 3 copies of each slot, epoch 2",
        "nodes": "3 of 3 reachable",
        "registry": "ok",
        "slots": "4: 4 whole",
        "healed": "yes: all copies agree and hold every byte",
        "below target": "0 of 1,200 objects",
        "to fetch": "0 B in 0 versions",
        "undecided": "0",
        "damaged": "0 copies of versions; 0 versions lost",
        "compared": "2 min ago (the copy for which it is longest)",
        "scrubbed": "not every copy yet",
        "what to do": "nothing",
    }


def test_the_status_of_a_cluster_that_heals(told, capsys):
    document = cluster(
        row(0), row(1, "in-step"), objects_below_target=33, bytes_below_target=2**20, versions_waiting=30,
        rate_bytes_per_s=2**10, seconds_left=1024.0,
    )  # fmt: skip
    status, screen = status_of(told, capsys, document)
    assert status == 0, "it mends itself"
    assert screen["slots"] == "4: 2 whole, 1 in-step, 1 healing"
    assert screen["healed"] == "no: healing"
    assert screen["below target"] == "33 of 1,200 objects"
    assert screen["to fetch"] == "1.0 MiB in 30 versions, 1.0 KiB/s, about 17 min left"
    assert "cluster heal --wait" in screen["what to do"]
    status, screen = status_of(told, capsys, cluster(row(1, "in-step"), rate_bytes_per_s=2**10))
    assert (status, screen["what to do"], screen["to fetch"]) == (0, "nothing", "0 B in 0 versions")
    assert "being written" in screen["healed"]
    _, screen = status_of(told, capsys, cluster(row(1, "degraded"), silent_nodes=["node-3"]))
    assert screen["to fetch"] == "0 B in 0 versions; what node-3 lacks is not known"


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (cluster(row(0, "degraded"), silent_nodes=["node-3"]), "start node-3 again"),
        (cluster(row(0, "unavailable"), silent_nodes=["node-2", "node-3"]), "1 slots refuse reads and writes"),
        (cluster(row(0, "unavailable")), "most of their copies are not synced"),
        (cluster(row(0, "healing"), full_nodes=["node-3"]), "make room on the disk of node-3"),
        (cluster(row(0, "degraded")), "does not hold its copies yet"),
        (cluster(row(0, "corrupt")), "rotted"),
        (cluster(row(0, "unrecoverable"), unrecoverable=1), "1 version can be had"),
        (cluster(row(0, "unrecoverable"), unrecoverable=3), "3 versions can be had whole from no replica"),
        ({**cluster(), "heal": {"state": "unknown", "healed": False, "slots": {}}}, "has no routes yet"),
        ({name: part for name, part in cluster().items() if name != "heal"}, "tells nothing of the copies"),
        ({**cluster(), "heal": {"bytes_waiting": 0}}, "tells nothing of the copies"),
    ],
)
def test_the_status_says_what_to_do_and_fails(told, capsys, document, says):
    status, screen = status_of(told, capsys, document)
    assert status == 1
    assert says in screen["what to do"]


def test_a_node_of_which_somebody_else_knows_that_it_is_down(told, capsys):
    document = cluster()
    document["nodes"][1]["reachable"] = False
    status, screen = status_of(told, capsys, document)
    assert (status, screen["nodes"]) == (1, "2 of 3 reachable; down: node-2")
    document = {**cluster(), "registry": {"ok": False, "error": "gone"}}
    status, screen = status_of(told, capsys, document)
    assert (status, screen["registry"]) == (0, "cannot be reached: gone")
    assert "registry" in screen["what to do"]


def test_a_registry_that_is_refused_fails_the_status(told, capsys):
    document = {**cluster(), "registry": {"ok": False, "refused": True, "error": "older than it was"}}
    status, screen = status_of(told, capsys, document)
    assert (status, screen["registry"]) == (1, "refused: older than it was")
    assert "bring the right registry back" in screen["what to do"]


def test_a_node_that_was_removed_is_not_to_be_started_again(told, capsys):
    document = cluster()
    document["nodes"].append({"node": "node-4", "reachable": False, "wanted": "removed", "slots": 0})
    status, screen = status_of(told, capsys, document)
    assert (status, screen["nodes"], screen["what to do"]) == (0, "3 of 3 reachable", "nothing")
    document["nodes"][-1]["slots"] = 2  # its copies are on their way still
    status, screen = status_of(told, capsys, document)
    assert (status, screen["nodes"]) == (1, "3 of 4 reachable; down: node-4")


def test_the_status_for_machines(told, capsys):
    assert run(["cluster", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == cluster()
    assert told.asked == ["GET /cluster"]


# ---- slots


def test_slots(told, capsys):
    damaged = row(2, "corrupt", damaged=1, wanted=2, wanted_bytes=2048)
    told.clusters = [cluster(row(0, "whole"), row(1, "in-step"), damaged)]
    assert run(["cluster", "slots"]) == 0
    assert told.asked == ["GET /cluster?slots=1"]
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == [
        "slot",
        "state",
        "copies",
        "behind",
        "undecided",
        "damaged",
        "wanted",
        "bytes",
        "objects",
        "not well, or new",
    ]
    assert lines[3] == ["2", "corrupt", "3/3", "0", "0", "1", "2", "2.0 KiB", "7", "node-3: wanting"]
    assert lines[1][-1] == lines[2][-1] == ""
    for options, shown in ([[], "012"], [["--unhealed"], "12"], [["--state", "whole", "--state", "corrupt"], "02"]):
        assert run(["cluster", "slots", "--json", *options]) == 0
        document = json.loads(capsys.readouterr().out)
        assert "".join(str(one["slot"]) for one in document["by_slot"]) == shown
        assert document["by_state"]["corrupt"] == 1 and document["total"] == 4
    assert run(["cluster", "slots", "--state", "ill"]) == 2
    assert "ill" in capsys.readouterr().err


# ---- heal


def test_heal_asks_and_leaves(told, capsys):
    assert run(["cluster", "heal"]) == 0
    assert told.asked == ["POST /cluster/heal"]
    captured = capsys.readouterr()
    assert captured.out == "comparing now: node-1, node-2\n"
    assert captured.err == "could not be asked: node-3\n"
    assert run(["cluster", "heal", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told.healed


def test_heal_waits_until_it_is_healed_and_says_lines_in_a_pipe(told, capsys):
    told.clusters = [
        cluster(row(0), row(1), bytes_waiting=4096),
        cluster(row(0), bytes_waiting=1024, rate_bytes_per_s=3072, seconds_left=0.3),
        cluster(),
    ]
    assert run(["cluster", "heal", "--wait"]) == 0
    since = SINCE.replace(":", "%3A")
    assert told.asked == ["POST /cluster/heal"] + 3 * [f"GET /cluster?slots=unhealed&since={since}"]
    captured = capsys.readouterr()
    assert captured.out == "healed: all 4 slots\n"
    assert captured.err.splitlines() == [
        "2 of 4 slots healed, 4.0 KiB left",
        "3 of 4 slots healed, 1.0 KiB left, 3.0 KiB/s, about 0 s",
    ]


def test_heal_ends_when_what_differs_is_being_written(told, capsys, monkeypatch):
    monkeypatch.setattr(healing, "LAG_S", 0.0)
    told.clusters = [cluster(row(0, "in-step")), cluster(row(0, "in-step", copies=[{"node": "node-1", "root": "ac"}]))]
    assert run(["cluster", "heal", "--wait"]) == 0
    assert capsys.readouterr().out == "healed: all 4 slots; 1 of them are being written, and lack nothing\n"


def test_heal_gives_up_after_its_timeout(told, capsys):
    told.clusters = [cluster(row(0), bytes_waiting=4096)]
    assert run(["cluster", "heal", "--wait", "--timeout", "0.1"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "not healed within 0.1 s: 3 of 4 slots healed, 4.0 KiB left" in captured.err
    assert run(["cluster", "heal", "--wait", "--timeout", "0", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out) == told.clusters[0]["heal"]
    assert len(captured.err.splitlines()) == 2, "no lines of progress beside JSON"
    assert run(["cluster", "heal", "--timeout", "5"]) == 2


def test_heal_names_the_node_that_stays_away(told, capsys, monkeypatch):
    monkeypatch.setattr(healing, "PATIENCE_S", 0.05)
    told.clusters = [cluster(row(0, "degraded"), silent_nodes=["node-3"])]
    assert run(["cluster", "heal", "--wait"]) == 1
    captured = capsys.readouterr()
    assert "node-3 did not answer" in captured.err and "Start node-3 again" in captured.err


def test_heal_asks_again_when_nothing_moves(told, monkeypatch):
    monkeypatch.setattr(healing, "REPEAT_S", 0.0)
    told.clusters = [cluster(row(0)), cluster(row(0)), cluster()]
    assert run(["cluster", "heal", "--wait"]) == 0
    assert [ask.split()[0] for ask in told.asked].count("POST") >= 2


def test_a_bar_on_a_terminal_and_no_lines(told):
    told.clusters = [cluster(row(0), bytes_waiting=4096), cluster(row(0), bytes_waiting=1024), cluster()]
    program = "from amberblob.cli import heal, main; heal.POLL_S = 2.0; main()"
    done, shown = run_on_terminal(["-c", program, "cluster", "heal", "--wait"], columns=120)
    assert (done.returncode, done.stdout) == (0, b"healed: all 4 slots\n")
    assert "━".encode() in shown and b"75%" in shown and b"1.0 KiB left" in shown
