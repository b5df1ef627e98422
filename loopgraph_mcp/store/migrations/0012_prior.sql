-- The prior counts trials by knob, direction and step; nothing else of an imported history predicts others' changes.

CREATE TABLE kind_count (
    source TEXT NOT NULL,                       -- whose history: the workspace it was imported as
    kind   TEXT NOT NULL,                       -- such as `matrix_lr -1, down much`
    kept   INTEGER NOT NULL CHECK (kept BETWEEN 0 AND trials),
    trials INTEGER NOT NULL CHECK (trials > 0),
    PRIMARY KEY (source, kind)
) STRICT, WITHOUT ROWID;

-- What was counted before stays until a history is imported again; keeps were shared among the moves of a change.
INSERT INTO kind_count (source, kind, kept, trials)
SELECT source, substr(about, 6), MIN(CAST(round(kept) AS INTEGER), tries), tries
FROM lesson WHERE about LIKE 'step:%' AND tries > 0;

DROP TABLE lesson;
