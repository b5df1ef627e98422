"""Writes method packs: TOML that read_pack reads back as the same methods."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomlkit

from loopgraph_mcp.errors import PackError
from loopgraph_mcp.ingest.pack_texts import MANIFEST
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.models import Method, Pack

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
        for file, text in {MANIFEST: tomlkit.dumps(manifest), **texts}.items():
            (folder / file).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise PackError(f"{folder}: cannot be written ({error})") from error
    return read_pack(folder)


def _method_text(method: Method, remark: str) -> str:
    return (f"# {remark}\n" if remark else "") + tomlkit.dumps(_plain(method))


def _plain(method: Method) -> dict[str, Any]:
    """Return a method in the form of its file: what is empty is left out."""
    card = asdict(method)
    del card["moves"]  # which are read from `change` or the name
    card["knobs"] = {knob.pop("name"): knob for knob in card["knobs"]}
    if (recipe := card["recipe"]) is not None:
        recipe["detect"] = [{"state": each["state"], **each["mark"]} for each in recipe["detect"]]
        for each in recipe["companions"]:
            each["knobs"] = dict(each["knobs"])
    filled: dict[str, Any] = _filled(card)
    return filled


def _filled(value: Any) -> Any:
    """Return a value as TOML shows it best: without what is empty, an op before its fields, and lines as lines."""
    if isinstance(value, list | tuple):
        return [_filled(each) for each in value]
    if isinstance(value, dict):
        first = {"op": value["op"]} if "op" in value else {}
        return first | {key: _filled(each) for key, each in value.items() if each not in (None, "", (), [], {})}
    return tomlkit.string(value, multiline=True) if isinstance(value, str) and "\n" in value else value
