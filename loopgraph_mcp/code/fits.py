"""How methods fit a program: tried on it, each once, with the reason in the program's terms where one does not."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loopgraph_mcp.code import apply as edits
from loopgraph_mcp.code import programs, roles, syntax
from loopgraph_mcp.code.apply import Around
from loopgraph_mcp.code.by_role import constant_names
from loopgraph_mcp.code.by_role.draft import elsewhere
from loopgraph_mcp.models import Applied, Method, Presence, Present, Refused
from loopgraph_mcp.text import compile_later

_MODEL = compile_later(r"GPT|Transformer|Model|LMHead|Net$", re.IGNORECASE)
_LANGUAGE = compile_later(r"bpb|bits_per|perplexity|(^|_)ppl($|_)", re.IGNORECASE)
_RATES = frozenset(name for edit in ("muon_lr", "embedding_lr", "unembedding_lr") for name in constant_names(edit))
_PARTS = {
    "CausalSelfAttention": "attention",
    "MLP": "feed-forward layer",
    "Block": "block of layers",
    "GPT": "model",
    "train": "training loop",
    "get_lr_multiplier": "schedule of the learning rate",
    "build_model_config": "place that configures the model",
    "GPTConfig": "place that configures the model",
}


@dataclass(frozen=True, slots=True)
class Fit:
    """What a method's recipe does with a program.

    Args:
        presence: How far the program holds the method already; None where that is not known.
        misfit: Why the recipe does not fit; empty where it does.
        text: The edited program; empty where there is none.
    """

    presence: Presence | None = None
    misfit: str = ""
    text: str = ""


def is_model(program: str, metric: str = "") -> bool:
    """Return whether a program is a neural network, by its code or a metric that only language models have."""
    if _LANGUAGE.search(metric):
        return True
    try:
        source = syntax.read(program)
    except syntax.Unparsable:
        return False
    if roles.of(source).framework or any(syntax.bindings(source.tree, name) for name in _RATES):
        return True
    return any(
        isinstance(node, ast.ImportFrom) and any(_MODEL.search(alias.name) for alias in node.names)
        for node in source.tree.body
    )


def fits(methods: Sequence[Method], program: str, siblings: Mapping[str, str]) -> dict[str, Fit]:
    """Return how each method fits a program; each is tried once, since the file changes far less often than asked."""
    known = _known(program, *(f"{name}\n{text}" for name, text in sorted(siblings.items())))
    around = Around(siblings, {method.id: method for method in methods})
    for method in methods:
        if known.get(method.id, (None,))[0] is not method:
            known[method.id] = (method, _fit(method, program, around))
    return {method.id: known[method.id][1] for method in methods}


@programs.remembered(2**19)
def _known(*texts: str) -> dict[str, tuple[Method, Fit]]:  # noqa: ARG001 - the result is kept by them
    """Return what is known of a program beside others, to be filled."""
    return {}


def _fit(method: Method, program: str, around: Around) -> Fit:
    if method.recipe is None:
        return Fit()
    made = edits.apply_method(method, program, {}, around)
    match made:
        case Present():
            return Fit(Presence.PRESENT)
        case Applied():
            return Fit(edits.detect(method, program, around=around), text=made.text)
    if not method.has_edit:
        return Fit()
    presence = edits.detect(method, program, around=around)
    return Fit(presence, misfit(made, program))


def misfit(refused: Refused, program: str) -> str:
    """Return why a method does not fit, in the terms of the file: what it lacks, or does in another way."""
    try:
        source = syntax.read(program)
    except syntax.Unparsable as error:
        return f"the file is no Python that can be read ({error})"
    found = roles.of(source)
    if "`" not in refused.looked_for:
        return f"it needs {refused.looked_for}; {refused.reason}"
    named = re.findall(r"[A-Za-z_]+", refused.looked_for)
    part = next((_PARTS[name] for name in named if name in _PARTS), "")
    part = part or ("Muon optimizer" if any("muon" in name.lower() for name in named) else "")
    if not part:
        return f"it needs {refused.looked_for}: {refused.reason}"
    has = {
        "attention": bool(found.attentions),
        "feed-forward layer": bool(found.feed_forwards),
        "block of layers": bool(found.attentions),
        "model": found.model is not None,
        "training loop": found.loop is not None,
    }
    if not has.get(part, False):
        return f"this file has no {part} of a known form{elsewhere(found)}"
    return f"this file's {part} is written in a form that the recipe does not know"
