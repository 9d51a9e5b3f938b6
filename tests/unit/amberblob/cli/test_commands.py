"""The client commands against a small server of the public interface; the command line runs in this process."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from blake3 import blake3

from amberblob.cli.app import run
from tests.unit.amberblob.cli.kit import Answering, standing_in

EXPLAINED = {
    "path": "x",
    "slot": 7,
    "replicas": [
        {"node": "node-1", "state": "chosen", "wanted": [3, 4], "detail": ""},
        {"node": "node-2", "state": "unreachable"},
    ],
    "versions": [{"version": 1, "size": 3, "chunks": [{"id": "ab", "len": 3}], "copies": {"node-1": "all"}}],
    "healthy": False,
    "advice": "Start node-2 again.",
    "of_tomorrow": {"deep": [1, {"er": None}]},
}
CLUSTER = {
    "name": "test",
    "replicas": 3,
    "registry": {"ok": True, "error": None},
    "nodes": [{"node": "node-1", "reachable": True}, {"node": "node-2", "reachable": False}],
    "slots": {"total": 4, "degraded": 4, "unavailable": 0},
    "heal": {"state": "unrecoverable", "damaged": 3, "unrecoverable": 2},
    "self": {"node": "node-1", "disk": {"failed": None, "full": True, "lost_slots": []}},
}


class Store:
    """Objects by path: each a list of (data, headers)."""

    def __init__(self) -> None:
        self.objects: dict[str, list[tuple[bytes, dict[str, str]]]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.url = ""


class Handler(Answering):
    store: Store

    def problem(self, status, code, detail):
        self.json({"type": code, "title": "T", "status": status, "detail": detail, "request_id": "r-9"}, status)

    def handle_any(self):
        target = urlsplit(self.path)
        self.store.requests.append((self.command, self.path, dict(self.headers)))
        query = {name: values[0] for name, values in parse_qs(target.query, keep_blank_values=True).items()}
        if target.path == "/cluster":
            return self.json(CLUSTER)
        if target.path == "/readyz":
            return self.json({"status": "ready"})
        if target.path == "/objects":
            return self.listing(query)
        return self.object(unquote(target.path.removeprefix("/objects/")), query)

    do_GET = do_PUT = do_DELETE = do_POST = do_HEAD = handle_any

    def listing(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        objects, prefixes = [], []
        for path in sorted(self.store.objects):
            if not path.startswith(prefix):
                continue
            folded, found, _ = path[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                prefixes.append(prefix + folded + delimiter)
            else:
                objects.append(self.describe(path, len(self.store.objects[path])))
        self.json({"objects": objects, "prefixes": sorted(set(prefixes))})

    def describe(self, path, version):
        data, _ = self.store.objects[path][version - 1]
        etag = blake3(data).hexdigest()
        at = "2026-01-31T12:00:00.000Z"
        return {"path": path, "version": version, "blob_id": "B", "size": len(data), "etag": etag, "created_at": at}

    def object(self, path, query):
        history = self.store.objects.get(path)
        if self.command == "PUT":
            if "Transfer-Encoding" in self.headers:
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("If-None-Match") == "*" and history:
                return self.problem(412, "precondition-failed", "It exists.")
            kept = {n: v for n, v in self.headers.items() if n.lower().startswith(("x-amber-meta-", "content-type"))}
            self.store.objects.setdefault(path, []).append((data, kept))
            return self.json(self.describe(path, len(self.store.objects[path])), 201)
        if not history:
            return self.problem(404, "no-such-object", "There is no such object.")
        if "explain" in query:
            return self.json(EXPLAINED)
        if "versions" in query:
            return self.json({"path": path, "versions": [self.describe(path, n) for n in range(len(history), 0, -1)]})
        if self.command == "DELETE":
            del self.store.objects[path]
            return self.answer(204)
        if self.command == "POST":
            return self.json(self.describe(path, len(history)))
        info = self.describe(path, int(query.get("version", len(history))))
        data, kept = history[info["version"] - 1]
        headers = {"ETag": f'"{info["etag"]}"', "X-Amber-Version": str(info["version"]), **kept}
        status, span = 200, self.headers.get("Range")
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, end = (
                (int(first), int(last) + 1 if last else len(data)) if first else (len(data) - int(last), len(data))
            )
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            status, data = 206, data[start:end]
        if self.command == "HEAD":
            return self.answer(status, b"", headers, length=len(data))
        self.answer(status, data, headers)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    kept = Store()
    with standing_in(Handler, monkeypatch, store=kept) as kept.url:
        yield kept


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_put_and_get_a_file(store, here, capsys):
    (here / "a.txt").write_bytes(b"hello")
    assert run(["put", "a.txt", "docs/a.txt", "--meta", "owner=me", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["path"], info["version"], info["size"], info["content_type"]) == ("docs/a.txt", 1, 5, "text/plain")
    assert run(["get", "docs/a.txt", "b.txt"]) == 0
    assert (here / "b.txt").read_bytes() == b"hello"
    assert run(["put", "a.txt", "folder/"]) == 0
    assert "folder/a.txt" in store.objects
    (here / "into").mkdir()
    assert run(["get", "docs/a.txt", "into"]) == 0
    assert (here / "into" / "a.txt").read_bytes() == b"hello"
    assert sorted(os.listdir(here)) == ["a.txt", "b.txt", "into"], "no drafts are left"


def test_stdin_and_stdout(store, here, capsysbinary, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from a pipe")))
    assert run(["put", "-", "x"]) == 0
    capsysbinary.readouterr()
    assert run(["get", "x", "-"]) == 0
    assert run(["get", "x", "-", "--range", "0:4"]) == 0
    assert run(["get", "x", "-", "--range", "-4:"]) == 0
    captured = capsysbinary.readouterr()
    assert captured.out == b"from a pipe" + b"from" + b"pipe"
    assert captured.err == b"", "no progress bar in a pipe"


def test_ctrl_c_ends_an_upload_from_a_silent_pipe(store):
    reading, writing = os.pipe()
    command = [sys.executable, "-c", "import sys; print('up', flush=True); from amberblob.cli import main; main()"]
    upload = subprocess.Popen(
        [*command, "put", "-", "x"],
        stdin=reading,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that puts the tests into the background has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert upload.stdout is not None and upload.stderr is not None
        upload.stdout.readline()
        deadline = time.monotonic() + 30
        # Until the thread that reads stdin is there.
        while len(os.listdir(f"/proc/{upload.pid}/task")) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        upload.send_signal(signal.SIGINT)
        _, errors = upload.communicate(timeout=60)
        assert upload.returncode == 1
        assert errors == b"amberblob: stopped before it was done\n"
    finally:
        upload.kill()
        upload.wait()
        os.close(reading)
        os.close(writing)


def test_a_failed_download_leaves_the_old_file(store, here):
    (here / "x").write_bytes(b"old")
    assert run(["get", "nothing", "x"]) == 1
    assert (here / "x").read_bytes() == b"old"
    assert os.listdir(here) == ["x"]


def test_folders(store, here, capsys):
    for name in ("a", "sub/b", "sub/deep/c"):
        (here / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "tree" / name).write_text(name)
    assert run(["put", "--recursive", "tree", "up"]) == 0
    assert sorted(store.objects) == ["up/a", "up/sub/b", "up/sub/deep/c"]
    assert run(["get", "-r", "up", "down"]) == 0
    assert (here / "down" / "sub" / "deep" / "c").read_text() == "sub/deep/c"
    capsys.readouterr()
    assert run(["rm", "-r", "up/sub", "--yes", "--json"]) == 0
    removed = json.loads(capsys.readouterr().out)["objects"]  # as they were done: several at once
    assert sorted(entry["path"] for entry in removed) == ["up/sub/b", "up/sub/deep/c"]
    assert sorted(store.objects) == ["up/a"]


def test_names_cannot_lead_out_of_the_folder(store, here, capsys):
    for name in ("up//etc/evil", "up/ok"):
        store.objects[name] = [(b"x", {"Content-Type": "a/b"})]
    assert run(["get", "-r", "up", "down"]) == 1
    assert (here / "down" / "ok").exists()
    assert sorted(path.name for path in here.rglob("*")) == ["down", "ok"]
    assert "up//etc/evil" in capsys.readouterr().err


def test_ls(store, capsys):
    for name in ("a", "d/1", "d/2", "z"):
        store.objects[name] = [(b"xyz", {"Content-Type": "a/b"})]
    assert run(["ls"]) == 0
    assert capsys.readouterr().out == "a\nd/\nz\n"
    assert run(["ls", "-r", "--limit", "2"]) == 0
    assert capsys.readouterr().out == "a\nd/1\n"
    assert run(["ls", "-l", "d/"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split("\t")[0:3] == ["3", "2026-01-31T12:00:00.000Z", "1"]
    assert run(["--json", "ls"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [entry["path"] for entry in document["objects"]] == ["a", "z"]
    assert document["prefixes"] == ["d/"]


def test_the_small_commands(store, here, capsys):
    (here / "a").write_bytes(b"1")
    run(["put", "a", "x", "--meta", "k=v"])
    run(["put", "a", "x"])
    capsys.readouterr()
    assert run(["versions", "x", "--json"]) == 0
    assert [row["version"] for row in json.loads(capsys.readouterr().out)["versions"]] == [2, 1]
    assert run(["stat", "x", "--version", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["meta"] == {"k": "v"}
    assert run(["cp", "x", "y", "--version", "1"]) == 0
    assert store.objects["y"][0][1]["x-amber-meta-k"] == "v"
    assert run(["restore", "x"]) == 0
    assert run(["rm", "x", "--write-id", "mine", "--if-version", "2"]) == 0
    headers = store.requests[-1][2]
    assert (headers["X-Amber-Write-Id"], headers["X-Amber-If-Version"]) == ("mine", "2")
    assert "x" not in store.objects


def test_explain_and_cluster_render_whatever_they_are_told(store, capsys):
    store.objects["x"] = [(b"abc", {})]
    assert run(["explain", "x"]) == 0
    text = capsys.readouterr().out
    for part in (
        "slot: 7",
        "node-1  chosen  (wanted: 3, 4)",
        "node-2  unreachable",
        "ab  3 B",
        "node-1: all",
        "not healthy",
        "Start node-2 again.",
        "er: -",
    ):
        assert part in text
    assert run(["explain", "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == EXPLAINED
    assert run(["cluster", "status"]) == 1
    assert "nodes: 1 of 2 reachable; down: node-2" in capsys.readouterr().out
    assert run(["cluster", "nodes"]) == 0
    assert run(["cluster", "slots", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {**CLUSTER["slots"], "by_state": {}, "by_slot": []}


def test_doctor_says_what_is_wrong(store, capsys):
    assert run(["doctor", "--json"]) == 1
    problems = "\n".join(json.loads(capsys.readouterr().out)["problems"])
    assert "node-2 is unreachable" in problems
    assert "4 slots are degraded" in problems
    assert "the disk of node-1 is full" in problems
    assert "3 versions have rotted" in problems and "2 versions can be had whole from no replica" in problems


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["get", "nothing"], 1, "There is no such object."),
        (["put", "missing", "x"], 1, "missing: No such file"),
        (["put", ".", "x"], 1, "--recursive"),
        (["put", "-"], 2, "Missing argument"),
        (["frob"], 2, "No such command"),
        (["get", "x", "--range", "5:2"], 2, "END is exclusive"),
        (["get", "x", "--nonsense"], 2, "No such option"),
        (["get", "x", "--consistency", "maybe"], 2, "strong or local"),
        (["put", "-", "x", "--meta", "novalue"], 2, "KEY=VALUE"),
        (["rm", "-r", "x"], 2, "--yes"),
        (["get", "x", "--version", "1", "--at", "2026-01-31T12:00:00Z"], 2, "exclude each other"),
        (["ls", "--endpoint", "ftp://x"], 1, "no endpoint"),
        (["doctor", "--disk", "/does/not/exist"], 1, "no folder"),
        (["doctor", "--deep"], 2, "--disk"),
        (["serve", "--config", "/does/not/exist"], 1, "cannot be read"),
    ],
)
def test_failures_are_one_or_two_lines_and_have_their_status(store, capsys, monkeypatch, arguments, status, says):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert run(arguments) == status
    captured = capsys.readouterr()
    assert says in captured.err
    assert 1 <= len(captured.err.splitlines()) <= 2
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_refused_condition(store, here, capsys):
    (here / "a").write_bytes(b"1")
    assert run(["put", "a", "x", "--if-none-match", "*"]) == 0
    assert run(["put", "a", "x", "--if-none-match", "*"]) == 1
    assert "precondition-failed, request r-9" in capsys.readouterr().err


def test_debugging_shows_the_traceback(store, capsys, monkeypatch):
    monkeypatch.setenv("AMBERBLOB_DEBUG", "1")
    assert run(["get", "nothing"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [[], ["put"], ["get"], ["ls"], ["dev"], ["serve"], ["cluster"], ["cluster", "nodes"], ["cluster", "heal"]],
)
def test_help_has_examples(command, capsys):
    assert run([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Usage: amberblob" in out
    assert "Example" in out or command == ["cluster"]


def test_a_reader_that_leaves_is_no_error(store):
    for index in range(5000):
        store.objects[f"{index:060}"] = [(b"", {})]
    command = [sys.executable, "-m", "amberblob", "ls", "-l"]
    listing = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert listing.stdout is not None and listing.stderr is not None
    listing.stdout.readline()
    listing.stdout.close()
    errors = listing.stderr.read()
    listing.stderr.close()
    assert listing.wait(30) in (0, 1)
    assert errors == b""


def test_doctor_of_what_is_no_disk(here, capsys):
    assert run(["doctor", "--disk", str(here), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is False
    assert report["findings"][0]["where"] == "disk.toml"
    assert run(["doctor", "--disk", str(here)]) == 1
    assert "error: disk.toml" in capsys.readouterr().out
