"""`amberblob archive`: what it asks for, what it shows, and when following a job ends."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amberblob.cli.app import run
from amberblob.cli.archivejob import PATIENCE_S, Ended, JobWatch, UnderWay, Waits
from amberblob.cli.archiveview import (
    job_rows,
    node_rows,
    plan_rows,
    plan_summary,
    problems_of,
    stopped_text,
    summary_lines,
)
from amberblob.cli.devarchive import archive_keys, with_archive
from amberblob.cli.output import CommandFailed
from archive.targets.folder import MARKER
from tests.unit.amberblob.cli.kit import Answering, run_on_terminal, standing_in

MIB = 2**20
JOB = "01KAJ5XQ4T7S9C0M2B8D3E6F1G"


def job(state: str = "running", slots: tuple[int, int] = (0, 0), size: tuple[int, int] = (0, 0), **more: Any) -> Any:
    return {
        "job": JOB, "kind": "run", "prefix": "", "dry_run": False, "state": state, "asked_at_ms": 1, "ended_ms": 0,
        "slots_done": slots[0], "slots_total": slots[1], "bytes_done": size[0], "bytes_total": size[1],
        "counts": {}, "failures": 0, "problems": [], "detail": "", "nodes": [], "silent_nodes": [], **more,
    }  # fmt: skip


# -- following


def test_a_job_that_is_done_is_summed_up():
    counts = {
        "bytes_sent": 2 * MIB,
        "versions": 1234,
        "bytes_archived": 3 * MIB,
        "evicted_bytes": 0,
        "exported_slots": 8,
    }
    end = JobWatch().look(job("done", (64, 64), (3 * MIB, 3 * MIB), counts=counts), 0.0)
    assert isinstance(end, Ended) and end.well
    assert end.text == "run done, 1,234 versions, 3.0 MiB archived, 2.0 MiB sent"
    gc = JobWatch().look(
        job("done", kind="gc", dry_run=True, counts={"listed": 7, "listed_bytes": MIB, "dead": 0}), 0.0
    )
    assert isinstance(gc, Ended) and gc.text == "gc looked, 7 listed, 1.0 MiB listed"
    recover = JobWatch().look(job("done", kind="recover", counts={"versions": 3, "version_bytes": MIB}), 0.0)
    assert isinstance(recover, Ended) and recover.text == "recover done, 3 versions, 1.0 MiB in versions"


def test_a_dry_run_of_restore_tells_how_much_would_come_back():
    end = JobWatch().look(job("done", (0, 64), (0, 3 * MIB), kind="restore", dry_run=True, counts={"versions": 7}), 0.0)
    assert isinstance(end, Ended) and end.text == "restore looked, 7 versions, 3.0 MiB would be brought back"


def test_one_with_problems_is_done_but_not_well():
    end = JobWatch().look(job("done", failures=3, problems=["n1: no room"]), 0.0)
    assert isinstance(end, Ended) and not end.well
    assert end.text == "run done, 3 problems" and end.problems == ("n1: no room",)


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_one_that_did_not_come_to_its_end_says_why(state):
    end = JobWatch().look(job(state, detail="n2: wrong key"), 0.0)
    assert isinstance(end, Ended) and not end.well
    assert end.text == f"run {state}, n2: wrong key"


def test_speed_is_that_of_the_last_seconds_and_the_time_left_goes_by_slots():
    watch = JobWatch()
    texts = []
    for second in range(40):
        view = job(slots=(second, 100), size=(second * (10 if second < 20 else 1) * MIB, 4000 * MIB))
        if second >= 20:
            view["bytes_done"] = (200 + second - 20) * MIB
        seen = watch.look(view, float(second))
        assert isinstance(seen, UnderWay)
        texts.append(seen.text)
    assert texts[0] == "0 of 100 slots, 0 B of 3.9 GiB"
    assert "10.0 MiB/s" in texts[15] and "about 85 s left" in texts[15]
    assert "1.0 MiB/s" in texts[35] and "about 65 s left" in texts[35]


def test_of_one_that_stands_still_no_time_is_told_and_nothing_is_news():
    watch = JobWatch()
    for second in range(10):
        seen = watch.look(job(slots=(second, 100)), float(second))
    assert isinstance(seen, UnderWay) and "left" in seen.text
    waiting = job(slots=(9, 100), detail="n1: waiting for the archive")
    later = [watch.look(waiting, 10.0 + second) for second in range(40)]
    assert "left" not in later[-1].text and "waiting for the archive" in later[-1].text
    assert len({seen.news for seen in later}) == 1


def test_each_node_has_a_part():
    parts = [{"node": "n1", "state": "done", "slots_done": 9, "slots_total": 9}, {"node": "n2", "failures": 2}]
    seen = JobWatch().look(job(slots=(9, 12), nodes=parts, silent_nodes=["n3"]), 0.0)
    assert isinstance(seen, UnderWay)
    assert [(part.node, part.text) for part in seen.parts] == [("n1", "9 of 9 slots"), ("n2", "2 problems")]
    assert "no answer from n3" in seen.text


def test_slots_that_nobody_works_on_are_waited_for_in_vain_only_after_a_while():
    watch = JobWatch()
    view = job("waiting", (60, 64), unfinished_slots=[1, 2, 3, 4], silent_nodes=["n3"])
    assert isinstance(watch.look(view, 0.0), UnderWay)
    assert isinstance(watch.look({**view, "slots_done": 61}, PATIENCE_S - 1), UnderWay)
    assert isinstance(watch.look({**view, "slots_done": 61}, PATIENCE_S + 5), UnderWay), "it got further meanwhile"
    end = watch.look({**view, "slots_done": 61}, 2 * PATIENCE_S)
    assert isinstance(end, Waits)
    assert "4 slots are left, n3 did not answer" in end.why and "Start n3" in end.hint


def test_a_slow_archive_is_no_reason_to_leave():
    watch = JobWatch()
    watch.look(job(slots=(1, 4)), 0.0)
    assert isinstance(watch.look(job(slots=(1, 4)), 100 * PATIENCE_S), UnderWay)


def test_done_without_the_answer_of_a_node_that_began_is_not_done():
    watch = JobWatch(frozenset({"n1", "n2"}))
    view = job("done", silent_nodes=["n2"])
    assert isinstance(watch.look(view, 0.0), UnderWay)
    assert isinstance(watch.look(view, PATIENCE_S), Waits)
    assert isinstance(watch.look({**view, "silent_nodes": []}, PATIENCE_S + 1), Ended)
    by_slots = job("done", (64, 64), silent_nodes=["n2"])
    assert isinstance(JobWatch(frozenset({"n2"})).look(by_slots, 0.0), Ended), "every slot was done by somebody"


# -- status


def node(name: str, **more: Any) -> dict[str, Any]:
    return {
        "node": name,
        "target": "s3://b/p",
        "reached": True,
        "slots": 64,
        "cache": {},
        "traffic": {},
        "jobs": [],
        **more,
    }


def view(*nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    total = {"archived_rows": 2000, "archived_bytes": 3 * MIB, "evicted": 7, "evicted_bytes": 2**30}
    return {"target": "s3://b/p", "nodes": list(nodes), "silent_nodes": [], "total": total, **more}


def test_all_is_well():
    told = view(node("n1"), node("n2"))
    assert summary_lines(told) == [
        "archive: s3://b/p (reached)",
        "archived: 2,000 chunks in 3.0 MiB; evicted: 7 copies of versions, 1.0 GiB given back on the disks",
    ]
    assert problems_of(told, [job("done")]) == []


def test_why_it_is_not_reached_is_said_once_and_what_helps():
    away = {"reached": False, "code": "archive-denied", "why": "InvalidAccessKeyId: no such key", "since_ms": 1}
    problems = problems_of(view(node("n1", **away), node("n2", **away), node("n3")), [])
    assert [problem.what for problem in problems] == ["n1, n2: archive-denied: InvalidAccessKeyId: no such key"]
    assert "credentials" in problems[0].mend
    assert "(not reached by n1, n2)" in summary_lines(view(node("n1", **away), node("n2", **away), node("n3")))[0]
    unavailable = problems_of(view(node("n1", **{**away, "code": "archive-unavailable"})), [])
    assert "503" in unavailable[0].mend


def test_nodes_that_do_not_agree_and_nodes_that_are_silent_are_named():
    told = view(node("n1"), node("n2", target="", reached=None), silent_nodes=["n3"])
    problems = problems_of(told, [])
    assert "n2: none" in problems[0].what and "n1: s3://b/p" in problems[0].what
    assert problems[1].what == "n3 did not answer"
    assert [row[:2] for row in node_rows(told)] == [["n1", "reached"], ["n2", "none"], ["n3", "no answer"]]


def test_only_the_newest_job_of_a_kind_is_a_problem():
    old, new = job("failed", detail="n1: denied"), job("done")
    assert problems_of(view(node("n1")), [new, old]) == []
    assert "failed: n1: denied" in problems_of(view(node("n1")), [old, new])[0].what
    assert "3 problems" in problems_of(view(node("n1")), [job("done", failures=3)])[0].what


def test_scheduled_jobs_are_those_of_one_node_each():
    told = view(node("n1"), node("n2"))
    assert len(problems_of(told, [by("n1", "done"), by("n2", "failed"), by("n1", "failed")])) == 1
    assert problems_of(told, [job("done"), by("n2", "failed")]) == [], "somebody has had it done for all nodes since"
    assert job_rows([by("n1", "done")])[0][1] == "run (scheduled, n1)"


def by(name: str, state: str, **more: Any) -> Any:
    """A job that a node began by itself."""
    return job(state, nodes=[{"node": name, "state": state, "request": {"options": {"scheduled": "1"}}}], **more)


def asked(state: str, parts: dict[str, str] | None = None, **more: Any) -> Any:
    """A job that somebody asked for, and what became of it on each node."""
    options = more.pop("options", {})
    nodes = [{"node": name, "state": part, "request": {"options": options}} for name, part in (parts or {}).items()]
    return job(state, nodes=nodes, **more)


FAILED = asked("failed", {"n1": "done", "n2": "failed", "n3": "failed"})


@pytest.mark.parametrize(
    ("later", "told"),
    [
        ([by("n3", "done"), by("n2", "done")], 0),  # newest first: each did what was left undone there
        ([by("n2", "done"), by("n1", "done")], 1),
        ([by("n3", "failed"), by("n2", "done")], 1),  # the later one alone is told
        ([asked("stopped")], 1),
        ([job("done", dry_run=True)], 1),
        ([job("done", kind="gc")], 1),
        ([asked("running")], 0),
        ([job("done", prefix="logs/")], 1),
    ],
)
def test_a_failed_job_is_a_problem_until_later_ones_have_done_what_it_was_to_do(later, told):
    assert len(problems_of(view(node("n1")), [*later, FAILED])) == told


@pytest.mark.parametrize(
    ("first", "later", "told"),
    [
        ({"prefix": "logs/2025/"}, {"prefix": "logs/"}, 0),
        ({"prefix": "logs/"}, {"prefix": "logs/2025/"}, 1),
        ({"kind": "import", "source": "s3://b/x"}, {"kind": "import", "source": "s3://c"}, 1),
        ({"kind": "import", "source": "s3://b/x"}, {"kind": "import", "source": "s3://b"}, 0),
        ({"kind": "import", "source": "s3://b", "options": {"to": "x/"}}, {"kind": "import", "source": "s3://b"}, 1),
        ({"kind": "recover", "options": {"cluster": "typo"}}, {"kind": "recover", "options": {"cluster": "c"}}, 0),
    ],
)
def test_only_one_for_all_that_it_was_for_makes_up_for_it(first, later, told):
    jobs = [asked("done", {"n1": "done"}, **later), asked("failed", {"n1": "failed"}, **first)]
    assert len(problems_of(view(node("n1")), jobs)) == told


def test_what_an_operator_has_taken_note_of_is_no_problem_any_more():
    (problem,) = problems_of(view(node("n1")), [FAILED])
    assert f"amberblob archive stop {JOB}" in problem.mend
    assert problems_of(view(node("n1")), [asked("stopped", {"n1": "stopped"}, failures=2)]) == []


def test_stopping_says_what_became_of_it():
    done = job("done", (64, 64), silent_nodes=["n3"], nodes=[{"node": "n1", "state": "done", "all_done": True}])
    (line,) = stopped_text(JOB, done)
    assert line.startswith(f"run done: {JOB}.") and "nothing left to stop" in line
    lines = stopped_text(JOB, job("stopped", silent_nodes=["n3"]))
    assert lines[0] == f"run stopped: {JOB}" and lines[1].startswith("no answer from n3: stop it again")


def test_the_plan_is_a_line_per_rule():
    rules = [
        {"prefix": "logs/", "action": "archive-and-evict", "versions": 30, "bytes": 9 * MIB, "send_versions": 10, "send_bytes": 3 * MIB,
         "free_bytes": 9 * MIB, "room_bytes": 2 * MIB, "left": {"young": 4, "done": 5}},
        {"prefix": "", "action": ""},
    ]  # fmt: skip
    rows = plan_rows(rules)
    assert rows[0] == [
        "logs/",
        "archive-and-evict",
        "30",
        "9.0 MiB",
        "3.0 MiB",
        "0 B",
        "9.0 MiB",
        "2.0 MiB",
        "4 too young",
    ]
    assert rows[1][:2] == ["(others)", "none"]
    assert (
        plan_summary(rules)
        == "10 versions, 3.0 MiB before compression, would be sent; 2.0 MiB would be freed on the disks"
    )
    assert plan_summary([]) == "nothing would move"


# -- the commands, against a server


class Server:
    """Answers with what is set, and keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.jobs: list[Any] = [job("done", size=(MIB, MIB))]
        """What the job is at each look; the last for ever."""
        self.view: Any = view(node("n1"))
        self.started = {"job": JOB, "nodes": ["n1"], "silent_nodes": [], "refused": {}}
        self.url = ""


class Handler(Answering):
    server_: Server

    def handle_any(self):
        server, length = self.server_, int(self.headers.get("Content-Length", 0))
        server.asked.append((self.command, self.path, json.loads(self.rfile.read(length)) if length else None))
        status, answer = 200, server.view
        if self.command == "POST":
            status, answer = 202, server.started
        elif self.path == "/archive/jobs":
            answer = {"jobs": server.jobs[-1:], "silent_nodes": []}
        elif self.path == f"/archive/jobs/{JOB}":
            answer = server.jobs.pop(0) if len(server.jobs) > 1 else server.jobs[0]
        elif self.path != "/archive":
            status, answer = 404, {"type": "no-such-job", "title": "No such job", "status": 404, "detail": "None."}
        self.json(answer, status)

    do_GET = do_POST = do_DELETE = handle_any


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    kept = Server()
    with standing_in(Handler, monkeypatch, server_=kept) as kept.url:
        yield kept


PLAIN = {
    "kind": "run", "prefix": "", "dry_run": False, "bytes_per_s": 0, "requests_per_s": 0.0, "source": "", "options": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["run"], {}),
        (["run", "--prefix", "a/", "--rate", "10MiB", "--requests", "2.5"], {"prefix": "a/", "bytes_per_s": 10 * MIB, "requests_per_s": 2.5}),
        (["verify"], {"kind": "verify"}),
        (["verify", "--newer-than", "7d"], {"kind": "verify", "options": {"newer_than": "7d"}}),
        (["restore", "--prefix", "a/", "--dry-run"], {"kind": "restore", "prefix": "a/", "dry_run": True}),
        (["gc", "--dry-run"], {"kind": "gc", "dry_run": True}),
        (["export"], {"kind": "export"}),
        (["export", "--claim"], {"kind": "export", "options": {"claim": "yes"}}),
        (["recover"], {"kind": "recover"}),
        (["recover", "--from", "s3://old/x"], {"kind": "recover", "source": "s3://old/x"}),
        (["recover", "--from", "01KAJ"], {"kind": "recover", "options": {"cluster": "01KAJ"}}),
        (["import", "s3://p/2024/", "--to", "old/"], {"kind": "import", "source": "s3://p/2024/", "options": {"to": "old/", "strip": "yes"}}),
        (["import", "s3://p", "--whole-keys", "--changed"], {"kind": "import", "source": "s3://p", "options": {"changed": "version"}}),
    ],
)  # fmt: skip
def test_what_is_asked_for(server, arguments, wanted):
    assert run(["archive", *arguments]) == 0
    assert len(server.asked[0][2].pop("job")) == 26
    assert server.asked[0] == ("POST", "/archive/jobs", {**PLAIN, **wanted})
    assert server.asked[1] == ("GET", f"/archive/jobs/{JOB}", None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--rate", "fast"],
        ["run", "--rate", "0"],
        ["run", "--requests", "0"],
        ["verify", "--newer-than", "soon"],
        ["run", "--dry-run", "--detach"],
        ["import", "https://example.org/bucket"],
        ["import"],
        ["follow"],
    ],
)
def test_wrong_usage_asks_for_nothing(server, arguments):
    assert run(["archive", *arguments]) == 2
    assert server.asked == []


def test_in_a_pipe_there_are_lines_and_a_summary(server, capsys):
    server.jobs = [job(slots=(1, 64)), job(slots=(2, 64)), job("done", (64, 64), (MIB, MIB), counts={"versions": 3})]
    assert run(["archive", "run"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "run done, 3 versions\n"
    assert captured.err == "run: 1 of 64 slots\n"


def test_detached_it_says_how_to_go_on(server, capsys):
    assert run(["archive", "run", "--detach"]) == 0
    out = capsys.readouterr().out
    assert f"amberblob archive follow {JOB}" in out and f"amberblob archive stop {JOB}" in out
    assert len(server.asked) == 1


def test_machines_get_one_document(server, capsys):
    assert run(["archive", "run", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == job("done", size=(MIB, MIB)) and captured.err == ""
    assert run(["archive", "run", "--detach", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == server.started
    server.jobs = [job("failed")]
    assert run(["archive", "run", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["state"] == "failed"


def test_problems_are_told_and_the_status_is_1(server, capsys):
    server.jobs = [job("done", failures=25, problems=[f"n1: object {number}" for number in range(20)])]
    assert run(["archive", "run"]) == 1
    errors = capsys.readouterr().err
    assert "problem: n1: object 0\n" in errors and "and 5 more" in errors
    assert "amberblob: run done, 25 problems" in errors


def test_an_import_that_failed_does_not_blame_the_archive_alone(server, capsys):
    server.jobs = [
        job("failed", kind="import", detail="n1: The source s3://photoz cannot be listed", source="s3://photoz")
    ]
    assert run(["archive", "import", "s3://photoz"]) == 1
    errors = capsys.readouterr().err
    assert "s3://photoz cannot be listed" in errors and "check SOURCE_URL" in errors
    (problem,) = problems_of(view(node("n1")), server.jobs)
    assert "amberblob archive import s3://photoz." in problem.mend


@pytest.mark.parametrize(
    "arguments",
    [
        ["import", "s3://p/2024/", "--to", "old photos/", "--changed"],
        ["import", "s3://p", "--whole-keys"],
        ["restore", "--prefix", "p/"],
        ["verify", "--prefix", "p/", "--newer-than", "30d"],
        ["recover", "--from", "01ARZ3NDEKTSV4RRFFQ69G5FAV"],
        ["export", "--claim"],
        ["gc"],
    ],
)
def test_how_a_failed_one_is_started_again_is_how_it_was_started(server, capsys, arguments):
    """Without --to an import would make other paths, and without --prefix a restore would bring back everything."""
    server.jobs = [job("failed")]
    assert run(["archive", *arguments]) == 1
    asked = server.asked[0][2]
    failed = job("failed", **{**asked, "job": JOB}, nodes=[{"node": "n1", "state": "failed", "request": asked}])
    (problem,) = problems_of(view(node("n1")), [failed])
    command = problem.mend.removeprefix("Mend that, then start it again: ").split(". If")[0]
    server.asked.clear()
    assert run(shlex.split(command)[1:]) == 1
    again = server.asked[0][2]
    assert {**again, "job": ""} == {**asked, "job": ""}


def test_what_rules_will_make_of_it_is_said_before(server, capsys):
    server.started = {**server.started, "warnings": ["the rule for 'p/' will undo it"]}
    assert run(["archive", "restore", "--prefix", "p/", "--detach"]) == 0
    assert "warning: the rule for 'p/' will undo it\n" in capsys.readouterr().err
    server.jobs = [job("done", kind="restore", warnings=["the rule for 'p/' will undo it"])]
    assert run(["archive", "follow", JOB]) == 0
    assert capsys.readouterr().err == "warning: the rule for 'p/' will undo it\n"


def test_who_does_not_take_part_is_said(server, capsys):
    server.started = {**server.started, "silent_nodes": ["n2"], "refused": {"n3": "no archive is configured"}}
    assert run(["archive", "run"]) == 0
    errors = capsys.readouterr().err
    assert "n2 did not answer" in errors and "n3 does not take part: no archive is configured" in errors


def test_a_dry_run_is_a_table(server, capsys):
    savings = [
        {"prefix": "logs/", "action": "archive", "versions": 3, "bytes": MIB, "send_versions": 3, "send_bytes": MIB}
    ]
    server.jobs = [job("done", dry_run=True, savings=savings)]
    assert run(["archive", "run", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t")[:2] == ["prefix", "rule"]
    assert lines[1].split("\t")[:5] == ["logs/", "archive", "3", "1.0 MiB", "1.0 MiB"]
    assert lines[2].startswith("3 versions, 1.0 MiB")


def test_status_shows_all_and_fails_where_something_is_wrong(server, capsys):
    assert run(["archive", "status"]) == 0
    out = capsys.readouterr().out
    assert "archive: s3://b/p (reached)" in out and f"\n{JOB}\trun\tdone" in out
    server.view = view(node("n1", reached=False, code="archive-unavailable", why="refused\x1b[2J"))
    assert run(["archive", "status"]) == 1
    out = capsys.readouterr().out
    assert "problem: n1: archive-unavailable: refused\\x1b[2J" in out, "what an S3 says goes to no terminal as it is"
    assert run(["archive", "status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["what"].startswith("n1: archive-unavailable")


def test_stop_and_follow(server, capsys):
    server.jobs = [job("stopped", detail="n1: stopped by the operator")]
    assert run(["archive", "stop", JOB]) == 0
    assert server.asked[-1][:2] == ("DELETE", f"/archive/jobs/{JOB}")
    assert capsys.readouterr().out == f"run stopped: {JOB}\n"
    assert run(["archive", "follow", JOB]) == 1
    assert run(["archive", "stop", "nonsense/.."]) == 1
    assert server.asked[-1][1] == "/archive/jobs/nonsense%2F.."
    assert "None." in capsys.readouterr().err


def test_ctrl_c_leaves_the_job_running_and_says_so(server):
    server.jobs = [job(slots=(1, 64))]
    process = subprocess.Popen(
        [sys.executable, "-m", "amberblob", "archive", "run"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that puts the tests into the background has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "run: 1 of 64 slots\n"
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1 and out == ""
    assert "the job goes on" in errors and f"amberblob archive stop {JOB}" in errors
    assert all(method != "DELETE" for method, _, _ in server.asked)


def test_on_a_terminal_there_are_bars_for_the_job_and_each_node(server):
    parts = [
        {"node": "n1", "state": "done", "slots_done": 9, "slots_total": 9},
        {"node": "n2", "slots_done": 1, "slots_total": 9},
    ]
    server.jobs = [job(slots=(10, 18), nodes=[{**parts[1], "detail": "sends\x1b[2J"}])] * 3 + [
        job(slots=(10, 18), nodes=parts),
        job("done", (18, 18), counts={"versions": 3}),
    ]
    done, shown = run_on_terminal(["-m", "amberblob", "archive", "run"], columns=160)
    assert (done.returncode, done.stdout) == (0, b"run done, 3 versions\n")
    assert "━".encode() in shown and b"10 of 18 slots" in shown
    assert b"n2" in shown and b"1 of 9 slots, sends\\x1b[2J" in shown, "what a node says goes to no terminal as it is"


# -- dev


def test_dev_takes_a_bucket_or_a_folder(tmp_path: Path):
    assert archive_keys(None, None) == {}
    assert archive_keys("s3://b/p", "http://127.0.0.1:9000") == {
        "target": "s3://b/p",
        "endpoint": "http://127.0.0.1:9000",
    }
    cold = tmp_path / "cold here"
    assert archive_keys(str(cold), None) == {"target": cold.as_uri(), "endpoint": ""}
    assert (cold / MARKER).exists()
    assert archive_keys(cold.as_uri(), None)["target"] == cold.as_uri()
    for wrong in (
        ("s3://", None),
        ("https://x/y", None),
        ("file://relative", None),
        (str(cold), "http://x"),
        (None, "http://x"),
    ):
        with pytest.raises(CommandFailed):
            archive_keys(*wrong)


def test_dev_writes_a_rule_once_and_changes_no_archive():
    keys = {"target": "s3://b", "endpoint": "http://h:1"}
    made = with_archive({"node": {"id": "n1"}}, keys)
    assert made["archive"] == {**keys, "rules": [{"prefix": "", "action": "archive-and-evict"}]}
    edited = {**made, "archive": {**keys, "rules": [], "cache": "1MiB"}}
    assert with_archive(edited, keys) == edited, "what the user wrote stays"
    assert with_archive(edited, {}) == edited
    with pytest.raises(CommandFailed, match="s3://b"):
        with_archive(made, {"target": "s3://other", "endpoint": ""})


def test_the_file_that_dev_writes_is_valid(tmp_path: Path):
    from amberblob.cli.devlayout import open_layout
    from amberblob.config import load_config

    keys = archive_keys(str(tmp_path / "cold"), None)
    with open_layout(tmp_path / "data", nodes=1, port=17_700, registry=None, archive=keys) as layout:
        config = load_config(layout.nodes[0].config_file, {})
    assert config.archive.target == keys["target"]
    assert [rule.action for rule in config.archive.rules] == ["archive-and-evict"]
    with open_layout(tmp_path / "data", nodes=None, port=17_700, registry=None) as layout:
        kept = tomllib.loads(layout.nodes[0].config_file.read_text())
    assert kept["archive"]["target"] == keys["target"], "given once"


def test_a_mistyped_archive_does_not_stay_in_the_files(tmp_path: Path):
    from amberblob.cli.devlayout import open_layout
    from amberblob.errors import ConfigError

    def start(target: str) -> bytes:
        keys = archive_keys(target, "http://127.0.0.1:9000")
        with open_layout(tmp_path / "data", nodes=1, port=17_700, registry=None, archive=keys) as layout:
            return layout.nodes[0].config_file.read_bytes()

    for _ in range(2):  # in a new folder nothing is left; in one that has an archive, that one stays
        with pytest.raises(ConfigError, match="no name of a bucket"):
            start("s3://b/cold")
        assert b"s3://bbb/cold" in start("s3://bbb/cold")
        (tmp_path / "data/node-1/node.toml").write_text("")
