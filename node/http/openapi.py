"""The interface as an OpenAPI 3.1 document: data, built once."""

from __future__ import annotations

from functools import cache
from typing import Any

from msgspec.json import schema_components

from amberblob.archivejobs import JobWanted
from amberblob.limits import LIST_LIMIT_MAX, META_BYTES_MAX, PATH_BYTES_MAX, VERSION_MAX, WRITE_ID_CHARS_MAX
from node.archive.status import ArchiveView, JobStarted, JobsView, JobView
from node.http.target import Resource
from node.wholeness import CONDITIONS

API_VERSION = "1"

Schema = dict[str, Any]

_REF = "#/components/schemas/{name}"

_VERSION: Schema = {"type": "integer", "minimum": 1, "maximum": VERSION_MAX}
_OFFSET: Schema = {"type": "integer", "minimum": 0}
_TEXT: Schema = {"type": "string"}
_TIME: Schema = {"type": "string", "format": "date-time"}
_HASH: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "blake3 of the content"}
_ULID: Schema = {"type": "string", "pattern": "^[0-7][0-9A-HJKMNP-TV-Z]{25}$"}

_STATUS_TITLES = {
    "400": "The request cannot be understood: bad-path, path-too-long, bad-parameter, bad-header, bad-range, incomplete-body, …",
    "401": "unauthorized: the cluster asks for its token",
    "403": "reserved-path",
    "404": "no-such-object, no-such-version, nothing-to-restore, no-such-job, no-such-resource",
    "405": "method-not-allowed",
    "408": "request-timeout: the client stopped sending",
    "409": "version-conflict: the version is not greater than every one before; membership-conflict: not as the cluster is now; "
    "no-archive: none is configured; job-conflict: such a job is running",
    "412": "precondition-failed; the headers are the current head's, X-Amber-Version 0 when there is none",
    "416": "range-not-satisfiable; Content-Range tells the size",
    "417": "expectation-failed",
    "422": "digest-mismatch: nothing was stored",
    "431": "header-too-large",
    "500": "internal-error",
    "503": "quorum-unavailable, stale-route, not-ready, shutting-down: nothing was applied; Retry-After says when to try again",
    "504": "outcome-unknown: may yet be applied; retry with the same X-Amber-Write-Id",
    "507": "insufficient-storage",
}


@cache
def document() -> dict[str, Any]:
    """The whole document. Shared: do not change it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "AmberBlob",
            "version": API_VERSION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "A distributed, replicated, versioned blob store. "
            "Errors are application/problem+json whose type is a stable short code. "
            "/blobs is an alias of /objects everywhere.",
        },
        "paths": {
            Resource.OBJECT.value: _object_item(),
            "/blobs/{path}": {"$ref": "#/paths/~1objects~1{path}"},
            Resource.OBJECTS.value: _objects_item(),
            "/blobs": {"$ref": "#/paths/~1objects"},
            Resource.HEALTHZ.value: _node_item("healthz", "The process lives.", (), public=True),
            Resource.READYZ.value: _node_item(
                "readyz", "The node serves reads and writes; the reason why not otherwise.", ("503",), public=True
            ),
            Resource.METRICS.value: _node_item(
                "metrics", "The process's numbers for Prometheus.", ("401",), media="text/plain"
            ),
            Resource.CLUSTER.value: _cluster_item(),
            Resource.HEAL.value: _heal_item(),
            Resource.MEMBERSHIP.value: _membership_item(),
            Resource.ARCHIVE.value: _archive_item(),
            Resource.ARCHIVE_JOBS.value: _archive_jobs_item(),
            Resource.ARCHIVE_JOB.value: _archive_job_item(),
            Resource.OPENAPI.value: _node_item("openapi", "This document.", ("401",)),
        },
        "components": {
            "schemas": _schemas() | _archive_schemas(),
            "headers": _headers(),
            "parameters": {"path": _path_parameter()},
            "responses": {f"Problem{status}": _problem(status, title) for status, title in _STATUS_TITLES.items()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _object_item() -> Schema:
    content = {"*/*": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}}
    read_responses: Schema = {
        "200": {
            "description": "The version; with ?versions or ?explain a JSON document.",
            "headers": _object_headers(),
            "content": content
            | {
                "application/json": {
                    "schema": {"anyOf": [_ref("schemas", "History"), {"type": "object", "description": "?explain"}]}
                }
            },
        },
        "206": {
            "description": "The part of it that was asked for.",
            "headers": _object_headers() | {"Content-Range": _header("bytes first-last/size")},
            "content": content,
        },
        "304": {"description": "The client's copy is good.", "headers": _object_headers()},
        **_problems("400", "401", "403", "404", "412", "416", "500", "503"),
    }
    head_responses = {
        status: ({**response, "content": {}} if "content" in response else response)
        for status, response in read_responses.items()
    }
    return {
        "parameters": [
            {"$ref": "#/components/parameters/path"},
            _header_parameter("X-Amber-Request-Id", "Kept if sane."),
        ],
        "get": {
            "operationId": "get",
            "summary": "Read a version, whole or a part of it; or the object's history.",
            "parameters": _read_parameters(),
            "responses": read_responses,
        },
        "head": {
            "operationId": "head",
            "summary": "The same without a body.",
            "parameters": _read_parameters(),
            "responses": head_responses,
        },
        "put": {
            "operationId": "put",
            "summary": "Store the body as a new version.",
            "parameters": [
                _query("version", "The number of the new version; greater than every one before.", _VERSION),
                *_condition_parameters(),
                _header_parameter("X-Amber-Meta-*", f"Kept with the version; {META_BYTES_MAX} bytes together at most."),
                _header_parameter("X-Amber-Content-Blake3", "The body's blake3; verified.", _HASH),
                _header_parameter("Content-Digest", "RFC 9530: sha-256, sha-512 or blake3; verified."),
            ],
            "requestBody": {"description": "Any bytes, Content-Length or chunked.", "content": content},
            "responses": {
                "201": {
                    "description": "Durable on a write quorum.",
                    "headers": _object_headers() | {"Location": _header("Where the object is.")},
                    "content": {"application/json": {"schema": _ref("schemas", "Written")}},
                },
                **_problems("400", "401", "403", "408", "409", "412", "417", "422", "431", "503", "504", "507"),
            },
        },
        "delete": {
            "operationId": "delete",
            "summary": "Tombstone the object, or one version.",
            "parameters": [_query("version", "Only this version.", _VERSION), *_condition_parameters()],
            "responses": {
                "204": {"description": "Done, durable on a write quorum.", "headers": _common_headers()},
                **_problems("400", "401", "403", "404", "409", "412", "503", "504"),
            },
        },
        "post": {
            "operationId": "restore",
            "summary": "Lift a tombstone.",
            "parameters": [
                _query(
                    "restore",
                    "A version, or nothing: what the last delete took away.",
                    _VERSION,
                    required=True,
                    bare=True,
                ),
                *_condition_parameters(),
            ],
            "responses": {
                "200": {
                    "description": "The head afterwards.",
                    "headers": _object_headers(),
                    "content": {"application/json": {"schema": _ref("schemas", "Written")}},
                },
                **_problems("400", "401", "403", "404", "409", "412", "503", "504"),
            },
        },
    }


def _objects_item() -> Schema:
    parameters = [
        _query("prefix", "Only names that begin so.", _TEXT),
        _query("delimiter", "Fold what follows its next occurrence after the prefix into prefixes.", _TEXT),
        _query(
            "limit",
            "Entries of a page.",
            {"type": "integer", "minimum": 1, "maximum": LIST_LIMIT_MAX, "default": LIST_LIMIT_MAX},
        ),
        _query("cursor", "Of the page before.", _TEXT),
        _query("tombstoned", "1: deleted objects too.", {"enum": [0, 1]}),
        _at_parameter(),
    ]
    responses: Schema = {
        "200": {
            "description": "In byte order of the UTF-8 names. Complete: never silently short.",
            "headers": _common_headers(),
            "content": {"application/json": {"schema": _ref("schemas", "Listing")}},
        },
        **_problems("400", "401", "503"),
    }
    return {
        "get": {
            "operationId": "list",
            "summary": "A page of the objects.",
            "parameters": parameters,
            "responses": responses,
        },
        "head": {
            "operationId": "listHead",
            "summary": "The same without a body.",
            "parameters": parameters,
            "responses": {**responses, "200": {**responses["200"], "content": {}}},
        },
    }


def _node_item(
    operation: str,
    summary: str,
    problems: tuple[str, ...],
    *,
    public: bool = False,
    media: str = "application/json",
    schema: Schema | None = None,
) -> Schema:
    found: Schema = {"description": summary, "headers": _common_headers()}
    get: Schema = {
        "operationId": operation,
        "summary": summary,
        "responses": {"200": {**found, "content": {media: {"schema": schema or {}}}}, **_problems(*problems)},
    }
    head: Schema = {
        "operationId": f"{operation}Head",
        "summary": "The same without a body.",
        "responses": {"200": found, **_problems(*problems)},
    }
    if public:
        get["security"] = head["security"] = []
    return {"get": get, "head": head}


def _cluster_item() -> Schema:
    item = _node_item(
        "cluster",
        "Nodes, zones, disks, epochs, slots by state, how the copies are and what is left to heal.",
        ("400", "401", "503"),
        schema=_ref("schemas", "Cluster"),
    )
    item["parameters"] = [
        _query(
            "slots",
            "heal.by_slot tells of every slot (1), or of those that are not whole or not compared (unhealed).",
            {"enum": ["", "0", "1", "unhealed"]},
        ),
        _query(
            "since",
            "From when on comparisons of copies count, as POST /cluster/heal told; else those of the last two rounds do.",
            _TEXT,
        ),
    ]
    return item


def _heal_item() -> Schema:
    asked = {
        "since": {**_TIME, "description": "For GET /cluster?since=: heal.slots_to_compare counts from here."},
        "nodes": {"type": "array", "items": _TEXT},
        "silent_nodes": {"type": "array", "items": _TEXT, "description": "Could not be asked."},
    }
    return {
        "post": {
            "operationId": "heal",
            "summary": "Have every node compare its copies with the others now, and mend what they lack.",
            "responses": {
                "202": {
                    "description": "They have begun.",
                    "headers": _common_headers(),
                    "content": {"application/json": {"schema": _struct(asked)}},
                },
                **_problems("401", "503"),
            },
        }
    }


def _membership_item() -> Schema:
    wanted: Schema = {
        "type": "object",
        "required": ["action", "nodes"],
        "additionalProperties": False,
        "properties": {
            "action": {"enum": ["join", "drain", "remove", "forget"]},
            "nodes": {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 64},
            "dry_run": {"type": "boolean", "description": "Plan, and change nothing."},
            "force": {
                "type": "boolean",
                "description": "Although it leaves fewer copies, or the node cannot be reached.",
            },
        },
    }
    count: Schema = {"type": "integer", "minimum": 0}
    planned = {
        "action": _TEXT,
        "dry_run": {"type": "boolean"},
        "generation": count,
        "voters": {**count, "description": "Copies of each slot afterwards."},
        "moves": {**count, "description": "Slots that are to move."},
        "copies": {**count, "description": "Copies that come to be where none is now."},
        "warnings": {"type": "array", "items": _TEXT},
        "nodes": {"type": "array", "items": {"type": "object"}},
    }
    content = {"application/json": {"schema": _struct(planned)}}
    return {
        "post": {
            "operationId": "changeMembership",
            "summary": "Have nodes join, drain, or be removed; the slots move by themselves, GET /cluster tells how far they are.",
            "requestBody": {"required": True, "content": {"application/json": {"schema": wanted}}},
            "responses": {
                "200": {"description": "The plan of a dry run.", "headers": _common_headers(), "content": content},
                "202": {"description": "It is decided.", "headers": _common_headers(), "content": content},
                **_problems("400", "401", "404", "409", "503"),
            },
        }
    }


def _archive_item() -> Schema:
    return {
        "get": {
            "operationId": "archive",
            "summary": "The archive: its target, whether it is reached, what each node sent there and evicted, and all together.",
            "responses": {
                "200": _json("How it is.", _schema_of(ArchiveView)),
                **_problems("401", "409", "503"),
            },
        }
    }


def _archive_jobs_item() -> Schema:
    return {
        "get": {
            "operationId": "archiveJobs",
            "summary": "Jobs of the archive, newest first: each node's part, and the sums.",
            "responses": {"200": _json("The jobs.", _schema_of(JobsView)), **_problems("401", "409", "503")},
        },
        "post": {
            "operationId": "startArchiveJob",
            "summary": "Begin a job on every node that can be reached; how far it is tells GET /archive/jobs/{id}.",
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _schema_of(JobWanted)}},
            },
            "responses": {
                "202": _json("It has begun.", _schema_of(JobStarted)),
                **_problems("400", "401", "409", "503"),
            },
        },
    }


def _archive_job_item() -> Schema:
    answer = _schema_of(JobView)
    return {
        "parameters": [{"name": "id", "in": "path", "required": True, "description": "The job's id.", "schema": _ULID}],
        "get": {
            "operationId": "archiveJob",
            "summary": "One job: each node's part, the sums, and the slots that nobody has done.",
            "responses": {"200": _json("The job.", answer), **_problems("400", "401", "404", "409", "503")},
        },
        "delete": {
            "operationId": "stopArchiveJob",
            "summary": "Stop a job on every node that can be reached. What it did stays done.",
            "responses": {"202": _json("It is stopped.", answer), **_problems("400", "401", "404", "409", "503")},
        },
    }


def _json(description: str, schema: Schema) -> Schema:
    return {
        "description": description,
        "headers": _common_headers(),
        "content": {"application/json": {"schema": schema}},
    }


def _schema_of(kind: type[Any]) -> Schema:
    """Of a struct that is sent as it is; the structs within it are components."""
    (schema,), _ = schema_components([kind], ref_template=_REF)
    return dict(schema)


def _archive_schemas() -> Schema:
    """The structs of the archive's answers, as components."""
    _, components = schema_components([ArchiveView, JobsView, JobView, JobWanted, JobStarted], ref_template=_REF)
    return dict(components)


def _heal_schema() -> Schema:
    count: Schema = {"type": "integer", "minimum": 0}
    conditions = list(CONDITIONS)
    known: Schema = {
        "state": {
            "enum": [*conditions, "unknown"],
            "description": "That of the worst slot; unknown: no route table yet.",
        },
        "healed": {"type": "boolean", "description": "Every slot is whole: all copies agree and hold every byte."},
    }
    more: Schema = {
        "at": _TIME,
        "since": {"type": ["string", "null"], "format": "date-time"},
        "slots": {"type": "object", "properties": {state: count for state in conditions}},
        "slots_to_compare": {**count, "description": "Not compared since then, or lacking something."},
        "objects": count,
        "objects_below_target": {**count, "description": "With fewer good copies than there should be, at most."},
        "bytes_below_target": {**count, "description": "Bytes that copies lack, once for each copy."},
        "versions_waiting": {"type": ["integer", "null"]},
        "bytes_waiting": {"type": ["integer", "null"], "description": "The same as bytes_below_target."},
        "undecided": count,
        "damaged": {**count, "description": "Versions of which a copy failed its hash."},
        "unrecoverable": {
            **count,
            "description": "Versions of which no replica could give some bytes.",
        },
        "rate_bytes_per_s": {"type": ["integer", "null"], "description": "Fetched lately; null: not known (yet)."},
        "seconds_left": {"type": ["number", "null"], "description": "null: not known."},
        "last_full_compare": {"type": ["string", "null"], "format": "date-time"},
        "last_full_scrub": {"type": ["string", "null"], "format": "date-time"},
        "silent_nodes": {"type": "array", "items": _TEXT, "description": "Hold copies and did not answer."},
        "full_nodes": {
            "type": "array",
            "items": _TEXT,
            "description": "Their disks refuse new bytes: nothing is mended there.",
        },
        "target": {**count, "description": "How many copies there are to be of each slot."},
        "slots_below_target": {**count, "description": "With fewer voters than that: the cluster has too few nodes."},
        "fewest_copies": {**count, "description": "How many voters the slot has that has fewest."},
        "slots_moving": {**count, "description": "On their way to other nodes."},
        "bytes_moving": {**count, "description": "What the new copies of those lack."},
        "by_slot": {"type": "array", "items": {"type": "object"}, "description": "Only with ?slots."},
    }
    return _struct({**known, **more}, optional=tuple(more))


def _schemas() -> Schema:
    written = {
        "path": _TEXT,
        "version": _VERSION,
        "blob_id": _ULID,
        "size": _OFFSET,
        "etag": _HASH,
        "created_at": _TIME,
    }
    listed = written | {"content_type": _TEXT}
    line = {name: schema for name, schema in listed.items() if name != "path"} | {
        "meta": {"type": "object", "additionalProperties": _TEXT},
        "tombstoned": {"type": "boolean"},
        "tombstoned_at": {"type": ["string", "null"], "format": "date-time"},
        "is_head": {"type": "boolean"},
    }
    history_line = _struct(line)
    problem = {
        "type": {"type": "string", "description": "A stable short code."},
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was seen, and what to do next."},
        "request_id": _TEXT,
    }
    return {
        "Problem": {**_struct(problem), "additionalProperties": True},
        "Written": _struct(written),
        "History": _struct({"path": _TEXT, "versions": {"type": "array", "items": history_line}}),
        "Cluster": {**_struct({"heal": _heal_schema()}), "additionalProperties": True},
        "Listed": _struct(listed | {"tombstoned": {"type": "boolean"}}, optional=("tombstoned",)),
        "Listing": _struct(
            {
                "objects": {"type": "array", "items": _ref("schemas", "Listed")},
                "prefixes": {"type": "array", "items": _TEXT},
                "cursor": {"type": "string", "description": "Opaque; absent at the end."},
            },
            optional=("cursor",),
        ),
    }


def _headers() -> Schema:
    return {
        "X-Amber-Request-Id": _header("Names the request in the node's log."),
        "ETag": _header('"<blake3 of the content, 64 hex>"'),
        "X-Amber-Version": _header("The version.", _VERSION),
        "X-Amber-Blob-Id": _header("Unique per PUT.", _ULID),
        "X-Amber-Created-At": _header(
            "When this version was made, to the millisecond.", {"type": "string", "format": "date-time"}
        ),
        "Last-Modified": _header("When the version was made."),
        "X-Amber-Meta": _header("As given by PUT."),
        "X-Amber-Tombstoned-At": _header("When the version was deleted, if it is.", _TIME),
        "X-Amber-Error": _header("The problem's type once more: HEAD's answer has no document."),
        "Retry-After": _header("Seconds.", {"type": "integer"}),
    }


def _path_parameter() -> Schema:
    return {
        "name": "path",
        "in": "path",
        "required": True,
        "description": f"1 to {PATH_BYTES_MAX} bytes of UTF-8, percent-encoded; '/' may stand as it is. Not below .amber/.",
        "schema": {"type": "string", "minLength": 1, "maxLength": PATH_BYTES_MAX},
    }


def _read_parameters() -> list[Schema]:
    return [
        _query("version", "This version, tombstoned or not.", _VERSION),
        _at_parameter(),
        _query("start", "The first byte.", _OFFSET),
        _query("end", "The byte after the last.", _OFFSET),
        _query("versions", "Every version instead of the content.", {"enum": ["", "1"]}, bare=True),
        _query("explain", "Where the object is instead of the content.", {"enum": ["", "1"]}, bare=True),
        _header_parameter("Range", "One range of bytes; with several the whole is served."),
        _header_parameter("If-Range", "The ETag or date of which Range speaks."),
        _header_parameter("If-Match", "Entity tags or *."),
        _header_parameter("If-None-Match", "Entity tags or *."),
        _header_parameter("If-Modified-Since", "An HTTP date."),
        _header_parameter("If-Unmodified-Since", "An HTTP date."),
        _header_parameter(
            "X-Amber-Consistency",
            "local: this node's replica, may be stale.",
            {"enum": ["strong", "local"], "default": "strong"},
        ),
    ]


def _condition_parameters() -> list[Schema]:
    return [
        _header_parameter("If-None-Match", "Only if nothing is there.", {"const": "*"}),
        _header_parameter("If-Match", "Only if the head has one of these entity tags; *: any head."),
        _header_parameter("X-Amber-If-Version", "Only if this is the head's version; 0: absent.", _OFFSET),
        _header_parameter(
            "X-Amber-Write-Id",
            "The same write id on the same path is applied once; a retry gets the first answer.",
            {"type": "string", "minLength": 1, "maxLength": WRITE_ID_CHARS_MAX},
        ),
    ]


def _at_parameter() -> Schema:
    return _query("at", "As it was at this time: RFC 3339 or Unix seconds.", _TEXT)


def _query(name: str, description: str, schema: Schema, *, required: bool = False, bare: bool = False) -> Schema:
    parameter: Schema = {
        "name": name,
        "in": "query",
        "description": description,
        "required": required,
        "schema": schema,
    }
    if bare:
        parameter["allowEmptyValue"] = True
    return parameter


def _header_parameter(name: str, description: str, schema: Schema | None = None) -> Schema:
    return {"name": name, "in": "header", "description": description, "required": False, "schema": schema or _TEXT}


def _header(description: str, schema: Schema | None = None) -> Schema:
    return {"description": description, "schema": schema or _TEXT}


def _common_headers() -> Schema:
    return {"X-Amber-Request-Id": _ref("headers", "X-Amber-Request-Id")}


def _object_headers() -> Schema:
    headers = {
        name: _ref("headers", name)
        for name in _headers()
        if name not in ("Retry-After", "X-Amber-Error", "X-Amber-Meta")
    }
    return headers | {"X-Amber-Meta-*": _ref("headers", "X-Amber-Meta")}


def _problems(*statuses: str) -> Schema:
    return {status: _ref("responses", f"Problem{status}") for status in statuses}


def _problem(status: str, title: str) -> Schema:
    headers = {**_common_headers(), "X-Amber-Error": _ref("headers", "X-Amber-Error")}
    if status == "503":
        headers["Retry-After"] = _ref("headers", "Retry-After")
    return {
        "description": title,
        "headers": headers,
        "content": {"application/problem+json": {"schema": _ref("schemas", "Problem")}},
    }


def _struct(properties: Schema, *, optional: tuple[str, ...] = ()) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}
