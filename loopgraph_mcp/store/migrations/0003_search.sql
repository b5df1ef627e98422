-- What is searched beside the methods themselves: passages of papers, code and packs, and what experiments tried.

CREATE TABLE chunk (
    row         INTEGER PRIMARY KEY, -- FTS5 wants a rowid that VACUUM keeps; the newest have the highest
    id          TEXT NOT NULL UNIQUE, -- hash of the other columns: the same passage is one row
    source_kind TEXT NOT NULL CHECK (source_kind IN ('paper', 'code', 'pack', 'document')),
    paper_id    TEXT REFERENCES paper (id),
    place       TEXT NOT NULL,       -- section, page or symbol
    licence     TEXT NOT NULL,
    text        TEXT NOT NULL,
    identifiers TEXT NOT NULL        -- parts of the names of code in it: val_bpb is also val and bpb
) STRICT;

CREATE INDEX chunk_paper ON chunk (paper_id) WHERE paper_id IS NOT NULL;

CREATE VIRTUAL TABLE chunk_fts USING fts5 (
    place, text, identifiers,
    content = 'chunk', content_rowid = 'row', tokenize = "porter unicode61 tokenchars '_'"
);

CREATE TRIGGER chunk_inserted AFTER INSERT ON chunk BEGIN
    INSERT INTO chunk_fts (rowid, place, text, identifiers) VALUES (new.row, new.place, new.text, new.identifiers);
END;

CREATE TRIGGER chunk_deleted AFTER DELETE ON chunk BEGIN
    INSERT INTO chunk_fts (chunk_fts, rowid, place, text, identifiers)
    VALUES ('delete', old.row, old.place, old.text, old.identifiers);
END;

CREATE TRIGGER chunk_updated AFTER UPDATE OF place, text, identifiers ON chunk BEGIN
    INSERT INTO chunk_fts (chunk_fts, rowid, place, text, identifiers)
    VALUES ('delete', old.row, old.place, old.text, old.identifiers);
    INSERT INTO chunk_fts (rowid, place, text, identifiers) VALUES (new.row, new.place, new.text, new.identifiers);
END;

-- Which passages say something of a method.
CREATE TABLE method_chunk (
    method_id TEXT NOT NULL REFERENCES method (id),
    chunk_id  TEXT NOT NULL REFERENCES chunk (id) ON DELETE CASCADE,
    PRIMARY KEY (method_id, chunk_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX method_chunk_chunk ON method_chunk (chunk_id);
CREATE INDEX method_paper_paper ON method_paper (paper_id);

-- Every name that a method goes by, as words in lower case: a query that says one of them means the others too.
CREATE TABLE alias (
    words     TEXT NOT NULL,
    method_id TEXT NOT NULL REFERENCES method (id) ON DELETE CASCADE,
    place     INTEGER NOT NULL,      -- its proper name first, then the aliases as the pack has them
    PRIMARY KEY (words, method_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX alias_method ON alias (method_id, place);

CREATE VIEW method_name AS
SELECT lower(trim(replace(replace(told.name, '-', ' '), '/', ' '))) AS words, method_id, min(place) AS place
FROM (
    SELECT name, id AS method_id, 0 AS place FROM method
    UNION ALL SELECT id, id, 1 FROM method
    UNION ALL SELECT each.value, method.id, 2 + each.key FROM method JOIN json_each(card, '$.aliases') AS each
) AS told
GROUP BY words, method_id;

INSERT INTO alias (words, method_id, place) SELECT words, method_id, place FROM method_name;

CREATE TRIGGER method_named AFTER INSERT ON method BEGIN
    INSERT INTO alias (words, method_id, place)
    SELECT words, method_id, place FROM method_name WHERE method_id = new.id;
END;

CREATE TRIGGER method_renamed AFTER UPDATE OF name, card ON method BEGIN
    DELETE FROM alias WHERE method_id = new.id;
    INSERT INTO alias (words, method_id, place)
    SELECT words, method_id, place FROM method_name WHERE method_id = new.id;
END;

-- What an experiment that is over says in words: what was tried, the lines and knobs changed, how it ended.
CREATE VIEW experiment_text AS
SELECT experiment.row, experiment.id, experiment.description,
    coalesce((
        WITH RECURSIVE line (text, rest) AS (
            SELECT '', substr(edit.diff, 1, 8000) || char(10)
            UNION ALL
            SELECT substr(rest, 1, instr(rest, char(10)) - 1), substr(rest, instr(rest, char(10)) + 1)
            FROM line WHERE rest <> ''
        )
        SELECT group_concat(substr(text, 2), ' ') FROM line
        WHERE (text LIKE '+%' AND text NOT LIKE '+++%') OR (text LIKE '-%' AND text NOT LIKE '---%')
    ), '') || ' ' || coalesce((SELECT group_concat(key, ' ') FROM json_each(edit.knobs)), '') AS changed,
    outcome.reason
FROM outcome
JOIN experiment ON experiment.id = outcome.experiment_id
LEFT JOIN edit ON edit.id = experiment.edit_id;

CREATE VIRTUAL TABLE experiment_fts USING fts5 (
    description, changed, reason,
    content = 'experiment_text', content_rowid = 'row', tokenize = "porter unicode61 tokenchars '_'"
);

INSERT INTO experiment_fts (rowid, description, changed, reason)
SELECT row, description, changed, reason FROM experiment_text ORDER BY row;

-- An outcome is written once, after its experiment and edit: nothing of the text changes later.
CREATE TRIGGER outcome_told AFTER INSERT ON outcome BEGIN
    INSERT INTO experiment_fts (rowid, description, changed, reason)
    SELECT row, description, changed, reason FROM experiment_text WHERE id = new.experiment_id;
END;

CREATE INDEX method_retired ON method (retired_at) WHERE retired_at IS NOT NULL;
CREATE INDEX experiment_in_context ON experiment (context_id); -- in the order of rows, to find the newest at once
CREATE INDEX experiment_created ON experiment (created_at);
CREATE INDEX experiment_program ON experiment (program_hash);
CREATE INDEX program_tree ON program (tree_hash);
CREATE INDEX outcome_created ON outcome (created_at);
