-- The chain, left to right: pack and paper -> method -> retrieval -> edit -> experiment -> outcome -> decision.

CREATE TABLE pack (
    name         TEXT PRIMARY KEY,
    version      TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    imported_at  REAL NOT NULL
) STRICT;

CREATE TABLE paper (
    id    TEXT PRIMARY KEY,          -- kind:ref, such as arxiv:2309.16039
    kind  TEXT NOT NULL,
    ref   TEXT NOT NULL,
    title TEXT NOT NULL
) STRICT;

CREATE TABLE method (
    row         INTEGER PRIMARY KEY, -- FTS5 wants a rowid that VACUUM keeps
    id          TEXT NOT NULL UNIQUE,
    pack_name   TEXT NOT NULL REFERENCES pack (name),
    family      TEXT NOT NULL,
    name        TEXT NOT NULL,
    aliases     TEXT NOT NULL,
    summary     TEXT NOT NULL,
    description TEXT NOT NULL,
    identifiers TEXT NOT NULL,       -- names of the code it touches, whole and split at underscores
    card        TEXT NOT NULL CHECK (json_valid(card)),
    retired_at  REAL                 -- its pack no longer holds it; outcomes still point here
) STRICT;

CREATE TABLE method_paper (
    method_id TEXT NOT NULL REFERENCES method (id),
    paper_id  TEXT NOT NULL REFERENCES paper (id),
    PRIMARY KEY (method_id, paper_id)
) STRICT, WITHOUT ROWID;

CREATE VIRTUAL TABLE method_fts USING fts5 (
    name, aliases, summary, description, identifiers,
    content = 'method', content_rowid = 'row', tokenize = "porter unicode61 tokenchars '_'"
);

CREATE TRIGGER method_inserted AFTER INSERT ON method BEGIN
    INSERT INTO method_fts (rowid, name, aliases, summary, description, identifiers)
    VALUES (new.row, new.name, new.aliases, new.summary, new.description, new.identifiers);
END;

CREATE TRIGGER method_deleted AFTER DELETE ON method BEGIN
    INSERT INTO method_fts (method_fts, rowid, name, aliases, summary, description, identifiers)
    VALUES ('delete', old.row, old.name, old.aliases, old.summary, old.description, old.identifiers);
END;

CREATE TRIGGER method_updated AFTER UPDATE OF name, aliases, summary, description, identifiers ON method BEGIN
    INSERT INTO method_fts (method_fts, rowid, name, aliases, summary, description, identifiers)
    VALUES ('delete', old.row, old.name, old.aliases, old.summary, old.description, old.identifiers);
    INSERT INTO method_fts (rowid, name, aliases, summary, description, identifiers)
    VALUES (new.row, new.name, new.aliases, new.summary, new.description, new.identifiers);
END;

CREATE TABLE workspace (
    id         TEXT PRIMARY KEY,
    path       TEXT NOT NULL UNIQUE,
    created_at REAL NOT NULL
) STRICT;

CREATE TABLE context (
    id           TEXT PRIMARY KEY,   -- hash of the other columns: equal contexts are one row
    workspace_id TEXT NOT NULL REFERENCES workspace (id),
    device       TEXT NOT NULL,
    budget_s     REAL NOT NULL CHECK (budget_s > 0),
    dataset_hash TEXT NOT NULL,
    harness_hash TEXT NOT NULL,
    metric       TEXT NOT NULL,
    direction    TEXT NOT NULL CHECK (direction IN ('lower', 'higher'))
) STRICT;

CREATE TABLE program (
    hash      TEXT PRIMARY KEY,      -- sha256 of the exact text of the editable file
    tree_hash TEXT NOT NULL,         -- sha256 of its syntax tree: comments and layout do not count
    text      TEXT NOT NULL
) STRICT;

CREATE TABLE retrieval (
    row        INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    context_id TEXT REFERENCES context (id),
    query      TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;

CREATE TABLE retrieval_item (
    retrieval_id TEXT NOT NULL REFERENCES retrieval (id),
    rank         INTEGER NOT NULL CHECK (rank >= 1),
    method_id    TEXT NOT NULL REFERENCES method (id),
    score        REAL NOT NULL,
    parts        TEXT NOT NULL CHECK (json_valid(parts)),
    PRIMARY KEY (retrieval_id, rank)
) STRICT, WITHOUT ROWID;

CREATE INDEX retrieval_item_method ON retrieval_item (method_id);

CREATE TABLE edit (
    id           TEXT PRIMARY KEY,
    workspace_id TEXT NOT NULL REFERENCES workspace (id),
    retrieval_id TEXT REFERENCES retrieval (id),
    method_id    TEXT REFERENCES method (id),
    base_hash    TEXT NOT NULL REFERENCES program (hash),
    new_hash     TEXT NOT NULL REFERENCES program (hash),
    knobs        TEXT NOT NULL CHECK (json_valid(knobs)),
    diff         TEXT NOT NULL,
    created_at   REAL NOT NULL,
    CHECK (base_hash <> new_hash)
) STRICT;

CREATE TABLE experiment (
    row                  INTEGER PRIMARY KEY,
    id                   TEXT NOT NULL UNIQUE,
    context_id           TEXT NOT NULL REFERENCES context (id),
    edit_id              TEXT REFERENCES edit (id),
    base_hash            TEXT REFERENCES program (hash),    -- what it is compared with; NULL for a first baseline
    program_hash         TEXT REFERENCES program (hash),    -- what ran; NULL where a run outside was only told of
    parent_id            TEXT REFERENCES experiment (id),   -- the incumbent then; compared with where there is no base
    description          TEXT NOT NULL,
    seed                 INTEGER NOT NULL,
    timeout_s            REAL NOT NULL CHECK (timeout_s > 0),
    silence_s            REAL NOT NULL CHECK (silence_s > 0),
    idempotency_key      TEXT UNIQUE,
    device_slot          TEXT NOT NULL,                     -- which of several equal devices, such as cuda-1
    run_dir              TEXT,
    state                TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done')),
    supervisor_pid       INTEGER,
    supervisor_started   REAL,       -- a pid alone is reused; with its start time it names one process
    child_pid            INTEGER,
    child_started        REAL,
    cancel_requested_at  REAL,
    created_at           REAL NOT NULL,
    started_at           REAL,
    finished_at          REAL
) STRICT;

CREATE INDEX experiment_context ON experiment (context_id, created_at);
CREATE INDEX experiment_live ON experiment (state) WHERE state <> 'done';

CREATE TABLE experiment_method (
    experiment_id TEXT NOT NULL REFERENCES experiment (id),
    method_id     TEXT NOT NULL REFERENCES method (id),
    PRIMARY KEY (experiment_id, method_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX experiment_method_method ON experiment_method (method_id);

CREATE TABLE outcome (
    experiment_id TEXT PRIMARY KEY REFERENCES experiment (id),
    kind          TEXT NOT NULL CHECK (kind IN (
        'finished', 'crashed', 'out_of_memory', 'diverged', 'timed_out', 'silent', 'no_metric', 'void', 'cancelled',
        'interrupted')),
    metric_value  REAL,
    reason        TEXT NOT NULL,
    summary       TEXT NOT NULL CHECK (json_valid(summary)),
    log_tail      TEXT NOT NULL,
    created_at    REAL NOT NULL,
    CHECK ((kind = 'finished') = (metric_value IS NOT NULL))
) STRICT;

CREATE TABLE decision (
    row           INTEGER PRIMARY KEY,
    experiment_id TEXT NOT NULL REFERENCES experiment (id),
    decision      TEXT NOT NULL CHECK (decision IN ('keep', 'discard')),
    made_by       TEXT NOT NULL CHECK (made_by IN ('loopgraph', 'agent')),
    commit_hash   TEXT,
    note          TEXT NOT NULL,
    created_at    REAL NOT NULL
) STRICT;

CREATE INDEX decision_experiment ON decision (experiment_id);

CREATE TABLE cost (
    row        INTEGER PRIMARY KEY,
    source     TEXT NOT NULL,        -- the tool that answered, or 'agent' for what an agent reports of itself
    subject_id TEXT,                 -- the retrieval, edit or experiment it was spent on
    tokens     INTEGER CHECK (tokens >= 0),
    cost_usd   REAL CHECK (cost_usd >= 0),
    created_at REAL NOT NULL
) STRICT;

CREATE INDEX cost_subject ON cost (subject_id);

-- What happened is not rewritten.
CREATE TRIGGER retrieval_append_only BEFORE UPDATE ON retrieval BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER retrieval_item_append_only BEFORE UPDATE ON retrieval_item BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER edit_append_only BEFORE UPDATE ON edit BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER outcome_append_only BEFORE UPDATE ON outcome BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER decision_append_only BEFORE UPDATE ON decision BEGIN SELECT RAISE(ABORT, 'append-only'); END;
