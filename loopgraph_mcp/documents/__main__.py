"""Reads one document from standard input in a process that may fail: bounded memory and time, the answer as JSON."""

import json
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import BinaryIO

from loopgraph_mcp.documents.model import Format
from loopgraph_mcp.documents.reading import read

OUT_OF_MEMORY = 137
MOST_BYTES_OUT = 64 * 2**20


def request(
    form: Format, data: bytes | Mapping[str, bytes], *, path: str, memory_bytes: int, cpu_s: int
) -> tuple[bytes, list[bytes]]:
    """Return the line that asks for a document, and the files' bytes that are to follow it.

    Args:
        form: How the document is written.
        data: Its bytes; LaTeX may be several files.
        path: Where it stands.
        memory_bytes: How much address space the process may use.
        cpu_s: How many seconds of a processor.
    """
    files = {path: data} if isinstance(data, bytes) else data
    sizes = [(name, len(each)) for name, each in files.items()]
    asked = {"form": form, "path": path, "files": sizes, "memory_bytes": memory_bytes, "cpu_s": cpu_s}
    return json.dumps(asked).encode() + b"\n", list(files.values())


def main(source: BinaryIO, answer: BinaryIO) -> int:
    """Read what is asked for on `source`; return the exit status."""
    asked = json.loads(source.readline())
    files = {name: source.read(size) for name, size in asked["files"]}
    _limit(resource.RLIMIT_AS, asked["memory_bytes"])
    _limit(resource.RLIMIT_CPU, asked["cpu_s"])
    _limit(resource.RLIMIT_CORE, 0)
    try:
        document = read(asked["form"], files, path=asked["path"])
        written = json.dumps(asdict(document)).encode()
    except MemoryError:
        return OUT_OF_MEMORY
    if len(written) > MOST_BYTES_OUT:
        return OUT_OF_MEMORY
    answer.write(written)
    return 0


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(what, (allowed, hard))
    except (ValueError, OSError):  # macOS knows no limit on address space
        return


if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer, sys.stdout.buffer))
