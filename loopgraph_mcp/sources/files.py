"""Other people's files: read whole as text, or refused with the next step."""

import stat
from collections.abc import Sequence
from pathlib import Path

from loopgraph_mcp.errors import HistoryError

MAX_BYTES = 50 * 2**20


def read_file(path: Path) -> str:
    """Return a history's text.

    Raises:
        HistoryError: It cannot be read, is no text, or is too large.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device may never end
            raise HistoryError(f"{path}: no regular file; name a results.tsv or another history")
        if found.st_size > MAX_BYTES:
            raise HistoryError(f"{path}: larger than {MAX_BYTES // 2**20} MiB; split it")
        content = path.read_bytes()
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror}; name a results.tsv or another history") from error
    if b"\x00" in content[:1024] and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise HistoryError(f"{path}: a binary file; name a results.tsv or another table of experiments")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    return content.decode(encoding, "replace")


def expand(paths: Sequence[Path]) -> list[Path]:
    """Return files as they are, and of folders the histories in them, in the order of their names."""
    endings = {".tsv", ".csv"}
    found = [
        [path] if not path.is_dir() else sorted(p for p in path.iterdir() if p.suffix in endings) for path in paths
    ]
    return [path for each in found for path in each]
