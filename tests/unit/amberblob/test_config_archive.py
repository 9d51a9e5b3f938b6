"""``[archive]``: what is refused, and how it is said."""

from pathlib import Path

import pytest

from amberblob.config import (
    ArchiveJobRule,
    ArchiveRule,
    ArchiveSection,
    Duration,
    NodeConfig,
    SizeBytes,
    load_config,
    parse_hours,
)
from amberblob.errors import ConfigError

HEAD = """
[node]
id = "n1"
disk = "/srv/disk"
[cluster]
secret = "sixteen-characters-and-more"
registry = "embedded:///tmp/registry.sqlite3"
[archive]
"""


def load(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> NodeConfig:
    path = tmp_path / "node.toml"
    path.write_text(HEAD + text)
    return load_config(path, environ or {})


def test_there_is_no_archive_by_default(tmp_path):
    assert load(tmp_path, "").archive == ArchiveSection()
    assert load(tmp_path, "").archive.target == ""


@pytest.mark.parametrize(
    "target",
    [
        "s3://bucket",
        "s3://bucket/",
        "s3://my.bucket-1/a/b",
        "s3://b_2/x=1/",
        "file:///mnt/archive",
        "file:///mnt/a%20b",
    ],
)
def test_targets(tmp_path, target):
    assert load(tmp_path, f'target = "{target}"').archive.target == target


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:7480", "https://s3.example.net", "http://[::1]:9000/"])
def test_endpoints(tmp_path, endpoint):
    assert load(tmp_path, f'target = "s3://bucket"\nendpoint = "{endpoint}"').archive.endpoint == endpoint


def test_how_another_bucket_is_reached_may_stand_there_without_an_s3_target(tmp_path):
    """An import takes from an S3 bucket into a cluster that archives to a folder, or not at all."""
    keys = 'endpoint = "http://h:1"\nregion = "r"\nprofile = "p"\ncredentials_file = "/c"\naddressing = "path"\n'
    assert load(tmp_path, keys).archive.region == "r"
    assert load(tmp_path, keys + 'target = "file:///mnt/archive"').archive.profile == "p"


WRONG = [
    ('target = "bucket"', "target", "s3://bucket/prefix, file:///folder, or empty"),
    ('target = "gs://bucket"', "target", "s3://bucket/prefix, file:///folder, or empty"),
    ('target = "s3://"', "target", "names no bucket"),
    ('target = "s3:///prefix"', "target", "names no bucket"),
    ('target = "s3://key:secret@bucket"', "target", "holds credentials"),
    ('target = "s3://b"', "target", "is no name of a bucket"),
    ('target = "s3://bucket/a//b"', "target", "single slashes"),
    ('target = "s3://bucket/../b"', "target", "single slashes"),
    ('target = "s3://bucket/?x=1"', "target", "single slashes"),
    (f'target = "s3://bucket/{"a/" * 201}"', "target", "at most 400"),
    ('target = "file://mnt/archive"', "target", "a whole path"),
    ('target = "file:///"', "target", "a whole path"),
    ('target = "file:///mnt/../srv"', "target", "a whole path"),
    ('target = "file:///mnt/archive?x"', "target", "%3F"),
    ('target = "file:///srv/disk/archive"', "target", "lie one in the other"),
    ('target = "file:///srv"', "target", "lie one in the other"),
    ('endpoint = "127.0.0.1:7480"', "endpoint", "http://host:port"),
    ('endpoint = "http://"', "endpoint", "http://host:port"),
    ('endpoint = "http://:9000"', "endpoint", "http://host:port"),
    ('endpoint = "http://h:99999"', "endpoint", "http://host:port"),
    ('endpoint = "http://h/bucket"', "endpoint", "nothing after it"),
    ('endpoint = "http://u:p@h"', "endpoint", "no user name"),
    ('addressing = "host"', "addressing", "auto, path or virtual"),
    ('credentials_file = ""', "credentials_file", "a file"),
    ('pack_size = "512KiB"', "pack_size", "1MiB to 1GiB"),
    ('pack_size = "2GiB"', "pack_size", "1MiB to 1GiB"),
    ("lone_size = 1", "lone_size", "64KiB to 64MiB"),
    ('lone_size = "2MiB"\npack_size = "1MiB"', "lone_size", "at most pack_size"),
    ('part_size = "1MiB"', "part_size", "5MiB to 64MiB"),
    ("parallel = 0", "parallel", "1 to 64"),
    ("tries = 0", "tries", "1 to 20"),
    ("timeout_s = 0", "timeout_s", "more than 0"),
    ('bytes_per_s = "1KiB"', "bytes_per_s", "at least 64KiB"),
    ("requests_per_s = -1", "requests_per_s", "no limit"),
    ('cache = "much"', "cache", "a size"),
    ('grace = "all"', "grace", "a duration"),
    ("rewrite_below = 1.5", "rewrite_below", "from 0 to 1"),
]


@pytest.mark.parametrize(("text", "key", "wants"), WRONG)
def test_mistakes_name_the_key_what_was_seen_and_what_is_wanted(tmp_path, text, key, wants):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'node.toml'}: [archive] {key} = ")
    assert wants in message
    assert "secret" not in message.replace("credentials_file", "")


WRONG_RULES = [
    (
        'action = "move"',
        r"\[\[archive\.rules\]\] no\. 1: action = 'move': wants one of keep, archive, archive-and-evict",
    ),
    ("evict_above = 101", r"no\. 1: evict_above = 101: wants percent of the disk, 0 to 100"),
    ('evict_above = "80%"', r"no\. 1: evict_above = '80%': wants percent"),
    ('versions = "new"', r"no\. 1: versions = 'new': wants all or old"),
    ('larger_than = "x"', r"no\. 1: larger_than = 'x': wants a size"),
    ('older = "1d"', r"no\. 1 has no key 'older' \(did you mean older_than\?\)"),
    ('action = "write-through"\nolder_than = "1d"', "'' has older_than, but write-through is for every PUT"),
    ('action = "write-through"\nversions = "old"', "'' has versions, but write-through"),
    ('action = "keep"\nlarger_than = 5', "'' has larger_than, but keep sends nothing"),
    ('action = "archive"\nevict_above = 80', "'' has evict_above, but archive lets no bytes go"),
    ('action = "archive-and-evict"\nevict_above = 70\nevict_to = 80', r"at most evict_above \(70\)"),
    ('action = "archive-and-evict"\nevict_to = 80', "evict_to without evict_above"),
    ('[[archive.rules]]\naction = "keep"', "prefix '' has two rules"),
]


@pytest.mark.parametrize(("rule", "message"), WRONG_RULES)
def test_mistakes_in_a_rule(tmp_path, rule, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, f'target = "s3://bucket"\n[[archive.rules]]\n{rule}')


WRONG_JOBS = [
    (
        'job = "restore"\nevery = "1d"',
        r"\[\[archive\.jobs\]\] no\. 1: job = 'restore': wants run, verify, gc or export",
    ),
    ('job = "gc"', r"no\. 1: every is missing: wants a duration"),
    ('job = "gc"\nevery = 0', r"no\. 1 \(gc\): every = 0s: wants at least 1m"),
    ('job = "gc"\nevery = "1d"\nbetween = "1-5"', r"between = '1-5': .* wants hours as"),
    ('job = "gc"\nevery = "1d"\nbetween = "24:00-05:00"', "wants hours as"),
    ('job = "gc"\nevery = "1d"\nbetween = "05:00-05:00"', "begins when it ends"),
    ('job = "gc"\nevery = "1d"\n[[archive.jobs]]\njob = "gc"\nevery = "2d"', r"no\. 2 \(gc\) is there twice"),
]


@pytest.mark.parametrize(("job", "message"), WRONG_JOBS)
def test_mistakes_in_a_job(tmp_path, job, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, f'target = "s3://bucket"\n[[archive.jobs]]\n{job}')


def test_rules_and_jobs_want_a_target(tmp_path):
    with pytest.raises(ConfigError, match="prefix 'a' wants \\[archive\\] target"):
        load(tmp_path, '[[archive.rules]]\nprefix = "a"\naction = "archive"')
    with pytest.raises(ConfigError, match=r"jobs = .*: no\. 1 \(gc\) wants \[archive\] target"):
        load(tmp_path, '[[archive.jobs]]\njob = "gc"\nevery = "1d"')
    assert load(tmp_path, '[[archive.rules]]\nprefix = "a"\naction = "keep"').archive.rules[0].action == "keep"


def test_everything_may_be_in_the_environment(tmp_path):
    environ = {
        "AMBERBLOB_ARCHIVE_TARGET": "s3://bucket",
        "AMBERBLOB_ARCHIVE_PACK_SIZE": "8MiB",
        "AMBERBLOB_ARCHIVE_REQUESTS_PER_S": "2.5",
        "AMBERBLOB_ARCHIVE_RULES": '[{"prefix": "logs/", "action": "archive-and-evict", "evict_above": 80}, {"older_than": "1d"}]',
        "AMBERBLOB_ARCHIVE_JOBS": '[{"job": "run", "every": "6h", "between": "22:00-04:00"}]',
    }
    archive = load(tmp_path, 'target = "file:///elsewhere"', environ).archive
    assert (archive.target, archive.pack_size, archive.requests_per_s) == ("s3://bucket", 8 << 20, 2.5)
    assert archive.rules == (
        ArchiveRule(prefix="logs/", action="archive-and-evict", evict_above=80),
        ArchiveRule(older_than=Duration(86_400)),
    )
    assert archive.jobs == (ArchiveJobRule(job="run", every=Duration(21_600), between="22:00-04:00"),)
    assert isinstance(archive.rules[0].larger_than, SizeBytes)
    for wrong, message in (("[", "is no JSON"), ("{}", "wants tables"), ('[{"job": "gc"}]', "every is missing")):
        with pytest.raises(ConfigError, match=rf"environment AMBERBLOB_ARCHIVE_JOBS: .*{message}"):
            load(tmp_path, "", environ | {"AMBERBLOB_ARCHIVE_JOBS": wrong})


def test_hours():
    assert parse_hours("") is None
    assert parse_hours("01:00-05:30") == (60, 330)
    assert parse_hours("22:00-04:00") == (1320, 240)
    for wrong in ("1:00-05:30", "01:00 - 05:30", "01:60-02:00", "25:00-02:00", "03:00-03:00", "01:00"):
        with pytest.raises(ValueError):
            parse_hours(wrong)
