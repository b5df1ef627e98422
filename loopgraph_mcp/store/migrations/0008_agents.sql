-- Who asks: bearer tokens, agents told apart by token, client and session, and what each asked for.

CREATE TABLE access_token (
    name             TEXT PRIMARY KEY,
    hash             TEXT NOT NULL UNIQUE,  -- sha256 of the secret, which nobody keeps but its owner
    scope            TEXT NOT NULL CHECK (scope IN ('read', 'run', 'admin')),
    calls_per_minute INTEGER NOT NULL CHECK (calls_per_minute > 0),
    runs_at_once     INTEGER NOT NULL CHECK (runs_at_once > 0),
    created_at       REAL NOT NULL,
    expires_at       REAL,
    revoked_at       REAL
) STRICT;

CREATE TABLE agent (
    id         TEXT PRIMARY KEY,            -- hash of token, client and session: the same agent is one row
    token      TEXT NOT NULL,               -- the token's name, empty for a program of this machine's user
    client     TEXT NOT NULL,
    session    TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;

-- Several agents may have asked for one experiment: they share its run.
CREATE TABLE asked (
    subject_id TEXT NOT NULL,               -- a retrieval, edit or experiment
    agent_id   TEXT NOT NULL REFERENCES agent (id),
    asked_at   REAL NOT NULL,
    PRIMARY KEY (subject_id, agent_id)
) STRICT, WITHOUT ROWID;

ALTER TABLE experiment ADD COLUMN priority TEXT NOT NULL DEFAULT 'normal'
    CHECK (priority IN ('low', 'normal', 'high'));
