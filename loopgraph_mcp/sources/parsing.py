"""Reads documents in a process of their own, which may crash, hang or run out of memory without harm to this one."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from loopgraph_mcp.documents.__main__ import MOST_BYTES_OUT, OUT_OF_MEMORY, request
from loopgraph_mcp.documents.model import Document, Format
from loopgraph_mcp.errors import SourceError

MEMORY_BYTES = 2**30
_MOST_BYTES_IN = 256 * 2**20
_MOST_BYTES_OF_AN_ERROR = 10_000
_DOCUMENT = TypeAdapter(Document)
_PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
_INSTEAD: dict[Format, str] = {
    "latex": "give its HTML or its PDF",
    "html": "give its LaTeX source or its PDF",
    "pdf": "give its LaTeX source, or print it to a new PDF",
    "markdown": "give a part of it",
    "code": "give a part of it",
}


async def parse(
    form: Format,
    data: bytes | Mapping[str, bytes],
    *,
    path: str = "",
    timeout_s: float = 60,
    memory_bytes: int = MEMORY_BYTES,
) -> Document:
    """Return a document's blocks; encrypted, scanned, broken and too large ones have that state and no blocks.

    Args:
        form: How it is written.
        data: Its bytes; LaTeX may be several files by their path.
        path: Where it stands, which names the symbols of code.
        timeout_s: How long reading may take.
        memory_bytes: How much address space it may use.

    Raises:
        SourceError: Reading it took too much time or memory, or failed.
    """
    name = path or f"the {form} document"
    size = len(data) if isinstance(data, bytes) else sum(map(len, data.values()))
    if size > _MOST_BYTES_IN:
        raise SourceError(f"{name}: {size:,} bytes; at most {_MOST_BYTES_IN // 2**20} MiB are read: give a part of it")
    line, bodies = request(form, data, path=path, memory_bytes=memory_bytes, cpu_s=max(1, int(timeout_s) + 1))
    process = await _start()
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
            tasks.create_task(_send(process, [line, *bodies]))
            told = tasks.create_task(_receive(process.stdout, MOST_BYTES_OUT))
            complaint = tasks.create_task(_receive(process.stderr, _MOST_BYTES_OF_AN_ERROR))
            ended = tasks.create_task(process.wait())
        status = ended.result()
    except TimeoutError as error:
        raise SourceError(f"{name}: reading it took longer than {timeout_s:g} s; {_INSTEAD[form]}") from error
    finally:
        await _end(process)
    if status in {OUT_OF_MEMORY, -signal.SIGKILL}:
        raise SourceError(f"{name}: reading it takes over {memory_bytes // 2**20} MiB of memory; {_INSTEAD[form]}")
    if status == -signal.SIGXCPU:
        raise SourceError(f"{name}: reading it took longer than {timeout_s:g} s; {_INSTEAD[form]}")
    if status != 0:
        last = complaint.result().decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        raise SourceError(f"{name}: its reader failed (exit {status}{f': {last}' if last else ''}); {_INSTEAD[form]}")
    try:
        return _DOCUMENT.validate_json(told.result())
    except ValidationError as error:
        raise SourceError(f"{name}: its reader wrote no document; {_INSTEAD[form]}") from error


async def _start() -> asyncio.subprocess.Process:
    """Start a reader; a cancellation meanwhile ends it, which asyncio itself would wait for without an end."""
    start = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "loopgraph_mcp.documents",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            cwd=Path(sys.executable).parent,
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
        process.stdin.close()
        await process.stdin.wait_closed()
    except (BrokenPipeError, ConnectionResetError):
        return


async def _receive(stream: asyncio.StreamReader | None, most: int) -> bytes:
    """Return what a stream says, up to its end; what is over the limit is read and dropped."""
    assert stream is not None  # noqa: S101 - it was opened as a pipe
    found = bytearray()
    while part := await stream.read(2**16):
        found += part[: max(0, most - len(found))]
    return bytes(found)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process with its group, wait for it, and close its pipes."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        if process.returncode is None:
            process.kill()
    await process.communicate()
