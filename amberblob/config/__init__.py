"""A node's configuration: a TOML file, overridden key by key from the environment.

``[cluster] replicas`` is ``AMBERBLOB_CLUSTER_REPLICAS`` there, and so on for every key; lists are separated by
commas, ``[[retention.rules]]`` is a JSON array. Secrets can be files (``secret_file``, ``token_file``). Relative paths
count from the configuration file's folder. Every mistake is a :class:`~amberblob.errors.ConfigError` that tells where,
what was seen, and what is wanted.

``deploy/node.example.toml`` shows every key. ``sections`` has them as structs, ``values`` the kinds of values that TOML
does not have, ``loader`` reads, ``checks`` looks at the whole, ``render`` writes.
"""

from amberblob.config.loader import load_config
from amberblob.config.render import render_config
from amberblob.config.sections import (
    ArchiveAction,
    ArchiveJobRule,
    ArchiveRule,
    ArchiveSection,
    ClusterSection,
    HttpSection,
    LimitsSection,
    LogSection,
    NodeConfig,
    NodeSection,
    PeerSection,
    RepairSection,
    RetentionRule,
    RetentionSection,
    StorageSection,
)
from amberblob.config.values import (
    Duration,
    Keep,
    Secret,
    SizeBytes,
    format_duration,
    format_size,
    parse_duration,
    parse_hours,
    parse_size,
    split_address,
)

__all__ = [
    "ArchiveAction",
    "ArchiveJobRule",
    "ArchiveRule",
    "ArchiveSection",
    "ClusterSection",
    "Duration",
    "HttpSection",
    "Keep",
    "LimitsSection",
    "LogSection",
    "NodeConfig",
    "NodeSection",
    "PeerSection",
    "RepairSection",
    "RetentionRule",
    "RetentionSection",
    "Secret",
    "SizeBytes",
    "StorageSection",
    "format_duration",
    "format_size",
    "load_config",
    "parse_duration",
    "parse_hours",
    "parse_size",
    "render_config",
    "split_address",
]
