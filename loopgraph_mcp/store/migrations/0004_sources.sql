-- What was read, of which version and from where: a paper is the work, a document one version of it as it was read.

ALTER TABLE paper ADD COLUMN authors TEXT NOT NULL DEFAULT '';      -- one a line
ALTER TABLE paper ADD COLUMN abstract TEXT NOT NULL DEFAULT '';
ALTER TABLE paper ADD COLUMN published_on TEXT NOT NULL DEFAULT ''; -- the first version's day

CREATE TABLE document (
    id           TEXT PRIMARY KEY,   -- the paper's id with the version: arxiv:2309.16039v3, github:owner/name@commit
    paper_id     TEXT NOT NULL REFERENCES paper (id),
    version      TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN (
        'read', 'sourceless', 'withdrawn', 'encrypted', 'scanned', 'broken', 'too_large')),
    form         TEXT NOT NULL,      -- what it was read from: latex, html, pdf, markdown, code
    licence      TEXT NOT NULL,
    fetched_from TEXT NOT NULL,
    content_hash TEXT NOT NULL,      -- of the bytes it was read from
    note         TEXT NOT NULL,      -- where it was not, or not wholly, read: why
    ingested_at  REAL NOT NULL
) STRICT;

CREATE INDEX document_paper ON document (paper_id, ingested_at);

CREATE TABLE document_chunk (
    document_id TEXT NOT NULL REFERENCES document (id) ON DELETE CASCADE,
    place       INTEGER NOT NULL,    -- among its chunks, in reading order
    chunk_id    TEXT NOT NULL REFERENCES chunk (id) ON DELETE CASCADE,
    PRIMARY KEY (document_id, place)
) STRICT, WITHOUT ROWID;

CREATE INDEX document_chunk_chunk ON document_chunk (chunk_id);
