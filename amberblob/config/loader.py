"""Gathers a configuration from its file and the environment, and converts it."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from amberblob.config.checks import Checks
from amberblob.config.sections import KEYS, SECTIONS, TABLE_KEYS, TABLES, NodeConfig, described, is_secret, wants
from amberblob.config.values import (
    Duration,
    Keep,
    SizeBytes,
    check_duration,
    parse_duration,
    parse_keep,
    parse_size,
    without_password,
)
from amberblob.errors import ConfigError

ENVIRONMENT_PREFIX = "AMBERBLOB_"
# Kubernetes puts such variables beside a service that happens to be called amberblob-http or the like.
_KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)\Z")


def load_config(path: Path, environ: Mapping[str, str]) -> NodeConfig:
    """The configuration of ``path``, overridden from ``environ``; checked as a whole.

    Raises:
        ConfigError: naming the file or variable, the key, what was seen, and what it wants.
    """
    return _Loader(path, environ).load()


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as it was found, and where."""

    value: Any
    source: str
    from_environment: bool = False

    def error(self, section: str, key: str, problem: str = "") -> ConfigError:
        """What is wrong with this value; ``problem`` says more than what the key wants in general."""
        shown = "***" if is_secret(section, key) else without_password(repr(self.value))
        return ConfigError(f"{self.source}: [{section}] {key} = {shown}: {problem or 'wants ' + wants(section, key)}.")


_Values = dict[str, dict[str, _Given]]


class _Loader:
    """One run of :func:`load_config`."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self._path = path
        self._environ = environ
        self._given: _Values = {section: {} for section in SECTIONS}

    def load(self) -> NodeConfig:
        self._read_file()
        self._read_environment()
        self._read_secret("http", "token")
        self._read_secret("cluster", "secret")
        config = NodeConfig(**{section: self._section(section) for section in SECTIONS})
        Checks(self._path, self._error).check(config)
        return config

    # -- gathering

    def _read_file(self) -> None:
        try:
            document = tomllib.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._path}: cannot be read: {error}.") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{self._path}: is not valid TOML: {error}.") from error
        for section, values in document.items():
            if section not in SECTIONS:
                raise ConfigError(f"{self._path}: unknown section [{section}]{_hint(section, SECTIONS, '[{}]')}.")
            if not isinstance(values, dict):
                raise ConfigError(f"{self._path}: {section} = {values!r}: wants to be a section, [{section}].")
            for key, value in values.items():
                if key not in KEYS[section]:
                    raise ConfigError(f"{self._path}: [{section}] has no key {key!r}{_hint(key, KEYS[section])}.")
                self._given[section][key] = _Given(value, str(self._path))

    def _read_environment(self) -> None:
        for section, keys in KEYS.items():
            prefix = f"{ENVIRONMENT_PREFIX}{section.upper()}_"
            by_name = {prefix + key.upper(): key for key in keys}
            for name, value in self._environ.items():
                if name in by_name:
                    key = by_name[name]
                    self._given[section][key] = _Given(_listed(value, keys[key]), f"environment {name}", True)
                elif name.startswith(prefix) and not _KUBERNETES.search(name):
                    raise ConfigError(f"environment {name}: there is no such key{_hint(name, by_name)}.")

    def _read_secret(self, section: str, key: str) -> None:
        """Put the content of ``<key>_file`` under ``key``. The environment goes before the file."""
        given = self._given[section]
        text, file = given.get(key), given.get(f"{key}_file")
        if text is not None and file is not None and text.value and file.value:
            if text.from_environment == file.from_environment:
                raise file.error(section, f"{key}_file", f"give either {key} or {key}_file, not both")
            if text.from_environment:
                del given[f"{key}_file"]
                return
        if file is None or not file.value:
            given.pop(f"{key}_file", None)
            return
        path = self._absolute(self._convert(section, f"{key}_file", file))
        try:
            content = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise file.error(section, f"{key}_file", f"cannot be read: {error}") from error
        if not content:
            raise file.error(section, f"{key}_file", "the file is empty")
        given[key] = _Given(content, f"{file.source}: {path}")

    # -- converting

    def _section(self, section: str) -> Any:
        values: dict[str, Any] = {}
        for key, given in self._given[section].items():
            value = self._convert(section, key, given)
            values[key] = self._absolute(value) if isinstance(value, Path) else value
        for field in msgspec.structs.fields(SECTIONS[section]):
            if field.required and field.name not in values:
                raise ConfigError(
                    f"{self._path}: [{section}] {field.name} is missing: wants {wants(section, field.name)}. "
                    f"({ENVIRONMENT_PREFIX}{section.upper()}_{field.name.upper()} in the environment does as well.)"
                )
        return SECTIONS[section](**values)

    def _convert(self, section: str, key: str, given: _Given) -> Any:
        if (section, key) in TABLES:
            return tuple(self._tables(section, key, given))
        try:
            return msgspec.convert(
                given.value, KEYS[section][key], strict=not given.from_environment, dec_hook=_from_text
            )
        except (msgspec.ValidationError, ValueError) as error:
            raise given.error(section, key) from error

    def _tables(self, section: str, key: str, given: _Given) -> Iterator[Any]:
        tables = given.value
        if given.from_environment:
            try:
                tables = json.loads(tables)
            except ValueError as error:
                raise given.error(section, key, f"is no JSON: {error}; wants a JSON array of objects") from error
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise given.error(section, key)
        known = TABLE_KEYS[section, key]
        for number, table in enumerate(tables, 1):
            where = f"{given.source}: [[{section}.{key}]] no. {number}"
            values: dict[str, Any] = {}
            for name, value in table.items():
                if name not in known:
                    raise ConfigError(f"{where} has no key {name!r}{_hint(name, known)}.")
                try:
                    values[name] = msgspec.convert(value, known[name], dec_hook=_from_text)
                except (msgspec.ValidationError, ValueError) as error:
                    raise ConfigError(f"{where}: {name} = {value!r}: wants {described(known[name])}.") from error
            for field in msgspec.structs.fields(TABLES[section, key]):
                if field.required and field.name not in values:
                    raise ConfigError(f"{where}: {field.name} is missing: wants {described(known[field.name])}.")
            yield TABLES[section, key](**values)

    def _absolute(self, path: Path) -> Path:
        return (self._path.parent / path.expanduser()).absolute()

    def _error(self, section: str, key: str, value: Any, problem: str = "") -> ConfigError:
        """As :meth:`_Given.error`, also for a value that is the default."""
        given = self._given[section].get(key) or _Given(value, f"{self._path} (default)")
        return given.error(section, key, problem)


def _from_text(kind: type, value: Any) -> Any:
    """The types that TOML does not have. Raises ValueError."""
    if kind is SizeBytes:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return SizeBytes(value)
        return SizeBytes(parse_size(_text(value)))
    if kind is Duration or kind is Keep:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return kind(check_duration(value))
        return kind((parse_duration if kind is Duration else parse_keep)(_text(value)))
    if kind is Path and not _text(value):
        raise ValueError("empty")
    return kind(_text(value))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _listed(value: str, annotated: Any) -> Any:
    """A variable's value; where a list is wanted, its parts between commas."""
    if annotated.__origin__ == tuple[str, ...]:
        return [part for part in (part.strip() for part in value.split(",")) if part]
    return value


def _hint(seen: str, known: Iterable[str], shape: str = "{}") -> str:
    names = list(known)
    near = difflib.get_close_matches(seen, names, n=1, cutoff=0.5)
    if near:
        return f" (did you mean {shape.format(near[0])}?)"
    return " (there are " + ", ".join(shape.format(name) for name in names) + ")"
