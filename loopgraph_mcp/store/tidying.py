"""Keeps the full-text indexes in few pieces: a word is looked up in every piece that an index consists of.

FTS5 writes a piece with each commit and merges pieces of one size by fours, so that an index that grew by single rows
is in ten to twenty of them, and a search spends most of its time on finding words.
"""

import sqlite3

MOST_PIECES = 8
# Each piece has its own run of segids in the index of its pages, whose key begins with them.
_PIECES = """
    WITH RECURSIVE piece (id) AS (
        SELECT min(segid) FROM {index}_idx
        UNION ALL SELECT (SELECT min(segid) FROM {index}_idx WHERE segid > id) FROM piece WHERE id IS NOT NULL
    )
    SELECT count(id) FROM piece
"""


def pieces(conn: sqlite3.Connection, index: str) -> int:
    """Return of how many pieces a full-text index consists."""
    return int(conn.execute(_PIECES.format(index=index)).fetchone()[0])


def tidy(conn: sqlite3.Connection, index: str, *, pages: int) -> None:
    """Within a write, go on merging an index that is in many pieces into one, and write so many pages of 4 kB."""
    if pieces(conn, index) > MOST_PIECES:
        conn.execute(
            f"INSERT INTO {index} ({index}, rank) VALUES ('merge', :pages)",  # noqa: S608 - our names
            {"pages": -pages},
        )
