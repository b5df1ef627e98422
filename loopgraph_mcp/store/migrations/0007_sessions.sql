-- What a researcher was told, what it answered, what that cost, and which experiment each call led to.

CREATE TABLE session (
    id             TEXT PRIMARY KEY,
    workspace_path TEXT NOT NULL,
    researcher     TEXT NOT NULL,    -- provider and model, or the habit of a scripted one
    memory         TEXT NOT NULL CHECK (memory IN ('off', 'outcomes', 'packs', 'on')),
    settings       TEXT NOT NULL CHECK (json_valid(settings)), -- what it takes to go on after a crash; never a key
    system         TEXT NOT NULL,    -- the prompt that stands before every turn's
    tools          TEXT NOT NULL CHECK (json_valid(tools)),
    start          TEXT NOT NULL,    -- the program that it began with
    kept           TEXT NOT NULL,    -- the program that the next change starts from
    draft          TEXT NOT NULL,    -- the program as it would run now
    draft_edit     TEXT,             -- the edit of get_code_edit that made the draft, if one did
    created_at     REAL NOT NULL,
    ended_at       REAL,
    ended          TEXT              -- why it ended; NULL where it may go on
) STRICT;

CREATE TABLE turn (
    session_id        TEXT NOT NULL REFERENCES session (id),
    number            INTEGER NOT NULL CHECK (number >= 0),  -- 0 is the harness's own: the baseline
    kept              INTEGER NOT NULL CHECK (kept >= 0),    -- messages of the prompt before that this one begins with
    prompt            TEXT NOT NULL CHECK (json_valid(prompt)), -- the messages behind those
    reply             TEXT NOT NULL CHECK (json_valid(reply)),
    menu              INTEGER NOT NULL CHECK (menu IN (0, 1)),
    prompt_tokens     INTEGER NOT NULL CHECK (prompt_tokens >= 0),     -- all that was read, cached or not
    cached_tokens     INTEGER NOT NULL CHECK (cached_tokens >= 0),     -- of these, read from the provider's cache
    written_tokens    INTEGER NOT NULL CHECK (written_tokens >= 0),    -- of these, written to it
    completion_tokens INTEGER NOT NULL CHECK (completion_tokens >= 0),
    wasted_tokens     INTEGER NOT NULL CHECK (wasted_tokens >= 0),     -- estimated, of replies that were cut off
    estimated         INTEGER NOT NULL CHECK (estimated IN (0, 1)),    -- the provider told no usage
    cost_usd          REAL CHECK (cost_usd >= 0),                      -- NULL where no price is known
    seconds           REAL NOT NULL CHECK (seconds >= 0),
    attempts          INTEGER NOT NULL CHECK (attempts >= 0),
    created_at        REAL NOT NULL,
    PRIMARY KEY (session_id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE tool_call (
    session_id    TEXT NOT NULL,
    turn          INTEGER NOT NULL,
    place         INTEGER NOT NULL CHECK (place >= 0),
    name          TEXT NOT NULL,
    arguments     TEXT NOT NULL,
    valid         INTEGER NOT NULL CHECK (valid IN (0, 1)),
    result        TEXT NOT NULL CHECK (json_valid(result)),
    run           TEXT CHECK (run IS NULL OR json_valid(run)),                        -- where it led to a run: what came of it
    experiment_id TEXT REFERENCES experiment (id),
    seconds       REAL NOT NULL CHECK (seconds >= 0),
    PRIMARY KEY (session_id, turn, place),
    FOREIGN KEY (session_id, turn) REFERENCES turn (session_id, number)
) STRICT, WITHOUT ROWID;

CREATE INDEX tool_call_experiment ON tool_call (experiment_id) WHERE experiment_id IS NOT NULL;

CREATE TRIGGER turn_append_only BEFORE UPDATE ON turn BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER tool_call_append_only BEFORE UPDATE ON tool_call BEGIN SELECT RAISE(ABORT, 'append-only'); END;
