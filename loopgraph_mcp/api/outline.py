"""The verbs map_code and map_file: what stands where in a program, with the methods in it, within some tokens."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from loopgraph_mcp.api.answers import CodeMapAnswer, MappedEntry
from loopgraph_mcp.api.state import State
from loopgraph_mcp.code import apply, outline, outline_fit
from loopgraph_mcp.code.outline import CodeMap
from loopgraph_mcp.errors import WorkspaceError
from loopgraph_mcp.models import Advice, Method, NextStep, Presence
from loopgraph_mcp.runner.plain_files import read_plain
from loopgraph_mcp.runner.workspace import resolved
from loopgraph_mcp.store import methods
from loopgraph_mcp.text import estimate_tokens

DEFAULT_BUDGET = 800
_MAX_FILES = 400
_TOUCHED = 8  # symbols closest to a question, whose files' imports are shown
_MAX_BYTES = 4 * 2**20  # of a whole folder
_MAX_FILE_BYTES = 2**20
_SKIPPED = frozenset({"__pycache__", "node_modules", "build", "dist", "venv", "site-packages"})


async def map_code(
    state: State, path: str | None, *, query: str, budget_tokens: int, workspace: str | None
) -> CodeMapAnswer:
    """Return the map of a file or folder of a workspace; by default of its editable file.

    Raises:
        WorkspaceError: There is nothing there that can be read, or it lies outside.
    """
    where = await state.here.workspace(workspace)
    target = resolved(where.path / (path or where.editable))
    if not target.is_relative_to(where.path):
        raise WorkspaceError(f"{target}: lies outside of {where.path}; give a path inside it")
    return await map_file(state, target, query=query, budget_tokens=budget_tokens)


async def map_file(state: State, path: Path, *, query: str, budget_tokens: int) -> CodeMapAnswer:
    """Return the map of any Python file, or of a folder of them."""
    return await map_path(path, await methods.all_methods(state.db), query=query, budget_tokens=budget_tokens)


async def map_path(path: Path, known: Sequence[Method], *, query: str, budget_tokens: int) -> CodeMapAnswer:
    """Return the map of a file or of a folder's Python files.

    Raises:
        WorkspaceError: There is nothing there that can be read.
    """
    return await asyncio.to_thread(_map_path, path, known, query, budget_tokens)


def _map_path(path: Path, known: Sequence[Method], query: str, budget_tokens: int) -> CodeMapAnswer:
    texts, note = _texts(path)
    if path.is_dir():
        maps = outline.map_folder(texts)
        notes = [note, *_imports(maps, path.name, query)]
    else:
        text = texts[path.name]
        maps = {path.name: outline.map_text(text)}
        notes = _present(known, text)
    lines = sum(len(each.lines) for each in maps.values())
    size = sum(estimate_tokens(text[: outline.MAX_CHARS]) for text in texts.values())
    files = "" if len(maps) == 1 else f"{len(maps)} files, "
    name = path.name if len(path.name) < 80 else f"{path.name[:80]}…"
    head = f"{name}: {files}{lines:,} lines, about {size:,} tokens"
    fitted = outline_fit.fit(list(maps.values()), query, budget_tokens, [each for each in notes if each])
    return CodeMapAnswer(
        path=str(path),
        query=query,
        text=f"{head}\n{fitted.text}",
        entries=[
            MappedEntry(each.kind.value, each.name, each.line, each.end_line, each.text, each.path)
            for each in fitted.shown
        ],
        left_out={kind.value: count for kind, count in fitted.left_out.items()},
        errors=[f"{each.path}{each.text}" for made in maps.values() for each in made.errors][:10],
        next_step=_next_step(fitted.left_out, budget_tokens, single=not path.is_dir()),
    )


def _next_step(left_out: object, budget_tokens: int, *, single: bool) -> NextStep:
    if not left_out:
        return NextStep(Advice.NOTHING_LEFT_OUT)
    more: dict[str, str | int | float | bool] = {"budget_tokens": 2 * budget_tokens, "query": "…"}
    return NextStep(Advice.SHOW_MORE, "map_code", more if single else {**more, "path": "…"})


def _present(known: Sequence[Method], text: str) -> list[str]:
    """Return which known methods a text holds, as far as their recipes can tell."""
    able = [each for each in known if each.recipe is not None]
    found = {each.id: how for each, how in zip(able, apply.detect_each(able, text), strict=True)}
    told = []
    for presence, words in ((Presence.PRESENT, "methods present"), (Presence.PARTIAL, "methods present in part")):
        if ids := [each for each, how in found.items() if how is presence]:
            told.append(f"{words}: {', '.join(ids)}")
    return told


def _imports(maps: dict[str, CodeMap], package: str, query: str) -> list[str]:
    """Return which files import which: those that a question touches, or all."""
    graph = outline.import_graph(maps, package)
    touched = {entry.path for entry in outline_fit.relevant(list(maps.values()), query)[:_TOUCHED]}
    edges = [
        f"{path} <- {', '.join(f'{each} ({names})' if names else each for each, names in sorted(found.items()))}"
        for path, found in sorted(graph.items())
        if not touched or path in touched
    ]
    return [f"imports, within the folder: {edges[0]}", *edges[1:]] if edges else []


def _texts(path: Path) -> tuple[dict[str, str], str]:
    """Return the texts of a file or of a folder's Python files by their paths, and what was not read.

    Raises:
        WorkspaceError: There is nothing there that can be read.
    """
    try:
        if path.suffix == ".py" and path.exists() and not path.is_dir():  # a pipe is refused by name
            return {path.name: read_plain(path, _MAX_FILE_BYTES).decode("utf-8", "replace")}, ""
        if not path.is_dir():
            raise WorkspaceError(f"{path}: no Python file and no folder; name a file that ends in .py, or a folder")
        texts, left, skipped = dict[str, str](), _MAX_BYTES, 0
        for file_path in _python_files(path):
            size = file_path.stat().st_size
            if len(texts) >= _MAX_FILES or size > min(left, _MAX_FILE_BYTES):
                skipped += 1
                continue
            left -= size
            texts[str(file_path.relative_to(path))] = read_plain(file_path, _MAX_FILE_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise WorkspaceError(f"{path}: cannot be read ({error})") from error
    if not texts:
        raise WorkspaceError(f"{path}: it holds no Python file; name another folder, or one file")
    return texts, f"{skipped} files were not read: too many, or too large" if skipped else ""


def _python_files(root: Path) -> list[Path]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(each for each in folders if each not in _SKIPPED and not each.startswith("."))
        found += [Path(folder) / each for each in sorted(files) if each.endswith(".py")]
    return [each for each in found if each.is_file() and not each.is_symlink()]
