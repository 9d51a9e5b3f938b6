"""The tables. Names and columns of ``blobs`` and ``blob_chunk_archives`` are known to users and stay.

A change is a new entry at the end of a list, never an edit of an old one; each has a test on the old file.
"""

from __future__ import annotations

SLOT_MIGRATIONS: tuple[str, ...] = (
    """
CREATE TABLE blobs (
  pk INTEGER PRIMARY KEY AUTOINCREMENT,
  path TEXT NOT NULL, version INTEGER NOT NULL, blob_id TEXT NOT NULL,
  size INTEGER NOT NULL, chunks TEXT NOT NULL,        -- JSON [{"id": "...", "len": ...}]
  created_at DATETIME NOT NULL, tombstoned_at DATETIME,
  etag TEXT NOT NULL, content_type TEXT NOT NULL, meta TEXT NOT NULL,
  manifest_id TEXT, chunk_count INTEGER NOT NULL, inline INTEGER NOT NULL, revision INTEGER NOT NULL,
  UNIQUE (path, version));
CREATE UNIQUE INDEX idx_blobs_blob_id ON blobs(blob_id);
CREATE TABLE blob_chunk_archives (
  pk INTEGER PRIMARY KEY AUTOINCREMENT,
  blob_id TEXT NOT NULL, chunk_id TEXT NOT NULL, length INTEGER NOT NULL,
  archived_at DATETIME NOT NULL, target_path TEXT NOT NULL, target_version INT,
  target_range_start INTEGER, target_range_end INTEGER,
  UNIQUE (blob_id, chunk_id), FOREIGN KEY (blob_id) REFERENCES blobs(blob_id));
CREATE TABLE registers (
  path TEXT PRIMARY KEY,
  accepted_ballot TEXT, record TEXT,                  -- JSON
  chosen INTEGER NOT NULL,
  materialised INTEGER NOT NULL,                      -- revision of the newest record whose rows are in blobs
  stale INTEGER NOT NULL                              -- 1: older rows came in after it, tombstones are to be set anew
) WITHOUT ROWID;
CREATE INDEX idx_registers_undecided ON registers(path) WHERE chosen = 0;
CREATE TABLE inline_bodies (blob_id TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE intents (blob_id TEXT PRIMARY KEY, state TEXT NOT NULL, at_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX idx_intents_staged ON intents(at_ms) WHERE state = 'STAGED';
CREATE TABLE write_ids (
  path TEXT NOT NULL, write_id TEXT NOT NULL, op TEXT NOT NULL, version INTEGER NOT NULL, at_ms INTEGER NOT NULL,
  PRIMARY KEY (path, write_id)) WITHOUT ROWID;
CREATE TABLE commit_log (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  path TEXT NOT NULL, version INTEGER NOT NULL, blob_id TEXT NOT NULL,
  revision INTEGER NOT NULL, op TEXT NOT NULL, at_ms INTEGER NOT NULL);
CREATE TABLE slot_meta (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  incarnation TEXT NOT NULL, epoch INTEGER NOT NULL DEFAULT 0,
  ballot_floor TEXT NOT NULL DEFAULT '[0,0,"",""]',   -- JSON
  version_floor INTEGER NOT NULL DEFAULT 0, promise_ceiling INTEGER NOT NULL DEFAULT 0,
  applied_position INTEGER NOT NULL DEFAULT 0);
""",
    # rfc/0012. The row of bucket_sums and the digests are made when the database is opened: chunkstore.digestdb.
    """
ALTER TABLE registers ADD COLUMN digest BLOB /* amberblob.digests: sum over the path's rows and chosen record */;
ALTER TABLE registers ADD COLUMN term BLOB /* what the record adds to the digest; NULL: nothing */;
ALTER TABLE registers ADD COLUMN expired TEXT /* JSON ranges: versions that are gone for certain; NULL: none */;
ALTER TABLE slot_meta ADD COLUMN synced_epoch INTEGER NOT NULL DEFAULT 0;
ALTER TABLE slot_meta ADD COLUMN objects INTEGER NOT NULL DEFAULT 0 /* registers that hold a record */;
CREATE TABLE bucket_sums (                             -- one row
  id INTEGER PRIMARY KEY CHECK (id = 1),
  sums BLOB NOT NULL                                   -- 256 digests of 32 bytes, least significant byte first
);
CREATE TABLE wanted (                                  -- versions whose bytes are not all here
  blob_id TEXT PRIMARY KEY, path TEXT NOT NULL, version INTEGER NOT NULL, bytes INTEGER NOT NULL,
  damaged INTEGER NOT NULL                             -- 1: they were here and failed their hash
) WITHOUT ROWID;
CREATE INDEX idx_wanted_order ON wanted(bytes, path, version);
CREATE TABLE garbage (                                 -- blobs whose rows have expired: their files are to go
  blob_id TEXT PRIMARY KEY, at_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE memos (name TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO wanted SELECT blob_id, path, version, size, 0 FROM blobs AS b WHERE size > 0 AND CASE inline
  WHEN 1 THEN NOT EXISTS (SELECT 1 FROM inline_bodies WHERE blob_id = b.blob_id)
  ELSE NOT EXISTS (SELECT 1 FROM intents WHERE blob_id = b.blob_id AND state <> 'ABORTED') END;
""",
    # rfc/0016. The row number of an archive row is what peers follow it by: whatever changes gets a new one.
    """
ALTER TABLE blob_chunk_archives ADD COLUMN head TEXT NOT NULL DEFAULT '' /* hash of the frame's header; '': imported content */;
ALTER TABLE blob_chunk_archives ADD COLUMN etag TEXT NOT NULL DEFAULT '' /* imported content: the source's */;
ALTER TABLE blob_chunk_archives ADD COLUMN state INTEGER NOT NULL DEFAULT 0 /* 0: uploaded; -1: damaged; else verified then, epoch ms */;
CREATE INDEX idx_archives_target ON blob_chunk_archives(target_path);
CREATE TABLE archive_staged (                          -- the same, of blobs that have no row in blobs yet
  blob_id TEXT NOT NULL, chunk_id TEXT NOT NULL, length INTEGER NOT NULL,
  archived_at DATETIME NOT NULL, target_path TEXT NOT NULL,
  target_range_start INTEGER, target_range_end INTEGER,
  head TEXT NOT NULL, etag TEXT NOT NULL, state INTEGER NOT NULL,
  PRIMARY KEY (blob_id, chunk_id)) WITHOUT ROWID;
CREATE INDEX idx_archive_staged_target ON archive_staged(target_path);
CREATE TABLE evicted (                                 -- blobs whose bytes were given up: they live by their archive rows
  blob_id TEXT PRIMARY KEY, bytes INTEGER NOT NULL,
  waiting INTEGER NOT NULL,                            -- 1: no row of blobs has it yet, and nobody looked what chunks it has
  files INTEGER NOT NULL                               -- 1: files of it may be left, to be removed
) WITHOUT ROWID;
CREATE INDEX idx_evicted_files ON evicted(blob_id) WHERE files = 1;
CREATE INDEX idx_intents_archived ON intents(at_ms) WHERE state = 'ARCHIVED';
ALTER TABLE slot_meta ADD COLUMN archived_rows INTEGER NOT NULL DEFAULT 0;
UPDATE slot_meta SET archived_rows = (SELECT count(*) FROM blob_chunk_archives);
""",
)

INDEX_MIGRATIONS: tuple[str, ...] = (
    """
CREATE TABLE objects (
  path TEXT PRIMARY KEY,                              -- BINARY collation is the byte order of UTF-8
  slot INTEGER NOT NULL, ballot TEXT NOT NULL, chosen INTEGER NOT NULL,
  version INTEGER NOT NULL,                           -- 0: none lives
  blob_id TEXT NOT NULL, size INTEGER NOT NULL, etag TEXT NOT NULL,
  created_at_ms INTEGER NOT NULL, changed_at_ms INTEGER NOT NULL,
  content_type TEXT NOT NULL, version_max INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE index_meta (
  id INTEGER PRIMARY KEY CHECK (id = 1), applied_position INTEGER NOT NULL, complete INTEGER NOT NULL);
INSERT INTO index_meta VALUES (1, 0, 0);
""",
    # It is derived: what it held is read from the slot databases again.
    """
DROP TABLE objects;
CREATE TABLE objects (                                -- a version lives, or the record is not known to be chosen
  path TEXT PRIMARY KEY,                              -- BINARY collation is the byte order of UTF-8
  slot INTEGER NOT NULL,
  entry TEXT NOT NULL                                 -- JSON: amberblob.wire.ScanEntry
) WITHOUT ROWID;
CREATE TABLE deleted (                                -- no version lives, for certain
  path TEXT PRIMARY KEY, slot INTEGER NOT NULL, entry TEXT NOT NULL) WITHOUT ROWID;
UPDATE index_meta SET applied_position = 0, complete = 0;
""",
)
