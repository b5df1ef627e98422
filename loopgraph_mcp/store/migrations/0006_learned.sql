-- Recipes that were made of agents' winning patches, which wins were looked at, and which edits came of them.

CREATE TABLE learned_recipe (
    id            TEXT PRIMARY KEY,  -- hash of method, ops and knobs: learned twice, kept once
    method_id     TEXT NOT NULL REFERENCES method (id),
    experiment_id TEXT NOT NULL REFERENCES experiment (id),
    base_hash     TEXT NOT NULL REFERENCES program (hash),
    recipe        TEXT NOT NULL CHECK (json_valid(recipe)),  -- recipe and knobs, as in a method's card
    applied       INTEGER NOT NULL CHECK (applied >= 0),     -- of the other programs known then, how many it fitted
    present       INTEGER NOT NULL CHECK (present >= 0),
    refused       INTEGER NOT NULL CHECK (refused >= 0),
    created_at    REAL NOT NULL
) STRICT;

CREATE INDEX learned_recipe_method ON learned_recipe (method_id);

-- A win gives one recipe, or says why it gives none; it is looked at once.
CREATE TABLE learned_from (
    experiment_id TEXT NOT NULL REFERENCES experiment (id),
    method_id     TEXT NOT NULL REFERENCES method (id),
    recipe_id     TEXT REFERENCES learned_recipe (id),
    reason        TEXT NOT NULL,
    PRIMARY KEY (experiment_id, method_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE learned_edit (
    edit_id   TEXT PRIMARY KEY REFERENCES edit (id),
    recipe_id TEXT NOT NULL REFERENCES learned_recipe (id)
) STRICT, WITHOUT ROWID;

CREATE INDEX learned_edit_recipe ON learned_edit (recipe_id);

CREATE TRIGGER learned_recipe_append_only BEFORE UPDATE ON learned_recipe BEGIN SELECT RAISE(ABORT, 'append-only'); END;
