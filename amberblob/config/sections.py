"""Every section and key, with its default and the text that says what it wants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from msgspec import Meta, Struct

from amberblob.config.values import DURATION_DAYS_MAX, Duration, Keep, Secret, SizeBytes
from amberblob.limits import CHUNK_BYTES_DEFAULT, KIB, MIB, SLOT_COUNT_DEFAULT, SLOT_COUNT_MAX

SECRET_CHARS_MIN = 16
REPLICAS_MAX = 9
RESERVE_BYTES_MIN = 16 * MIB
RATE_BYTES_PER_S_MIN = 64 * KIB
VERSIONS_MAX = 1_000_000

# What each key wants is told by its description; it ends every message about the key.
_Text = Annotated[str, Meta(description="a text")]
_Label = Annotated[str, Meta(max_length=255, description="a label of at most 255 characters")]
_NodeId = Annotated[str, Meta(description="1 to 63 lower-case letters, digits, dots and hyphens")]
_Address = Annotated[str, Meta(description="host:port, for example 127.0.0.1:7700")]
_Advertised = Annotated[str, Meta(description="host:port that others reach this node by; empty: as listen")]
_Folder = Annotated[Path, Meta(description="a folder")]
_File = Annotated[Path | None, Meta(description="a file that holds nothing else")]
_Quorum = Annotated[int, Meta(ge=0, description="0 for the majority, or a number from the majority to replicas")]
_Seconds = Annotated[float, Meta(gt=0, le=3600, description="seconds, more than 0, at most 3600")]
_Pause = Annotated[float, Meta(gt=0, le=86_400, description="seconds, more than 0, at most 86400 (a day)")]
_Rate = Annotated[SizeBytes, Meta(description="bytes per second: a size of at least 64KiB")]
_DURATION = f'as "30s", "15m", "12h" or "7d", or a number of seconds, at most {DURATION_DAYS_MAX}d'
_VERSIONS = f"a number from 0 to {VERSIONS_MAX}"
_Versions = Annotated[int, Meta(ge=0, le=VERSIONS_MAX, description=_VERSIONS)]


class NodeSection(Struct, frozen=True, kw_only=True):
    """``[node]``: who this node is. ``host`` is a label: two nodes with one label are on one machine."""

    id: _NodeId
    disk: _Folder
    zone: _Label = "default"
    host: _Label = ""


class HttpSection(Struct, frozen=True, kw_only=True):
    """``[http]``: the public face. An empty token lets everybody in."""

    listen: _Address = "127.0.0.1:7700"
    advertise: _Advertised = ""
    token: Annotated[Secret, Meta(description="a text; empty lets everybody in")] = Secret()
    token_file: _File = None

    @property
    def advertised(self) -> str:
        """Where clients reach this node, ``host:port``."""
        return self.advertise or self.listen


class PeerSection(Struct, frozen=True, kw_only=True):
    """``[peer]``: the port for the other nodes."""

    listen: _Address = "127.0.0.1:7800"
    advertise: _Advertised = ""

    @property
    def advertised(self) -> str:
        """Where the other nodes reach this one, ``host:port``."""
        return self.advertise or self.listen


class ClusterSection(Struct, frozen=True, kw_only=True):
    """``[cluster]``: what all nodes of a cluster have alike."""

    name: _NodeId = "amberblob"
    secret: Annotated[Secret, Meta(description=f"at least {SECRET_CHARS_MIN} characters, alike on every node")] = (
        Secret()
    )
    secret_file: _File = None
    registry: Annotated[
        str,
        Meta(
            description="a URL: embedded:///var/lib/amberblob/registry.sqlite3, etcd://host:port,host2:port2 or "
            "redis://host:port/db"
        ),
    ]
    bootstrap_nodes: Annotated[
        tuple[str, ...], Meta(description="the ids of the nodes that the cluster begins with")
    ] = ()
    replicas: Annotated[int, Meta(ge=1, le=REPLICAS_MAX, description=f"a number from 1 to {REPLICAS_MAX}")] = 3
    slot_count: Annotated[
        int, Meta(ge=1, le=SLOT_COUNT_MAX, description=f"a power of two, at most {SLOT_COUNT_MAX}")
    ] = SLOT_COUNT_DEFAULT
    write_quorum: _Quorum = 0
    read_quorum: _Quorum = 0

    @property
    def majority(self) -> int:
        """The least number of replicas of which any two choices overlap."""
        return self.replicas // 2 + 1

    @property
    def effective_write_quorum(self) -> int:
        """Replicas that must have a write before it is acknowledged."""
        return self.write_quorum or self.majority

    @property
    def effective_read_quorum(self) -> int:
        """Replicas that a strong read asks."""
        return self.read_quorum or self.majority


class StorageSection(Struct, frozen=True, kw_only=True):
    """``[storage]``: sizes in bytes. Below ``reserve`` of free space new bytes are refused."""

    chunk_size: Annotated[SizeBytes, Meta(description="a size from 64KiB to 64MiB")] = SizeBytes(CHUNK_BYTES_DEFAULT)
    reserve: Annotated[SizeBytes, Meta(description="a size of at least 16MiB")] = SizeBytes(256 * MIB)
    max_open_slots: Annotated[int, Meta(ge=1, le=SLOT_COUNT_MAX, description="how many slot databases stay open")] = 256


class LogSection(Struct, frozen=True, kw_only=True):
    """``[log]``: ``auto`` is console on a terminal and json elsewhere."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="one of debug, info, warning, error")
    ] = "info"
    format: Annotated[Literal["json", "console", "auto"], Meta(description="one of json, console, auto")] = "auto"


class LimitsSection(Struct, frozen=True, kw_only=True):
    """``[limits]``: deadlines in seconds, and how much may go on at once.

    Attributes:
        request_timeout_s: one request of a client, without the time that its body takes to arrive.
        peer_timeout_s: one answer of a peer.
        shutdown_timeout_s: how long requests under way may take to end when the node stops.
        requests_max: clients' requests under way; more are answered 503.
    """

    request_timeout_s: _Seconds = 10.0
    peer_timeout_s: _Seconds = 5.0
    shutdown_timeout_s: _Seconds = 10.0
    requests_max: Annotated[int, Meta(ge=1, le=100_000, description="a number from 1 to 100000")] = 1024


class RepairSection(Struct, frozen=True, kw_only=True):
    """``[repair]``: how the copies become equal again, and how much of the machine that may take.

    Attributes:
        follow_every_s: between two questions to the other copies what was written there.
        compare_every_s: between two comparisons of everything with the other copies.
        scrub_days: within this time everything that the disk holds is read and checked.
        scrub_bytes_per_s: the check reads no faster, even if it then takes longer.
        busy_bytes_per_s: what may be fetched from other nodes per second while clients are served; when none are, as
            much as there is.
        pull_parallel: chunks that are fetched at once.
    """

    follow_every_s: _Pause = 5.0
    compare_every_s: _Pause = 600.0
    scrub_days: Annotated[float, Meta(gt=0, le=365, description="days, more than 0, at most 365")] = 14.0
    scrub_bytes_per_s: _Rate = SizeBytes(32 * MIB)
    busy_bytes_per_s: _Rate = SizeBytes(16 * MIB)
    pull_parallel: Annotated[int, Meta(ge=1, le=64, description="a number from 1 to 64")] = 8


class RetentionRule(Struct, frozen=True, kw_only=True):
    """One of ``[[retention.rules]]``: for the paths that begin with ``prefix``; the longest prefix wins.

    What a rule does not say is as in ``[retention]``.
    """

    prefix: Annotated[str, Meta(min_length=1, description="what paths begin with; not empty")]
    keep: Annotated[Keep | None, Meta(description=f'a duration {_DURATION}, or "all"')] = None
    versions: Annotated[_Versions | None, Meta(description=_VERSIONS)] = None


class RetentionSection(Struct, frozen=True, kw_only=True):
    """``[retention]``: for how long what was overwritten or deleted is kept. What is live is always kept.

    Attributes:
        keep: how long a version is kept once a newer one took its place or it was deleted; "all": for ever.
        versions: of each path this many of the newest versions are kept in any case.
        stub_keep: how long, at the least, a deleted path of which nothing is left is remembered. A retry of a write that comes
            later than this, and later than a day, may be done a second time. (A version is kept at least as long, but for this
            reason not longer than 15 minutes, whatever ``keep`` says: a retry that comes later is not told what it made.)
        check_every_s: between two searches for what may go.
        rules: others for some prefixes.
    """

    keep: Annotated[Keep, Meta(description=f'a duration {_DURATION}, or "all"')] = Keep(7 * 86_400)
    versions: _Versions = 0
    stub_keep: Annotated[Duration, Meta(description=f"a duration {_DURATION}")] = Duration(86_400)
    check_every_s: _Pause = 3600.0
    rules: Annotated[
        tuple[RetentionRule, ...], Meta(description="tables [[retention.rules]] of prefix, keep and versions")
    ] = ()


ARCHIVE_EVERY_S_MIN = 60
PACK_BYTES_MIN, PACK_BYTES_MAX = MIB, 1024 * MIB
LONE_BYTES_MIN, LONE_BYTES_MAX = 64 * KIB, 64 * MIB
PART_BYTES_MIN, PART_BYTES_MAX = 5 * MIB, 64 * MIB

ArchiveAction = Literal["keep", "archive", "archive-and-evict", "write-through"]
_ACTIONS = "keep, archive, archive-and-evict or write-through"
_DURATION_TEXT = f"a duration {_DURATION}"
_Percent = Annotated[float, Meta(ge=0, le=100, description="percent of the disk, 0 to 100")]


class ArchiveRule(Struct, frozen=True, kw_only=True):
    """One of ``[[archive.rules]]``: for the paths that begin with ``prefix``; the longest prefix wins.

    Attributes:
        prefix: empty: for all paths.
        action: keep: nothing goes to the archive. archive: copies go there, the bytes stay. archive-and-evict: the bytes go from the disk once
            the archive's copy was read back. write-through: a PUT is acknowledged only when it is archived too; the bytes stay.
        older_than: a version is left alone until it is so old.
        not_read_for: and until nobody has read it on this node for so long.
        larger_than: versions of fewer bytes are left alone.
        versions: old: only versions that a newer one, or a delete, has taken the place of.
        evict_above: bytes are evicted only once the disk is fuller than this; 0: always. evict_to: until it is no fuller than this;
            0: as evict_above.
    """

    prefix: Annotated[str, Meta(description="what paths begin with; empty: all")] = ""
    action: Annotated[ArchiveAction, Meta(description=f"one of {_ACTIONS}")] = "archive"
    older_than: Annotated[Duration, Meta(description=_DURATION_TEXT)] = Duration(0)
    not_read_for: Annotated[Duration, Meta(description=_DURATION_TEXT)] = Duration(0)
    larger_than: Annotated[SizeBytes, Meta(description="a size")] = SizeBytes(0)
    versions: Annotated[Literal["all", "old"], Meta(description="all or old")] = "all"
    evict_above: _Percent = 0.0
    evict_to: _Percent = 0.0


class ArchiveJobRule(Struct, frozen=True, kw_only=True):
    """One of ``[[archive.jobs]]``: what is done by itself, and how often.

    Attributes:
        job: run, verify, gc or export.
        every: between two beginnings.
        between: only in these hours, ``01:00-05:30`` by UTC; empty: at any time.
    """

    job: Annotated[Literal["run", "verify", "gc", "export"], Meta(description="run, verify, gc or export")]
    every: Annotated[Duration, Meta(description=_DURATION_TEXT + ", at least 1m")]
    between: Annotated[str, Meta(description='hours as "01:00-05:30", by UTC; empty: at any time')] = ""


class ArchiveSection(Struct, frozen=True, kw_only=True):
    """``[archive]``: where cold chunks go, and which. Alike on every node.

    Attributes:
        target: ``s3://bucket/prefix`` or ``file:///folder`` (the same folder for all nodes); empty: there is no archive.
        endpoint: of an S3 that is not Amazon's, ``http://host:port``; empty: Amazon's, by the region.
        region: as S3 wants it; empty: from the AWS configuration.
        addressing: how the bucket is named: in the path or as part of the host; auto: as the library chooses.
        credentials_file: in the form of ``~/.aws/credentials``; empty: the usual chain (environment, ``~/.aws``, instance). profile: which of it.
        pack_size: how large an object of many chunks becomes. lone_size: a chunk of at least this becomes an object of its own.
        part_size: what is sent at once of an object. parallel: how many requests are under way at once.
        timeout_s: of one request without progress. tries: how often a request is tried.
        bytes_per_s, requests_per_s: what a node's jobs send and fetch at most; 0: as much as there is. (Reads of clients are not held up.)
        cache: how much of what was fetched stays on the disk; not part of what a copy holds.
        grace: objects younger than this are not deleted. rewrite_below: an object of which less than this share is needed is rewritten.
        rules: what goes to the archive; jobs: what is done by itself.
    """

    target: Annotated[str, Meta(description="s3://bucket/prefix, file:///folder, or empty")] = ""
    endpoint: Annotated[str, Meta(description="http://host:port or https://host; empty: Amazon")] = ""
    region: _Text = ""
    addressing: Annotated[Literal["auto", "path", "virtual"], Meta(description="auto, path or virtual")] = "auto"
    credentials_file: _File = None
    profile: _Text = ""
    pack_size: Annotated[SizeBytes, Meta(description="a size from 1MiB to 1GiB")] = SizeBytes(64 * MIB)
    lone_size: Annotated[SizeBytes, Meta(description="a size from 64KiB to 64MiB")] = SizeBytes(4 * MIB)
    part_size: Annotated[SizeBytes, Meta(description="a size from 5MiB to 64MiB")] = SizeBytes(16 * MIB)
    parallel: Annotated[int, Meta(ge=1, le=64, description="a number from 1 to 64")] = 4
    timeout_s: _Seconds = 30.0
    tries: Annotated[int, Meta(ge=1, le=20, description="a number from 1 to 20")] = 5
    bytes_per_s: Annotated[
        SizeBytes, Meta(description="bytes per second: 0 for no limit, or a size of at least 64KiB")
    ] = SizeBytes(0)
    requests_per_s: Annotated[float, Meta(ge=0, le=100_000, description="a number; 0: no limit")] = 0.0
    cache: Annotated[SizeBytes, Meta(description="a size; 0: none")] = SizeBytes(1024 * MIB)
    grace: Annotated[Duration, Meta(description=_DURATION_TEXT)] = Duration(86_400)
    rewrite_below: Annotated[float, Meta(ge=0, le=1, description="a share from 0 to 1")] = 0.5
    rules: Annotated[
        tuple[ArchiveRule, ...], Meta(description="tables [[archive.rules]] of prefix, action and conditions")
    ] = ()
    jobs: Annotated[
        tuple[ArchiveJobRule, ...], Meta(description="tables [[archive.jobs]] of job, every and between")
    ] = ()


class NodeConfig(Struct, frozen=True, kw_only=True):
    """Everything that an operator may set."""

    node: NodeSection
    cluster: ClusterSection
    http: HttpSection = HttpSection()
    peer: PeerSection = PeerSection()
    storage: StorageSection = StorageSection()
    log: LogSection = LogSection()
    limits: LimitsSection = LimitsSection()
    repair: RepairSection = RepairSection()
    retention: RetentionSection = RetentionSection()
    archive: ArchiveSection = ArchiveSection()


SECTIONS: dict[str, type[Struct]] = {
    "node": NodeSection,
    "http": HttpSection,
    "peer": PeerSection,
    "cluster": ClusterSection,
    "storage": StorageSection,
    "log": LogSection,
    "limits": LimitsSection,
    "repair": RepairSection,
    "retention": RetentionSection,
    "archive": ArchiveSection,
}
KEYS: dict[str, dict[str, Any]] = {
    section: get_type_hints(struct, include_extras=True) for section, struct in SECTIONS.items()
}
"""By section and key: the annotated type, whose description says what the key wants."""

TABLES: dict[tuple[str, str], type[Struct]] = {
    ("retention", "rules"): RetentionRule,
    ("archive", "rules"): ArchiveRule,
    ("archive", "jobs"): ArchiveJobRule,
}
"""Keys whose value is a list of tables, and what one table is."""

TABLE_KEYS: dict[tuple[str, str], dict[str, Any]] = {
    key: get_type_hints(struct, include_extras=True) for key, struct in TABLES.items()
}


def described(annotated: Any) -> str:
    """What a key of this type wants."""
    return str(annotated.__metadata__[0].description)


def wants(section: str, key: str) -> str:
    """What a key wants, as a message says it."""
    return described(KEYS[section][key])


def is_secret(section: str, key: str) -> bool:
    """Whether the key's value must not be shown."""
    return bool(KEYS[section][key].__origin__ is Secret)
