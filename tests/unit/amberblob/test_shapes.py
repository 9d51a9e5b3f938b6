"""What nodes and disks of the version before wrote is read, and what this version writes they can read (rfc/0015)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from amberblob import wire
from amberblob.message import Message
from amberblob.wire import WIRE_VERSIONS, Promised, Query, WireVersions
from tests.unit.amberblob.shapes import Shapes, current, problems

FIRST: Shapes = json.loads(Path(__file__).with_name("shapes_1.json").read_text())

NEW_ANSWERS = frozenset(
    {
        "CopiesReply",
        "ArchivedLines",
        "ArchivedBlobReply",
        "FoundArchived",
        "Condemned",
        "ArchiveJobReply",
        "ArchiveInfoReply",
        "ObjectUsesReply",
    }
)
"""Answers, and words in answers, that only those are told who asked something that older nodes cannot ask."""

NEW_ENTRIES = frozenset({"Archived", "Evicted"})
"""Entries of journals that only nodes with an archive write. An older version would not open their databases either."""


def test_the_first_version_and_this_one_understand_each_other():
    if WIRE_VERSIONS.oldest > 1:
        pytest.skip("wire version 1 is not spoken any more: write the shapes of the oldest one down instead")
    assert problems(FIRST, current(), only_to_newer=frozenset(wire.SINCE) | NEW_ANSWERS | NEW_ENTRIES) == []


def test_what_is_only_sent_to_newer_peers_exists_and_is_spoken():
    requests = {part["struct"] for part in current()["roots"]["requests"]["union"]}
    assert set(wire.SINCE) <= requests
    assert all(WIRE_VERSIONS.oldest < since <= WIRE_VERSIONS.newest for since in wire.SINCE.values())


def changed(change: Any) -> list[str]:
    new = copy.deepcopy(FIRST)
    change(new["structs"], new["roots"])
    return problems(FIRST, new)


FIELD = {"name": "new", "shape": {"plain": "StrType"}, "required": False}


def test_a_field_at_the_end_with_a_default_is_no_problem():
    assert changed(lambda structs, roots: structs["Query"]["fields"].append(FIELD)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda structs, roots: structs["Query"]["fields"].append(FIELD | {"required": True}), "has no default"),
        (lambda structs, roots: structs["Query"]["fields"].insert(1, FIELD), "go to the end"),
        (lambda structs, roots: structs["Query"]["fields"].pop(), "is gone"),
        (lambda structs, roots: structs["Query"]["fields"][-1].update(required=True), "may leave it out"),
        (lambda structs, roots: structs["Query"].update(tag="??"), "tag"),
        (lambda structs, roots: roots["requests"]["union"].append({"struct": "Join"}), "older nodes cannot read"),
        (lambda structs, roots: roots["requests"]["union"].pop(), "is gone"),
        (lambda structs, roots: structs.pop("Query"), "Query is gone"),
        (
            lambda structs, roots: field(structs["Refused"], "reason")["literal"].append("busy"),
            "older nodes cannot read",
        ),
        (lambda structs, roots: field(structs["Ping"], "now_ms").update(int=[0, None, None, None]), "now_ms: was"),
    ],
)
def test_other_changes_are_noticed(change, said):
    [problem] = changed(change)
    assert said in problem


def field(struct: Any, name: str) -> Any:
    [shape] = [field["shape"] for field in struct["fields"] if field["name"] == name]
    return shape


class LaterQuery(Message, frozen=True, array_like=True, kw_only=True, tag="Q"):
    """As it may look one day."""

    slot: int
    path: str
    epoch: int
    known: None = None
    later: str = "as before"


def test_fields_at_the_end_are_skipped_and_filled_in():
    later = LaterQuery(slot=1, path="a", epoch=2, later="something else")
    assert wire.decode_request(msgspec.msgpack.encode(later)) == Query(slot=1, path="a", epoch=2)
    earlier = msgspec.msgpack.decode(wire.encode(Query(slot=1, path="a", epoch=2)), type=LaterQuery)
    assert earlier.later == "as before"


def test_a_request_that_nobody_knows_is_an_error_and_not_another_request():
    with pytest.raises(msgspec.ValidationError, match=r"'\?\?'"):
        wire.decode_request(msgspec.msgpack.encode(["??", 1, "a", 2]))
    with pytest.raises(msgspec.ValidationError):
        wire.decode_reply(msgspec.msgpack.encode(["??"]))
    assert Promised.__struct_fields__[0] == "incarnation"


@pytest.mark.parametrize(
    ("a", "b", "common"),
    [((1, 1), (1, 1), 1), ((1, 2), (2, 3), 2), ((1, 2), (3, 4), None), ((1, 5), (2, 3), 3), ((2, 2), (1, 1), None)],
)
def test_common_versions(a, b, common):
    assert WireVersions(*a).common(WireVersions(*b)) == common
    assert WireVersions(*b).common(WireVersions(*a)) == common


def test_how_versions_are_said():
    assert (str(WireVersions(1, 1)), str(WireVersions(1, 3))) == ("wire version 1", "wire versions 1 to 3")
