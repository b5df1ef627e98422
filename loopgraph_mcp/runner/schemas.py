"""Converts values from clients to the types of a JSON schema, and describes in plain words what it expects."""

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from loopgraph_mcp.text import compile_later

Schema = Mapping[str, Any]

_NUMBER = compile_later(r"[+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,3})?", re.ASCII)
_WHOLE = compile_later(r"[+-]?\d{1,40}", re.ASCII)
_YES, _NO = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})
_MAX_SHOWN = 60  # characters of a wrong value that an error quotes
_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "an object",
}


def kinds(schema: Schema) -> set[str]:
    """Return the JSON types that a schema takes."""
    found = {kind for branch in schema.get("anyOf", ()) for kind in kinds(branch)}
    return found | ({schema["type"]} if "type" in schema else set())


def is_blank(value: Any) -> bool:
    """Return whether a client means by a value that it gives none."""
    return value is None or (isinstance(value, str) and not value.strip())


def fitted(value: Any, schema: Schema) -> Any:
    """Return a value in the type that a schema wants where its meaning is plain; any other value as it is.

    Text stays text wherever text is wanted: `"5"` is a query as good as another.
    """
    wanted = kinds(schema)
    if isinstance(value, str):
        return _from_text(value, schema, wanted)
    if isinstance(value, float) and value.is_integer() and "integer" in wanted and "number" not in wanted:
        return int(value) if abs(value) < 2**53 else value
    if type(value) is int and value in (0, 1) and "boolean" in wanted and not wanted & {"integer", "number"}:
        return bool(value)
    return value


def _from_text(text: str, schema: Schema, wanted: AbstractSet[str]) -> Any:
    if choices := _choices(schema):
        alike = [each for each in choices if _plain(each) == _plain(text)]
        return alike[0] if len(alike) == 1 else text
    if "string" in wanted:
        return text
    word = text.strip().casefold()
    if "boolean" in wanted and word in _YES | _NO:
        return word in _YES
    if wanted & {"integer", "number"}:
        found = number(text)
        return found if found is not None and ("number" in wanted or isinstance(found, int)) else text
    if wanted & {"array", "object"}:
        read = _json(text)
        if isinstance(read, list if "array" in wanted else dict):
            return read
        if "array" in wanted and word and not word.startswith(("[", "{")):
            return [text]
    return text


def number(text: str) -> int | float | None:
    """Return the finite number that a text is, a whole one as int; None for any other text."""
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    if not _NUMBER.fullmatch(text):
        return None
    found = float(text)
    if not math.isfinite(found):
        return None
    return int(found) if found.is_integer() and abs(found) < 2**53 else found


def _json(text: str) -> Any:
    """Return the list or object that a text holds as JSON, or None."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _choices(schema: Schema) -> list[str]:
    own = [str(each) for each in schema.get("enum", [schema["const"]] if "const" in schema else [])]
    return own + [each for branch in schema.get("anyOf", ()) for each in _choices(branch)]


def _plain(word: str) -> str:
    return re.sub(r"[\s_-]+", "_", word.strip().casefold())


# ------------------------------------------------------------------------------------------------- words


def wanted(schema: Schema) -> str:
    """Return in words what a schema takes: `a whole number from 1 to 20`."""
    branches = [branch for branch in schema.get("anyOf", ()) if branch.get("type") != "null"]
    if branches:
        said = dict.fromkeys(wanted(branch) for branch in branches)
        if "a number" in said:
            said.pop("a whole number", None)
        return " or ".join(said)
    if choices := _choices(schema):
        return f"one of {', '.join(choices)}"
    kind = schema.get("type", "")
    if kind == "array":
        return f"a list of {_plural(schema.get('items', {}))}{_size(schema, 'Items', 'items')}"
    words = _TYPES.get(kind, "another value")
    if kind == "string":
        return words + _size(schema, "Length", "characters")
    return words + _range(schema)


def _plural(items: Schema) -> str:
    return {"string": "texts", "integer": "whole numbers", "number": "numbers"}.get(items.get("type", ""), "values")


def _size(schema: Schema, of: str, unit: str) -> str:
    low, high = schema.get(f"min{of}"), schema.get(f"max{of}")
    if low and high:
        return f" of {low} to {high:,} {unit}"
    if high:
        return f" of at most {high:,} {unit}"
    return f" of at least {low} {unit.removesuffix('s') if low == 1 else unit}" if low else ""


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f" from {low:,} to {high:,}"
    parts = [
        f" {word} {schema[key]:,}"
        for key, word in (
            ("exclusiveMinimum", "above"),
            ("minimum", "of at least"),
            ("exclusiveMaximum", "below"),
            ("maximum", "of at most"),
        )
        if schema.get(key) is not None
    ]
    return " and".join(parts)


def shown(value: Any) -> str:
    """Return a value as it was sent, cut to what fits in a sentence, with its size where that may be what is wrong."""
    if value is None:
        return "null"
    if isinstance(value, str):
        text = json.dumps(value[: _MAX_SHOWN + 1])
        return text if len(value) <= _MAX_SHOWN else f"{json.dumps(value[:_MAX_SHOWN])}… ({len(value):,} characters)"
    if isinstance(value, list):
        return f"a list of {len(value):,} item{'s' if len(value) != 1 else ''}"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number with over 60 digits"
    return str(value)


def unknown(name: str, known: Sequence[str], what: str) -> str:
    """Return that there is no such name, with the nearest one, or with all of them where none is near."""
    key = _plain(name)[:_MAX_SHOWN]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    near = near or [each for each in known if len(key) > 2 and (each.startswith(key) or key.startswith(each))][:1]
    hint = f"did you mean {near[0]}? Choose from" if near else "there is"
    return f"no {what} {shown(name)}; {hint} {', '.join(known)}"
