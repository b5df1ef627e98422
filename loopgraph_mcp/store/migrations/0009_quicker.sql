-- A full-text index is written in pieces, and a word is looked up in each of them. Rows that come one by one are merged
-- at once, by threes: else there are fifteen and more of them. FTS5's own 'optimize' would leave one, but each time adds
-- levels, and SQLite 3.40 calls an index malformed after some 1,100 of them.

INSERT INTO method_fts (method_fts, rank) VALUES ('crisismerge', 3);
INSERT INTO experiment_fts (experiment_fts, rank) VALUES ('crisismerge', 3);

-- The incumbent is what was kept last: found at once, however many runs were discarded since.
CREATE INDEX decision_kept ON decision (row) WHERE decision = 'keep';
