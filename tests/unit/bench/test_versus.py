"""Two commits: which one is meant, where its files are, and that nothing stays behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench import versus
from bench.environment import ROOT


def _git(root, *arguments):
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *author, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    root = tmp_path / "repository"
    root.mkdir()
    _git(root, "init", "--quiet")
    for text in ("one", "two"):
        (root / "file").write_text(text)
        _git(root, "add", "file")
        _git(root, "commit", "--quiet", "--message", text)
    _git(root, "tag", "first", "HEAD~1")
    return root


def test_a_revision_is_resolved(repository):
    first = _git(repository, "rev-parse", "--short", "HEAD~1")
    for revision in ("first", "HEAD~1", first, _git(repository, "rev-parse", "HEAD~1")):
        assert versus.resolve(revision, repository) == first


@pytest.mark.parametrize("revision", ["nonsense", "HEAD~99", "--all", "-q", "HEAD:file", "first..HEAD"])
def test_what_is_no_commit_is_refused(repository, revision):
    with pytest.raises(versus.BadRevision, match="names no commit"):
        versus.resolve(revision, repository)


def test_without_a_revision_it_says_how(repository):
    with pytest.raises(versus.BadRevision, match="make bench-vs REV=main"):
        versus.resolve(" ", repository)


def test_outside_of_git_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(versus.BadRevision, match="names no commit"):
        versus.resolve("HEAD", tmp_path)


@pytest.mark.parametrize("arguments", [["nonsense"], ["--", "--all"], [""]])
def test_a_bad_revision_is_wrong_usage(arguments, capsys):
    assert versus.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_checkout_is_there_and_then_gone(repository, tmp_path):
    with versus.worktree("first", tmp_path, repository) as checkout:
        assert (checkout / "file").read_text() == "one"
        assert (repository / "file").read_text() == "two"
    assert not checkout.exists()
    assert _git(repository, "worktree", "list").count("\n") == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_checkout_is_gone_after_an_interruption(repository, tmp_path, error):
    with pytest.raises(error), versus.worktree("first", tmp_path, repository):
        raise error
    assert not (tmp_path / "checkout").exists()
    assert _git(repository, "worktree", "list").count("\n") == 0


def test_code_that_does_not_load_is_told(tmp_path):
    (tmp_path / "amberblob").mkdir()
    (tmp_path / "amberblob" / "__init__.py").write_text("import a_package_of_long_ago\n")
    with pytest.raises(versus.CannotRun, match=r"abc1234 does not run .* No module named 'a_package_of_long_ago'"):
        versus.check_runs("abc1234", tmp_path)


def test_each_checkout_runs_its_own_code(tmp_path, monkeypatch):
    for package in ("amberblob", "node"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "amberblob" / "cli.py").touch()
    monkeypatch.chdir(ROOT)
    versus.check_runs("abc1234", tmp_path)
    versus.check_runs("abc1234", ROOT)
    with pytest.raises(versus.CannotRun, match="instead of"):
        versus.check_runs("abc1234", Path("/nowhere"))
