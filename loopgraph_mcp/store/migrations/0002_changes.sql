-- What each edit does to the syntax tree, worked out once: kinship with earlier changes is asked before every run.

CREATE TABLE change (
    base_hash TEXT NOT NULL REFERENCES program (hash),
    new_hash  TEXT NOT NULL REFERENCES program (hash),
    turns     TEXT NOT NULL CHECK (json_valid(turns)),     -- [knob, old, new] for each named value that differs
    rewrites  TEXT NOT NULL CHECK (json_valid(rewrites)),  -- [scope, hash removed, hash added] for other code
    PRIMARY KEY (base_hash, new_hash)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER change_append_only BEFORE UPDATE ON change BEGIN SELECT RAISE(ABORT, 'append-only'); END;
