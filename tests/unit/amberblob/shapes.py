"""The shapes of everything that is encoded by msgspec, as plain data, and which changes of them older and newer nodes survive.

``python -m tests.unit.amberblob.shapes`` writes down those of the code that it finds. ``shapes_1.json`` is what it wrote for the
first version that promised to be upgraded; it is never edited.
"""

from __future__ import annotations

import json
from typing import Any

from msgspec import inspect

Shapes = dict[str, Any]


def shapes_of(roots: dict[str, Any]) -> Shapes:
    """``roots``: each root's shape; ``structs``: by name, those that are referred to."""
    structs: dict[str, Any] = {}
    return {
        "roots": {name: _shape(inspect.type_info(root), structs) for name, root in roots.items()},
        "structs": structs,
    }


def _shape(info: Any, structs: dict[str, Any]) -> Any:
    match info:
        case inspect.Metadata():
            return _shape(info.type, structs)
        case inspect.StructType():
            name = info.cls.__name__
            if name not in structs:
                structs[name] = {}
                structs[name].update(
                    tag=info.tag,
                    array=info.array_like,
                    fields=[
                        {"name": field.encode_name, "shape": _shape(field.type, structs), "required": field.required}
                        for field in info.fields
                    ],
                )
            return {"struct": name}
        case inspect.UnionType():
            return {"union": sorted((_shape(part, structs) for part in info.types), key=json.dumps)}
        case inspect.LiteralType():
            return {"literal": sorted(info.values)}
        case inspect.DictType():
            return {"dict": [_shape(info.key_type, structs), _shape(info.value_type, structs)]}
        case inspect.VarTupleType() | inspect.ListType() | inspect.CollectionType():
            return {"many": _shape(info.item_type, structs)}
        case inspect.TupleType():
            return {"tuple": [_shape(part, structs) for part in info.item_types]}
        case inspect.IntType():
            return {"int": [info.ge, info.gt, info.le, info.lt]}
        case _:
            return {"plain": type(info).__name__}


def problems(old: Shapes, new: Shapes, *, only_to_newer: frozenset[str] = frozenset()) -> list[str]:
    """Why nodes of the old and the new shapes would not understand each other. Empty: they do, both ways.

    ``only_to_newer``: structs and literals that are sent only to peers that know them (``amberblob.wire.SINCE``).
    """
    found: list[str] = []
    for name, shape in old["roots"].items():
        _compare(name, shape, new["roots"][name], found, only_to_newer)
    for name, struct in old["structs"].items():
        if name not in new["structs"]:
            found.append(f"{name} is gone")
        else:
            _compare_struct(name, struct, new["structs"][name], found, only_to_newer)
    return found


def _compare_struct(name: str, old: Any, new: Any, found: list[str], only_to_newer: frozenset[str]) -> None:
    if (old["tag"], old["array"]) != (new["tag"], new["array"]):
        found.append(f"{name}: its tag or layout changed")
    names = [field["name"] for field in new["fields"]]
    first = names[: len(old["fields"])] if old["array"] else names
    for at, field in enumerate(old["fields"]):
        if field["name"] not in first or (old["array"] and first[at] != field["name"]):
            found.append(f"{name}.{field['name']}: is gone or has moved; new fields go to the end")
            return
        now = new["fields"][names.index(field["name"])]
        if now["required"] and not field["required"]:
            found.append(f"{name}.{field['name']}: older nodes may leave it out")
        _compare(f"{name}.{field['name']}", field["shape"], now["shape"], found, only_to_newer)
    known = {field["name"] for field in old["fields"]}
    found += [
        f"{name}.{field['name']}: is new and has no default"
        for field in new["fields"]
        if field["name"] not in known and field["required"]
    ]


def _compare(where: str, old: Any, new: Any, found: list[str], only_to_newer: frozenset[str]) -> None:
    if old == new:
        return
    if old.keys() == new.keys() == {"union"}:
        if gone := [part for part in old["union"] if part not in new["union"]]:
            found.append(f"{where}: {gone} is gone")
        for part in new["union"]:
            if part not in old["union"] and part.get("struct") not in only_to_newer:
                found.append(f"{where}: older nodes cannot read {part}; see amberblob.wire.SINCE")
    elif old.keys() == new.keys() == {"literal"}:
        if removed := set(old["literal"]) - set(new["literal"]):
            found.append(f"{where}: {sorted(removed)} is gone")
        if unknown := set(new["literal"]) - set(old["literal"]) - only_to_newer:
            found.append(f"{where}: older nodes cannot read {sorted(unknown)}")
    elif old.keys() == new.keys() and old.keys() & {"many", "dict", "tuple"}:
        [before], [after] = old.values(), new.values()
        pairs = [(before, after)] if isinstance(before, dict) else list(zip(before, after, strict=False))
        if isinstance(before, list) and len(before) != len(after):
            found.append(f"{where}: has another length")
        for part, now in pairs:
            _compare(where, part, now, found, only_to_newer)
    else:
        found.append(f"{where}: was {json.dumps(old)}, is {json.dumps(new)}")


def current() -> Shapes:
    """Those of this code."""
    from amberblob import wire
    from chunkstore import codec
    from registry import routes

    return shapes_of(
        {
            "requests": wire.Request,
            "replies": wire.Reply,
            "journal": codec.Batch,
            "cluster": routes.ClusterInfo,
            "node": routes.NodeInfo,
            "alive": routes.Liveness,
            "route": routes.Route,
            "cache": routes.RouteTable,
        }
    )


if __name__ == "__main__":
    parts = []
    for part, shapes in current().items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(shape)}" for name, shape in sorted(shapes.items()))
        parts.append(f" {json.dumps(part)}: {{\n{lines}\n }}")
    print("{\n" + ",\n".join(parts) + "\n}")
