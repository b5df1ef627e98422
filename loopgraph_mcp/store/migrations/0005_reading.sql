-- What is read in passages: which methods they name, what they report, and the methods that agents registered of them.

ALTER TABLE method_chunk ADD COLUMN words TEXT NOT NULL DEFAULT ''; -- by which it was recognised; empty where somebody said so

-- Figures that a paper reports of a method: weak evidence, in its own words.
CREATE TABLE reported (
    method_id TEXT NOT NULL REFERENCES method (id),
    chunk_id  TEXT NOT NULL REFERENCES chunk (id) ON DELETE CASCADE,
    claim     TEXT NOT NULL,
    setting   TEXT NOT NULL,
    PRIMARY KEY (method_id, chunk_id, claim)
) STRICT, WITHOUT ROWID;

-- Methods that agents registered, each time they did; the newest is what the method is.
CREATE TABLE method_version (
    row        INTEGER PRIMARY KEY,
    method_id  TEXT NOT NULL REFERENCES method (id),
    card       TEXT NOT NULL CHECK (json_valid(card)),
    chunk_ids  TEXT NOT NULL CHECK (json_valid(chunk_ids)), -- the passages it was read in
    added_by   TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;

CREATE INDEX method_version_method ON method_version (method_id, row);

CREATE TRIGGER method_version_append_only BEFORE UPDATE ON method_version BEGIN SELECT RAISE(ABORT, 'append-only'); END;

-- Asked for by trace.
CREATE INDEX edit_method ON edit (method_id) WHERE method_id IS NOT NULL;
CREATE INDEX edit_retrieval ON edit (retrieval_id) WHERE retrieval_id IS NOT NULL;
CREATE INDEX experiment_edit ON experiment (edit_id) WHERE edit_id IS NOT NULL;
