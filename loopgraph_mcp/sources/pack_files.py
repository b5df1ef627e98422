"""Writes method packs: TOML that read_pack reads back as the same methods."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from loopgraph_mcp.errors import PackError
from loopgraph_mcp.models import Mark, Method, Pack, Recipe, RecipeOp
from loopgraph_mcp.sources.pack_texts import MANIFEST
from loopgraph_mcp.sources.packs import read_pack

_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_PRIVATE = re.compile(r"(?:/home/|/Users/|/root/|[A-Za-z]:\\+Users\\+)[^\s\"']*")


def write_pack(
    folder: Path, name: str, methods: Sequence[Method], *, version: str, licence: str, remarks: Mapping[str, str]
) -> Pack:
    """Write a pack into a new or empty folder, and read it back; `remarks` are comments at the head of a method's file.

    Raises:
        PackError: The folder is in use, a method names a private path, or what was written is no valid pack.
    """
    texts = {f"{method.id}.toml": _method_text(method, remarks.get(method.id, "")) for method in methods}
    for file, text in texts.items():
        if found := _PRIVATE.search(text):
            raise PackError(
                f"{file}: it names {found.group()!r}, a path of this machine; export the other methods with --method"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise PackError(f"{folder}: not empty; name a new folder")
        manifest = {"name": name, "version": version, "license": licence}
        for file, text in {MANIFEST: "\n".join(_table(manifest, "")) + "\n", **texts}.items():
            (folder / file).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise PackError(f"{folder}: cannot be written ({error})") from error
    return read_pack(folder)


def _method_text(method: Method, remark: str) -> str:
    lines = [f"# {remark}"] if remark else []
    return "\n".join([*lines, *_table(_plain(method), "")]) + "\n"


def _plain(method: Method) -> dict[str, Any]:
    """Return a method in the form of its file: what is empty is left out."""
    card = asdict(replace(method, recipe=None))
    del card["moves"]  # which are read from `change` or the name
    card["knobs"] = {knob.pop("name"): knob for knob in card["knobs"]}
    card["recipe"] = None if method.recipe is None else _recipe(method.recipe)
    return _filled(card)


def _recipe(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe in the form of its file."""

    def ops(of: Sequence[RecipeOp]) -> list[dict[str, Any]]:
        told = [{"op": _snake(type(op).__name__), **asdict(op)} for op in of]
        return [each | {"values": dict(each["values"])} if each.get("values") else each for each in told]

    def marked(mark: Mark) -> dict[str, Any]:
        return _filled(asdict(mark))

    return {
        "conflicts": list(recipe.conflicts),
        "needs": [marked(each) for each in recipe.needs],
        "detect": [{"state": each.state, **marked(each.mark)} for each in recipe.detect],
        "ops": ops(recipe.ops),
        "variants": [
            {"part": each.part, "needs": [marked(mark) for mark in each.needs], "ops": ops(each.ops)}
            for each in recipe.variants
        ],
        "companions": [
            _filled(
                {
                    "name": each.name,
                    "why": each.why,
                    "required": each.required,
                    "method": each.method,
                    "knobs": dict(each.knobs),
                    "needs": [marked(mark) for mark in each.needs],
                    "ops": ops(each.ops),
                }
            )
            for each in recipe.companions
        ],
    }


def _filled(card: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in card.items() if value not in (None, "", (), [], {})}


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _table(table: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Yield a table's lines: its own keys first, then its tables, then its lists of tables."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lists = {key: value for key, value in table.items() if _is_tables(value)}
    for key, value in table.items():
        if key not in inner and key not in lists and value not in (None, "", ()):
            yield f"{key} = {_value(value)}"
    for key, value in inner.items():
        if value and not any(not isinstance(each, Mapping) for each in value.values()):
            yield from _table(value, f"{prefix}{key}.")
            continue
        yield f"\n[{prefix}{key}]"
        yield from _table(value, f"{prefix}{key}.")
    for key, values in lists.items():
        for value in values:
            yield f"\n[[{prefix}{key}]]"
            yield from _table(value, f"{prefix}{key}.")


def _is_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(each) for each in value)}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _text(text: str) -> str:
    escaped = _HIDDEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text.replace("\\", "\\\\").replace('"', '\\"'))
    return f'"""\n{escaped}"""' if "\n" in text else '"' + escaped.replace("\t", "\\t") + '"'
