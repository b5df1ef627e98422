-- Full text beside the methods': chunks of papers, code and documents, and what experiments were said to try.

CREATE TABLE chunk (
    row         INTEGER PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,    -- hash of kind, place and text: the same chunk is one row
    kind        TEXT NOT NULL CHECK (kind IN ('paper', 'code', 'document')),
    paper_id    TEXT REFERENCES paper (id),
    place       TEXT NOT NULL,           -- section, page or symbol
    licence     TEXT NOT NULL,
    text        TEXT NOT NULL,
    identifiers TEXT NOT NULL            -- names of code in it, split at underscores
) STRICT;

CREATE TABLE method_chunk (
    method_id TEXT NOT NULL REFERENCES method (id),
    chunk_row INTEGER NOT NULL REFERENCES chunk (row),
    PRIMARY KEY (method_id, chunk_row)
) STRICT, WITHOUT ROWID;

CREATE INDEX method_chunk_chunk ON method_chunk (chunk_row);

CREATE VIRTUAL TABLE chunk_fts USING fts5 (
    text, identifiers, content = 'chunk', content_rowid = 'row', tokenize = "porter unicode61 tokenchars '_'"
);

CREATE TRIGGER chunk_inserted AFTER INSERT ON chunk BEGIN
    INSERT INTO chunk_fts (rowid, text, identifiers) VALUES (new.row, new.text, new.identifiers);
END;

CREATE TRIGGER chunk_deleted AFTER DELETE ON chunk BEGIN
    INSERT INTO chunk_fts (chunk_fts, rowid, text, identifiers)
    VALUES ('delete', old.row, old.text, old.identifiers);
END;

CREATE TRIGGER chunk_updated AFTER UPDATE OF text, identifiers ON chunk BEGIN
    INSERT INTO chunk_fts (chunk_fts, rowid, text, identifiers)
    VALUES ('delete', old.row, old.text, old.identifiers);
    INSERT INTO chunk_fts (rowid, text, identifiers) VALUES (new.row, new.text, new.identifiers);
END;

CREATE VIRTUAL TABLE experiment_fts USING fts5 (
    description, content = 'experiment', content_rowid = 'row', tokenize = "porter unicode61 tokenchars '_'"
);

INSERT INTO experiment_fts (rowid, description) SELECT row, description FROM experiment;

CREATE TRIGGER experiment_described AFTER INSERT ON experiment BEGIN
    INSERT INTO experiment_fts (rowid, description) VALUES (new.row, new.description);
END;

CREATE INDEX experiment_created ON experiment (created_at);
CREATE INDEX experiment_program ON experiment (program_hash);
CREATE INDEX method_present ON method (id) WHERE retired_at IS NULL;
