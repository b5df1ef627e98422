"""Reads documents in a process of their own, which may crash, hang or run out of memory without harm to this one."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter

from loopgraph_mcp.errors import SourceError
from loopgraph_mcp.ingest.chunk import Passage
from loopgraph_mcp.ingest.parsers.__main__ import MOST_BYTES_OF_A_LINE, MOST_BYTES_OUT, OUT_OF_MEMORY, request
from loopgraph_mcp.ingest.parsers.model import Format, State

MEMORY_BYTES = 2**30
TIMEOUT_S = 60.0
_MOST_BYTES_IN = 256 * 2**20
_MOST_BYTES_OF_AN_ERROR = 10_000
_MOST_DOCUMENTS = 100  # of one process, so that what a parser leaves behind goes with it
_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
_INSTEAD: dict[Format, str] = {
    "latex": "give its HTML or its PDF",
    "html": "give its LaTeX source or its PDF",
    "pdf": "give its LaTeX source, or print it to a new PDF",
    "markdown": "give a part of it",
    "code": "give a part of it",
}


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a document holds.

    Args:
        title: Its title; empty where it says none.
        passages: Its passages in reading order.
        words: How many words all of it has.
        warnings: What could not be read or was left out, each a sentence.
        state: `read`, or why there are no passages; the first warning then says what to do.
    """

    title: str
    passages: tuple[Passage, ...]
    words: int
    warnings: tuple[str, ...] = ()
    state: State = "read"


@dataclass(frozen=True, slots=True)
class _Head:
    title: str
    warnings: tuple[str, ...]
    state: State
    words: int
    batches: int


_HEAD = TypeAdapter(_Head)
_BATCH = TypeAdapter(list[tuple[str, str]])


class Reader:
    """Reads documents one after the other in one process, and in a new one after a document that was its end.

    async with Reader() as reader:
        parsed = await reader.parse("markdown", b"# Notes")
    """

    def __init__(self) -> None:
        """Start nothing yet: the first document does."""
        self._process: asyncio.subprocess.Process | None = None
        self._complaint: asyncio.Task[bytes] | None = None  # what it writes to standard error, read as it comes
        self._read = 0

    async def __aenter__(self) -> Self:
        """Return the reader."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End its process."""
        await self.close()

    async def close(self) -> None:
        """End the process, if there is one."""
        process, self._process, self._read = self._process, None, 0
        complaint, self._complaint = self._complaint, None
        if complaint is not None:
            complaint.cancel()
            await asyncio.wait([complaint])
        if process is not None:
            await _end(process)

    async def parse(
        self,
        form: Format,
        data: bytes | Mapping[str, bytes],
        *,
        path: str = "",
        timeout_s: float = TIMEOUT_S,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Parsed:
        """Return a document's passages; encrypted, scanned, broken and too large ones have that state and none.

        Args:
            form: How it is written.
            data: Its bytes; LaTeX may be several files by their path.
            path: Where it stands, which names the symbols of code.
            timeout_s: How long reading may take.
            memory_bytes: How much address space it may use.

        Raises:
            SourceError: It is too large, or reading it took too much time or memory, or failed.
        """
        name = path or f"the {form} document"
        size = len(data) if isinstance(data, bytes) else sum(map(len, data.values()))
        if size > _MOST_BYTES_IN:
            raise SourceError(
                f"{name}: {size:,} bytes; at most {_MOST_BYTES_IN // 2**20} MiB are read: give a part of it"
            )
        line, bodies = request(form, data, path=path, memory_bytes=memory_bytes, cpu_s=max(1, int(timeout_s) + 1))
        if self._read >= _MOST_DOCUMENTS:
            await self.close()
        whole = False
        try:
            async with asyncio.timeout(timeout_s):
                if self._process is None:
                    self._process = await _start()
                    self._complaint = asyncio.create_task(_drained(self._process.stderr))
                await _send(self._process, [line, *bodies])
                parsed = await _received(self._process.stdout)
                if parsed is None:
                    why = await self._why(timeout_s, memory_bytes)
                    raise SourceError(f"{name}: {why}; {_INSTEAD[form]}")
            self._read, whole = self._read + 1, True
        except TimeoutError as error:
            raise SourceError(f"{name}: reading it took longer than {timeout_s:g} s; {_INSTEAD[form]}") from error
        except ValueError as error:  # pydantic's, or asyncio's of a line without an end
            raise SourceError(f"{name}: its reader wrote no document; {_INSTEAD[form]}") from error
        finally:
            if not whole:
                await self.close()
        return parsed

    async def _why(self, timeout_s: float, memory_bytes: int) -> str:
        """Return why the process ended before it had written a document."""
        assert self._process is not None  # noqa: S101 - it was started
        assert self._complaint is not None  # noqa: S101 - with it
        status, complaint = await self._process.wait(), await self._complaint
        if status in {OUT_OF_MEMORY, -signal.SIGKILL}:
            return f"reading it takes over {memory_bytes // 2**20} MiB of memory"
        if status == -signal.SIGXCPU:
            return f"reading it took longer than {timeout_s:g} s"
        if status == 0:
            return "its reader wrote no document"
        last = complaint.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        return f"its reader failed (exit {status}{f': {last}' if last else ''})"


async def parse(form: Format, data: bytes | Mapping[str, bytes], **bounds: Any) -> Parsed:
    """Return one document's passages, from a process of its own; the arguments and errors of `Reader.parse`."""
    async with Reader() as reader:
        return await reader.parse(form, data, **bounds)


async def _start() -> asyncio.subprocess.Process:
    """Start a reader; a cancellation meanwhile ends it, which asyncio itself would wait for without an end."""
    start = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "loopgraph_mcp.ingest.parsers",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            cwd=Path(sys.executable).parent,
            limit=MOST_BYTES_OF_A_LINE,
        )
    )
    try:
        return await asyncio.shield(start)
    except asyncio.CancelledError:
        await _end(await start)
        raise


async def _send(process: asyncio.subprocess.Process, parts: list[bytes]) -> None:
    """Write all of it, unless the process ends before it has read it."""
    assert process.stdin is not None  # noqa: S101 - it was opened as a pipe
    try:
        for part in parts:
            process.stdin.write(part)
            await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        return


async def _received(stream: asyncio.StreamReader | None) -> Parsed | None:
    """Return the document that a reader wrote, or None where it ended before.

    Raises:
        ValueError: It wrote something else.
    """
    assert stream is not None  # noqa: S101 - it was opened as a pipe
    if not (line := await stream.readline()):
        return None
    head, passages, size = _HEAD.validate_json(line), list[Passage](), 0
    for _ in range(head.batches):
        line = await stream.readline()
        size += len(line)
        if size > 2 * MOST_BYTES_OUT:
            raise ValueError("more than a reader writes")
        passages += [Passage(place, text) for place, text in _BATCH.validate_json(line)]
    return Parsed(head.title, tuple(passages), head.words, head.warnings, head.state)


async def _drained(stream: asyncio.StreamReader | None) -> bytes:
    """Return the beginning of what a stream says, up to its end; the rest is read and dropped."""
    assert stream is not None  # noqa: S101 - it was opened as a pipe
    found = bytearray()
    while part := await stream.read(2**16):
        found += part[: max(0, _MOST_BYTES_OF_AN_ERROR - len(found))]
    return bytes(found)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process with its group, wait for it, and close its pipes."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        if process.returncode is None:
            process.kill()
    await process.communicate()
