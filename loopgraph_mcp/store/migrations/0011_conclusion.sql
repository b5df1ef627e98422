-- What is done once an outcome is known, step by step: a killed supervisor's successor goes on where it stopped.

CREATE TABLE conclusion (
    experiment_id TEXT NOT NULL REFERENCES experiment (id),
    step          TEXT NOT NULL CHECK (step IN ('apply', 'row', 'learn')),
    state         TEXT NOT NULL CHECK (state IN ('due', 'begun', 'done', 'failed')),
    note          TEXT NOT NULL,      -- what came of it, for whoever reads the outcome
    place         INTEGER,            -- of a row of results.tsv that was begun: how long the file was before it
    commit_hash   TEXT,               -- of an edit that was applied: the commit that holds it
    at            REAL NOT NULL,
    PRIMARY KEY (experiment_id, step)
) STRICT, WITHOUT ROWID;

CREATE INDEX conclusion_open ON conclusion (state) WHERE state <> 'done';
