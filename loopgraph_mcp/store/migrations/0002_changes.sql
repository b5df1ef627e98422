-- What each edit does to the syntax tree, worked out once: kinship with earlier changes is asked before every run.

CREATE TABLE change (
    base_hash TEXT NOT NULL REFERENCES program (hash),
    new_hash  TEXT NOT NULL REFERENCES program (hash),
    turns     TEXT NOT NULL CHECK (json_valid(turns)),     -- [knob, old, new] for each named value that differs
    rewrites  TEXT NOT NULL CHECK (json_valid(rewrites)),  -- [scope, hash removed, hash added] for other code
    PRIMARY KEY (base_hash, new_hash)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER change_append_only BEFORE UPDATE ON change BEGIN SELECT RAISE(ABORT, 'append-only'); END;

-- What imported histories teach, beside what ships with the package; made anew when a history grows.
CREATE TABLE lesson (
    source    TEXT NOT NULL,             -- whose history: the workspace it was imported as
    about     TEXT NOT NULL,
    first     REAL,                      -- logs of the metric at the start and at the time
    now       REAL,
    expected  REAL NOT NULL,
    kept      REAL NOT NULL,
    tries     INTEGER NOT NULL,
    low       REAL,
    high      REAL,
    mean_gain REAL,
    spread    REAL,
    PRIMARY KEY (source, about)
) STRICT, WITHOUT ROWID;
