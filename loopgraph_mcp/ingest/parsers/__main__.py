"""Reads documents from standard input in a process that may fail: bounded memory and time, their passages as JSON."""

import json
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from loopgraph_mcp.ingest.chunk import Passage, chunk
from loopgraph_mcp.ingest.parsers.model import Document, Format
from loopgraph_mcp.ingest.parsers.reading import read

OUT_OF_MEMORY = 137
MOST_BYTES_OUT = 16 * 2**20  # of passages: some 10,000 of them, more than any book has
MOST_BYTES_OF_A_LINE = 2**20
_BYTES_OF_A_BATCH = 2**16  # parsed in less than a millisecond
_MOST_CHARS = 1_000  # of a title or a warning
_MOST_WARNINGS = 200


def request(
    form: Format, data: bytes | Mapping[str, bytes], *, path: str, memory_bytes: int, cpu_s: int
) -> tuple[bytes, list[bytes]]:
    """Return the line that asks for a document, and the files' bytes that are to follow it.

    Args:
        form: How the document is written.
        data: Its bytes; LaTeX may be several files.
        path: Where it stands.
        memory_bytes: How much address space the process may use.
        cpu_s: How many seconds of a processor, from now on.
    """
    files = {path: data} if isinstance(data, bytes) else data
    sizes = [(name, len(each)) for name, each in files.items()]
    asked = {"form": form, "path": path, "files": sizes, "memory_bytes": memory_bytes, "cpu_s": cpu_s}
    return json.dumps(asked).encode() + b"\n", list(files.values())


def main(source: BinaryIO, answer: BinaryIO) -> int:
    """Read what is asked for on `source`, one document after the other; return the exit status."""
    _limit(resource.RLIMIT_CORE, 0)
    while line := source.readline():
        asked = json.loads(line)
        files = {name: source.read(size) for name, size in asked["files"]}
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_AS, asked["memory_bytes"])
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + asked["cpu_s"])
        try:
            document = read(asked["form"], files, path=asked["path"])
            answer.writelines(_written(document, chunk(document)))
        except MemoryError:
            return OUT_OF_MEMORY
        answer.flush()
    return 0


def _written(document: Document, passages: Sequence[Passage]) -> Iterator[bytes]:
    """Yield the lines of an answer: what the document is, with the number of batches, then the batches of passages."""
    batches = list(_batches(passages))
    too_large = sum(map(len, batches)) > MOST_BYTES_OUT
    told = {
        "title": document.title[:_MOST_CHARS],
        "warnings": [each[:_MOST_CHARS] for each in document.warnings[:_MOST_WARNINGS]],
        "state": "too_large" if too_large else document.state,
        "words": sum(len(each.text.split()) for each in document.blocks),
        "batches": 0 if too_large else len(batches),
    }
    if too_large:
        told["warnings"] = [f"its passages have over {MOST_BYTES_OUT >> 20} MiB; give a part of it"]
    yield json.dumps(told).encode() + b"\n"
    yield from () if too_large else batches


def _batches(passages: Sequence[Passage]) -> Iterator[bytes]:
    batch, size = list[tuple[str, str]](), 0
    for each in passages:
        batch.append((each.place[:_MOST_CHARS], each.text))
        size += len(each.text)
        if size >= _BYTES_OF_A_BATCH:
            yield json.dumps(batch).encode() + b"\n"
            batch, size = [], 0
    if batch:
        yield json.dumps(batch).encode() + b"\n"


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(what, (allowed, hard))
    except (ValueError, OSError):  # macOS knows no limit on address space
        return


if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer, sys.stdout.buffer))
