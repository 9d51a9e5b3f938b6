import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from amberblob.config import (
    ArchiveJobRule,
    ArchiveRule,
    ArchiveSection,
    ClusterSection,
    Duration,
    Keep,
    NodeConfig,
    NodeSection,
    RepairSection,
    RetentionRule,
    RetentionSection,
    Secret,
    SizeBytes,
    format_duration,
    format_size,
    load_config,
    parse_duration,
    parse_size,
    render_config,
    split_address,
)
from amberblob.errors import ConfigError

SECRET = "sixteen-characters-and-more"
MINIMAL = {
    "node": {"id": '"n1"', "disk": '"disk"'},
    "cluster": {"secret": f'"{SECRET}"', "registry": '"embedded:///tmp/registry.sqlite3"'},
}
EXAMPLE = Path(__file__).parents[3] / "deploy" / "node.example.toml"


def write(tmp_path: Path, changes: dict[str, dict[str, str | None]] | None = None) -> Path:
    sections: dict[str, dict[str, str | None]] = {name: {**values} for name, values in MINIMAL.items()}
    for name, values in (changes or {}).items():
        section = sections.setdefault(name, {})
        for key, value in values.items():
            if value is None:
                del section[key]
            else:
                section[key] = value
    text = ""
    for name, values in sections.items():
        text += f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
    path = tmp_path / "node.toml"
    path.write_text(text)
    return path


def test_the_example_loads():
    config = load_config(EXAMPLE, {})
    assert config.node.id == "node-1"
    assert config.http.advertised == "node-1.example.net:7700"
    assert config.cluster.bootstrap_nodes == ("node-1", "node-2", "node-3")


def test_a_cluster_may_begin_with_fewer_nodes_than_copies(tmp_path):
    config = load_config(write(tmp_path, {"cluster": {"bootstrap_nodes": '["n1"]'}}), {})
    assert config.cluster.bootstrap_nodes == ("n1",)
    assert config.cluster.replicas == 3


def test_the_example_shows_every_key_with_its_default(tmp_path):
    # What is to be on in the full file needs a target.
    text = EXAMPLE.read_text().replace('# target = ""', '# target = "s3://bucket"')
    text = text.replace("\n# ", "\n#").replace("\n#", "\n# ")
    uncommented = "\n".join(
        line.removeprefix("# ") if line.startswith("# ") and (" = " in line or "[[" in line[:4]) else line
        for line in text.splitlines()
    )
    for section, struct in (("node", NodeSection), ("cluster", ClusterSection)):
        for key in struct.__struct_fields__:
            assert f"\n{key} = " in uncommented, f"[{section}] {key}"
    full = tmp_path / "full.toml"
    full.write_text(
        "\n".join(line for line in uncommented.splitlines() if not line.startswith(("secret_file", "token_file")))
    )
    config = load_config(full, {})
    assert [rule.prefix for rule in config.retention.rules] == ["invoices/", "builds/"]  # there is no default to show
    config = replace(config, retention=replace(config.retention, rules=()))
    assert [rule.prefix for rule in config.archive.rules] == ["logs/", "invoices/"]
    assert [rule.job for rule in config.archive.jobs] == ["run", "gc"]
    assert config.archive.credentials_file == Path("/etc/amberblob/s3-credentials")
    assert config.archive.target == "s3://bucket" and load_config(EXAMPLE, {}).archive.target == ""
    config = replace(config, archive=replace(config.archive, target="", rules=(), jobs=(), credentials_file=None))
    for table, struct in (("rules", ArchiveRule), ("jobs", ArchiveJobRule)):
        shown = uncommented.split(f"[[archive.{table}]]")
        for key in struct.__struct_fields__:
            assert any(f"\n{key} = " in part for part in shown[1:]), f"[[archive.{table}]] {key}"
    for section in ("storage", "log", "limits", "repair", "retention", "archive"):
        assert getattr(config, section) == getattr(load_config(EXAMPLE, {}), section)
        for key in getattr(config, section).__struct_fields__:
            assert f"\n{key} = " in uncommented or key in ("rules", "jobs"), f"[{section}] {key}"


def test_defaults(tmp_path):
    config = load_config(write(tmp_path), {})
    assert config.node.disk == tmp_path / "disk"
    assert (config.node.zone, config.node.host) == ("default", "")
    assert config.http.listen == config.http.advertised == "127.0.0.1:7700"
    assert config.peer.advertised == "127.0.0.1:7800"
    assert not config.http.token
    assert (config.cluster.replicas, config.cluster.slot_count) == (3, 256)
    assert (config.cluster.effective_write_quorum, config.cluster.effective_read_quorum) == (2, 2)
    assert (config.storage.chunk_size, config.storage.reserve) == (8 << 20, 256 << 20)
    assert config.limits.request_timeout_s == 10
    assert config.retention == RetentionSection(keep=Keep(7 * 86_400), versions=0, stub_keep=Duration(86_400), rules=())
    assert (config.repair.busy_bytes_per_s, config.repair.scrub_bytes_per_s) == (16 << 20, 32 << 20)


def test_the_environment_goes_before_the_file(tmp_path):
    environ = {
        "AMBERBLOB_NODE_ID": "n7",
        "AMBERBLOB_CLUSTER_REPLICAS": "5",
        "AMBERBLOB_CLUSTER_BOOTSTRAP_NODES": "a, b,c,d,e",
        "AMBERBLOB_STORAGE_CHUNK_SIZE": "1MiB",
        "AMBERBLOB_STORAGE_RESERVE": "33554432",
        "AMBERBLOB_LIMITS_REQUEST_TIMEOUT_S": "12.5",
        "AMBERBLOB_LOG_FORMAT": "json",
        "AMBERBLOB_TOKEN": "the client's",
        "AMBERBLOB_ENDPOINT": "the client's",
        "AMBERBLOB_HTTP_SERVICE_HOST": "kubernetes'",
        "AMBERBLOB_PEER_PORT_7800_TCP_ADDR": "kubernetes'",
        "AMBERBLOB_PEER_PORT": "kubernetes'",
    }
    config = load_config(write(tmp_path, {"cluster": {"replicas": "3"}}), environ)
    assert config.node.id == "n7"
    assert config.cluster.replicas == 5
    assert config.cluster.bootstrap_nodes == ("a", "b", "c", "d", "e")
    assert (config.storage.chunk_size, config.storage.reserve) == (1 << 20, 32 << 20)
    assert config.limits.request_timeout_s == 12.5
    assert config.log.format == "json"


def test_everything_may_be_in_the_environment(tmp_path):
    empty = tmp_path / "node.toml"
    empty.write_text("")
    environ = {
        "AMBERBLOB_NODE_ID": "n1",
        "AMBERBLOB_NODE_DISK": "/disk",
        "AMBERBLOB_CLUSTER_SECRET": SECRET,
        "AMBERBLOB_CLUSTER_REGISTRY": "embedded:///r",
    }
    assert load_config(empty, environ).node.disk == Path("/disk")


def test_secrets_as_files(tmp_path):
    (tmp_path / "secret").write_text(SECRET + "\n")
    (tmp_path / "token").write_text("t0k3n\n")
    path = write(tmp_path, {"cluster": {"secret": None, "secret_file": '"secret"'}, "http": {"token_file": '"token"'}})
    config = load_config(path, {})
    assert config.cluster.secret.reveal() == SECRET
    assert config.http.token.reveal() == "t0k3n"
    assert SECRET not in render_config(config)
    changed = load_config(path, {"AMBERBLOB_CLUSTER_SECRET": "another secret of length"})
    assert changed.cluster.secret.reveal() == "another secret of length"
    plain = write(tmp_path)
    (tmp_path / "other").write_text("another secret of length")
    changed = load_config(plain, {"AMBERBLOB_CLUSTER_SECRET_FILE": str(tmp_path / "other")})
    assert changed.cluster.secret.reveal() == "another secret of length"


def test_secrets_do_not_show(tmp_path):
    config = load_config(write(tmp_path, {"http": {"token": '"t0k3n"'}}), {})
    for shown in (repr(config), str(config), f"{config.cluster.secret}", repr(config.http)):
        assert SECRET not in shown and "t0k3n" not in shown
    assert SECRET in render_config(config)


def test_render_is_read_back(tmp_path):
    config = NodeConfig(
        node=NodeSection(id="n1", disk=tmp_path / "disk 1", host="h"),
        cluster=ClusterSection(
            secret=Secret(SECRET), registry="embedded:///tmp/r.sqlite3", bootstrap_nodes=("n1", "n2", "n3")
        ),
        repair=RepairSection(scrub_days=0.5),
        archive=ArchiveSection(
            target="s3://bucket/some/where",
            endpoint="http://127.0.0.1:7480",
            credentials_file=tmp_path / "aws",
            bytes_per_s=SizeBytes(5 << 20),
            grace=Duration(0.25),
            rules=(
                ArchiveRule(action="archive-and-evict", older_than=Duration(90), evict_above=81.5, evict_to=70),
                ArchiveRule(prefix="p", action="write-through"),
                ArchiveRule(prefix="q", larger_than=SizeBytes(1 << 16), versions="old"),
            ),
            jobs=(ArchiveJobRule(job="gc", every=Duration(86_400), between="22:00-04:00"),),
        ),
        retention=RetentionSection(
            keep=Keep(math.inf),
            stub_keep=Duration(90.5),
            rules=(RetentionRule(prefix="a", keep=Keep(0), versions=2), RetentionRule(prefix="b", keep=Keep(math.inf))),
        ),
    )
    path = tmp_path / "node.toml"
    path.write_text(render_config(config))
    assert load_config(path, {}) == config


WRONG = [
    ("node", "id", '"Node 1"', "lower-case"),
    ("node", "id", "7", "lower-case"),
    ("node", "disk", '""', "a folder"),
    ("http", "listen", '"7700"', "host:port"),
    ("http", "listen", '"h:99999"', "host:port"),
    ("http", "listen", '"0.0.0.0:7700"', "set [http] advertise"),
    ("http", "advertise", '"0.0.0.0:7700"', "nobody can reach"),
    ("http", "advertise", '"http://h:7700"', "host:port"),
    ("peer", "listen", '"127.0.0.1:7700"', "a port of their own"),
    ("cluster", "name", '"a/b"', "lower-case"),
    ("cluster", "secret", '"short"', "at least 16"),
    ("cluster", "registry", '"/a/path"', "a URL"),
    ("cluster", "bootstrap_nodes", '["n1", "n2", "n2", "n3"]', "twice"),
    ("cluster", "bootstrap_nodes", '["n1", "N2", "n3"]', "'N2'"),
    ("cluster", "bootstrap_nodes", '"n1"', "the ids"),
    ("cluster", "replicas", "0", "1 to 9"),
    ("cluster", "replicas", "true", "1 to 9"),
    ("cluster", "replicas", '"3"', "1 to 9"),
    ("cluster", "slot_count", "100", "power of two"),
    ("cluster", "slot_count", "131072", "power of two"),
    ("cluster", "write_quorum", "1", "at least 2, the majority of 3 replicas"),
    ("cluster", "read_quorum", "1", "at least 2, the majority of 3 replicas"),
    ("cluster", "write_quorum", "4", "at most 3"),
    ("storage", "chunk_size", '"1KiB"', "64KiB to 64MiB"),
    ("storage", "chunk_size", '"8 potatoes"', "64KiB to 64MiB"),
    ("storage", "chunk_size", "-5", "64KiB to 64MiB"),
    ("storage", "chunk_size", "8.5", "64KiB to 64MiB"),
    ("storage", "reserve", "0", "at least 16MiB"),
    ("storage", "max_open_slots", "0", "how many"),
    ("log", "level", '"loud"', "debug, info, warning, error"),
    ("log", "format", "1", "json, console, auto"),
    ("limits", "request_timeout_s", "0", "more than 0"),
    ("limits", "peer_timeout_s", "60", "at most request_timeout_s (10)"),
    ("repair", "follow_every_s", "0", "more than 0"),
    ("repair", "scrub_days", "nan", "at most 365"),
    ("repair", "scrub_bytes_per_s", '"1KiB"', "at least 64KiB"),
    ("repair", "busy_bytes_per_s", '"fast"', "at least 64KiB"),
    ("repair", "pull_parallel", "0", "1 to 64"),
    ("retention", "keep", '"a week"', '"7d", or a number of seconds'),
    ("retention", "keep", "-1", "a number of seconds"),
    ("retention", "keep", "inf", '"all"'),
    ("retention", "keep", "nan", '"all"'),
    ("retention", "keep", "true", '"all"'),
    ("retention", "keep", '"40000d"', "at most 36500d"),
    ("retention", "versions", "-1", "from 0"),
    ("retention", "versions", '"3"', "from 0"),
    ("retention", "stub_keep", '"all"', '"12h"'),
    ("retention", "check_every_s", "0", "more than 0"),
    ("retention", "rules", '"logs/"', "[[retention.rules]]"),
    ("retention", "rules", "[3]", "[[retention.rules]]"),
    ("retention", "rules", '[{ prefix = "a" }, { prefix = "a", versions = 3 }]', "prefix 'a' has two rules"),
]


@pytest.mark.parametrize(("section", "key", "value", "wants"), WRONG)
def test_mistakes_name_file_key_what_was_seen_and_what_is_wanted(tmp_path, section, key, value, wants):
    path = write(tmp_path, {section: {key: value}})
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    message = str(caught.value)
    assert message.startswith(f"{path}: [{section}] {key} = ")
    assert wants in message
    if value in ("inf", "nan"):
        assert f"= {value}:" in message
    if key == "secret":
        assert "short" not in message
    elif not value.startswith("["):
        assert value.strip('"') in message or value == "true"


WRONG_RULES = [
    ('{ keep = "7d" }', r"no. 2: prefix is missing: wants what paths begin with"),
    ('{ prefix = "" }', r"no. 2: prefix = '': wants what paths begin with; not empty"),
    ('{ prefix = "b", keep = "long" }', r"no. 2: keep = 'long': wants a duration as"),
    ('{ prefix = "b", keep = true }', r"no. 2: keep = True: wants a duration as"),
    ('{ prefix = "b", versions = "3" }', r"no. 2: versions = '3': wants a number from 0"),
    ('{ prefix = "b", version = 3 }', r"no. 2 has no key 'version' \(did you mean versions\?\)"),
]


@pytest.mark.parametrize(("rule", "message"), WRONG_RULES)
def test_mistakes_in_a_rule_name_the_rule(tmp_path, rule, message):
    path = write(tmp_path, {"retention": {"rules": f'[{{ prefix = "a" }}, {rule}]'}})
    with pytest.raises(ConfigError, match=r"node\.toml: \[\[retention\.rules\]\] " + message):
        load_config(path, {})


def test_rules_of_retention(tmp_path):
    path = write(
        tmp_path, {"retention": {"keep": '"1.5h"', "rules": '[{ prefix = "a/", keep = "all", versions = 2 }]'}}
    )
    retention = load_config(path, {}).retention
    assert retention.keep == 5400 and not retention.keep.for_ever
    assert retention.rules == (RetentionRule(prefix="a/", keep=Keep(math.inf), versions=2),)
    environ = {
        "AMBERBLOB_RETENTION_RULES": '[{"prefix": "logs/", "keep": "12h"}, {"prefix": "b", "versions": 3}]',
        "AMBERBLOB_RETENTION_KEEP": "all",
        "AMBERBLOB_RETENTION_STUB_KEEP": "60",
    }
    retention = load_config(path, environ).retention
    assert retention.keep.for_ever and retention.stub_keep == 60
    assert retention.rules == (
        RetentionRule(prefix="logs/", keep=Keep(43_200)),
        RetentionRule(prefix="b", versions=3),
    )
    for wrong, message in (("[", "is no JSON"), ('{"prefix": "a"}', "wants tables"), ('[{"keep": 1}]', "is missing")):
        with pytest.raises(ConfigError, match=rf"environment AMBERBLOB_RETENTION_RULES: .*{message}"):
            load_config(path, {"AMBERBLOB_RETENTION_RULES": wrong})


def test_mistakes_in_the_environment_name_the_variable(tmp_path):
    with pytest.raises(ConfigError, match=r"environment AMBERBLOB_CLUSTER_REPLICAS: \[cluster\] replicas = 'many'"):
        load_config(write(tmp_path), {"AMBERBLOB_CLUSTER_REPLICAS": "many"})
    with pytest.raises(ConfigError, match="did you mean AMBERBLOB_CLUSTER_REPLICAS"):
        load_config(write(tmp_path), {"AMBERBLOB_CLUSTER_REPLICA": "3"})


def test_unknown_keys_are_refused_with_a_hint(tmp_path):
    with pytest.raises(ConfigError, match=r"\[cluster\] has no key 'replica' \(did you mean replicas\?\)"):
        load_config(write(tmp_path, {"cluster": {"replica": "3"}}), {})
    with pytest.raises(ConfigError, match=r"unknown section \[storge\] \(did you mean \[storage\]\?\)"):
        load_config(write(tmp_path, {"storge": {"reserve": "1"}}), {})


@pytest.mark.parametrize(
    ("section", "key"), [("node", "id"), ("node", "disk"), ("cluster", "registry"), ("cluster", "secret")]
)
def test_missing_keys_are_named(tmp_path, section, key):
    with pytest.raises(ConfigError, match=rf"\[{section}\] {key}.* is missing: wants "):
        load_config(write(tmp_path, {section: {key: None}}), {})


def test_secret_files_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigError, match="either secret or secret_file, not both"):
        load_config(write(tmp_path, {"cluster": {"secret_file": '"x"'}}), {})
    path = write(tmp_path, {"cluster": {"secret": None, "secret_file": '"x"'}})
    with pytest.raises(ConfigError, match=r"secret_file = 'x': cannot be read"):
        load_config(path, {})
    (tmp_path / "x").write_text("\n")
    with pytest.raises(ConfigError, match="the file is empty"):
        load_config(path, {})
    (tmp_path / "x").write_text("short")
    with pytest.raises(ConfigError, match="at least 16 characters"):
        load_config(path, {})


def test_files_that_cannot_be_used(tmp_path):
    path = tmp_path / "node.toml"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(path, {})
    path.write_text("[node\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(path, {})
    path.write_text("node = 3\n")
    with pytest.raises(ConfigError, match=r"wants to be a section"):
        load_config(path, {})


@given(st.integers(0, 2**60))
def test_sizes_are_read_back(size):
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "size"), [("8MiB", 8 << 20), ("64 kib", 64 << 10), ("1.5GB", 1_500_000_000), ("10", 10), ("7B", 7)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.5", "8 M iB", "0x10", "1e3"])
def test_no_sizes(text):
    with pytest.raises(ValueError):
        parse_size(text)


@given(st.integers(0, 36_500 * 86_400 * 1000))
def test_durations_are_read_back(milliseconds):
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("15 m", 900), ("12h", 43_200), ("1.5D", 129_600), ("7", 7)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1", "1 month", "1e3", "all", "inf", "36501d", "5 d 3 h"])
def test_no_durations(text):
    with pytest.raises(ValueError):
        parse_duration(text)


def test_addresses():
    assert split_address("h:1") == ("h", 1)
    assert split_address("[::1]:7700") == ("::1", 7700)
    for wrong in ("h", "h:", "h:0", "::1:7700", "h h:1", "h:1:"):
        with pytest.raises(ValueError):
            split_address(wrong)
