"""Other people's files: read whole as text, or refused with the next step."""

import codecs
import re
from collections.abc import Sequence
from pathlib import Path

from loopgraph_mcp.errors import HistoryError
from loopgraph_mcp.runner.plain_files import NotPlainError, read_plain

MAX_BYTES = 50 * 2**20
MAX_JSON_BYTES = 8 * 2**20  # of one value, which is parsed in one go: a tenth of a second
_HEAD = 1024
_ONE_SIDED = 0.7  # share of zeros
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_file(path: Path) -> str:
    """Return a history's text.

    Raises:
        HistoryError: It cannot be read, is no text, or is too large.
    """
    try:
        content = read_plain(path, MAX_BYTES)
    except NotPlainError as error:
        raise HistoryError(f"{path}: {error}, or name another results.tsv or history") from error
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror}; name a results.tsv or another history") from error
    if len(content) > MAX_JSON_BYTES and _is_one_value(content):
        raise HistoryError(
            f"{path}: one JSON value of {len(content):,} bytes, over the {MAX_JSON_BYTES >> 20} MiB that are read; "
            "write one run a line (JSONL), or split it"
        )
    encoding = _encoding(content)
    if encoding is None:
        raise HistoryError(f"{path}: a binary file; name a results.tsv or another table of experiments")
    return content.decode(encoding, "replace")


def _is_one_value(content: bytes) -> bool:
    """Return whether a text is one JSON value and not one a line, as far as its beginning tells."""
    head = content[:MAX_JSON_BYTES].removeprefix(codecs.BOM_UTF8).lstrip()
    line, ended, _ = head.partition(b"\n")
    return head[:1] in {b"[", b"{"} and not (ended and line.startswith(b"{") and line.rstrip().endswith((b"}", b"},")))


def _encoding(content: bytes) -> str | None:
    """Return how a text is encoded, or None where it is none: by its byte order mark, or by where its zeros are."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return encoding
    head = content[:_HEAD]
    if b"\x00" in head:
        even, odd = (part.count(0) / max(len(part), 1) for part in (head[0::2], head[1::2]))
        if abs(even - odd) > _ONE_SIDED:  # UTF-16 of letters that are mostly plain
            return "utf-16-be" if even > odd else "utf-16-le"
        return None
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        has_utf8 = re.search(rb"[\xc3-\xf4][\x80-\xbf]{1,3}", content) is not None
        return "utf-8" if has_utf8 else "cp1252"  # as spreadsheets on Windows save
    return "utf-8"


def expand(paths: Sequence[Path]) -> list[Path]:
    """Return files as they are, and of folders the histories in them, in the order of their names."""
    return [file for path in paths for file in _files_of(path)]


def _files_of(path: Path) -> list[Path]:
    try:
        return sorted(p for p in path.iterdir() if p.suffix in {".tsv", ".csv"}) if path.is_dir() else [path]
    except OSError:  # too long a name: whoever reads it says so
        return [path]
