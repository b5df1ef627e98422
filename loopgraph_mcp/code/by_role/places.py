"""Finds where a program's constant of a role has its value: in the module, a field, a flag or a function."""

import ast
from collections.abc import Sequence

from loopgraph_mcp.code import folding, roles, syntax
from loopgraph_mcp.code.by_role.draft import Answer, Draft, Held, Misfit, parsed_expression, written
from loopgraph_mcp.code.roles import Roles
from loopgraph_mcp.code.syntax import Source
from loopgraph_mcp.models import KnobValue
from loopgraph_mcp.text import compile_later


def constant_names(edit: str) -> tuple[str, ...]:
    """Return how the constants that an edit sets are usually called."""
    return tuple(name.upper() for role in SETS.get(edit, ()) for name in SPELLINGS[role])


_ONLY_WITH = compile_later(r"(only|when|if|with) [^.;]{0,40}--[a-z_-]+[^.;)]{0,40}")
SPELLINGS: dict[str, tuple[str, ...]] = {
    "matrix_lr": ("matrix_lr", "muon_lr", "lr_muon", "hidden_lr", "lr_matrix"),
    "embedding_lr": ("embedding_lr", "embed_lr", "wte_lr", "lr_embed", "emb_lr", "tok_emb_lr"),
    "unembedding_lr": ("unembedding_lr", "head_lr", "lm_head_lr", "unembed_lr", "lr_head"),
    "final_lr_fraction": ("final_lr_frac", "final_lr_fraction", "min_lr_frac", "min_lr_ratio", "lr_min_ratio"),
    "warmdown_ratio": ("warmdown_ratio", "cooldown_frac", "cooldown_fraction", "warmdown_frac", "cooldown_ratio"),
    "warmdown_steps": ("warmdown_iters", "warmdown_steps", "cooldown_iters", "cooldown_steps"),
    "warmup_ratio": ("warmup_ratio", "warmup_frac", "warmup_fraction"),
    "warmup_steps": ("warmup_iters", "warmup_steps", "lr_warmup_steps", "lr_warmup_iters"),
    "steps": ("num_iterations", "max_iters", "iterations", "total_steps", "max_steps", "num_steps", "lr_decay_iters"),
    "momentum_steps": ("muon_momentum_warmup_steps", "momentum_warmup_steps"),
    "rope_base": ("rope_base", "rope_theta", "rotary_base"),
    "adam_betas": ("adam_betas",),
    "window_pattern": ("window_pattern",),
    "depth": ("depth", "n_layer", "num_layers", "n_layers"),
}


SETS: dict[str, tuple[str, ...]] = {
    "embedding_lr": ("embedding_lr",),
    "unembedding_lr": ("unembedding_lr",),
    "muon_lr": ("matrix_lr",),
    "final_lr_floor": ("final_lr_fraction",),
    "warmdown_length": ("warmdown_ratio", "warmdown_steps"),
    "muon_momentum": ("momentum_steps",),
    "lr_warmup": ("warmup_ratio", "warmup_steps"),
    "rope_base": ("rope_base",),
    "adam_betas": ("adam_betas",),
    "sliding_window_pattern": ("window_pattern",),
}


def constant(source: Source, role: str) -> ast.expr | None:
    """Return where the program's one constant of a role has its value: of the module, a field, a flag or a function.

    Raises:
        Misfit: The module binds its name more than once, or in another form than `name = value`.
    """
    for name in SPELLINGS[role]:
        for spelled in (name.upper(), name):
            places = module_constant(source, spelled)
            if len(places) == 1:
                return places[0]
        places = [each for each in syntax.settings(source.tree, name) if not syntax.given_elsewhere(source.tree, each)]
        if len(places) == 1:
            return places[0]
        locals_ = [
            value
            for function in roles.of(source).functions.values()
            for value in syntax.assignments(function, name)
            if len(syntax.bindings(function, name)) == 1
        ]
        if len(locals_) == 1:
            return locals_[0]
    for spelled in (each for name in SPELLINGS[role] for each in (name.upper(), name)):
        lines = sorted([*syntax.bindings(source.tree, spelled), *syntax.global_bindings(source.tree, spelled)])
        if lines:
            many = f"it is bound {len(lines)} times (lines {', '.join(map(str, lines))})"
            reason = many if len(lines) > 1 else f"line {lines[0]} is no such form"
            raise Misfit(f"`{spelled} = …` at module level", reason)
    return None


def module_constant(source: Source, name: str) -> list[ast.expr]:
    """Return the value of a constant that the module sets once, or nothing."""
    found = syntax.assignments(source.tree, name)
    bound = syntax.bindings(source.tree, name) + syntax.global_bindings(source.tree, name)
    return found if len(found) == len(bound) == 1 else []


def set_value(source: Source, place: ast.expr, value: KnobValue) -> Answer:
    """Set a constant; an environment variable keeps its say."""
    inner = folding.own_default(place)
    text = as_there(inner, written(value))
    current = roles.of(source).constants.get(inner)
    if any(isinstance(node, ast.Call) and roles.called(node) == "get" for node in syntax.walk(inner)):
        raise Misfit("a number of the program's own", f"line {place.lineno} looks it up: what it finds would be lost")
    if condition := _condition(source, inner):
        raise Misfit("a flag that counts by default", f"line {place.lineno} says of it: {condition}")
    if current is None or (isinstance(current, int | float) and current < 0):
        shown = source.slice(source.span(inner))
        raise Misfit("a number of the program's own", f"line {place.lineno} says {shown}: it takes one from elsewhere")
    if syntax.alike(parsed_expression(text), inner) or (isinstance(current, float | int) and current == value):
        return Held(f"line {place.lineno} has this value already")
    draft = Draft(source)
    draft.put(inner, text)
    return draft


def _condition(source: Source, place: ast.expr) -> str:
    """Return the help of a flag that only counts with another one."""
    for call in folding.flags(source.tree):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        told = given.get("help")
        if given.get("default") is place and isinstance(told, ast.Constant) and isinstance(told.value, str):
            found = _ONLY_WITH.search(told.value)
            return found.group() if found else ""
    return ""


def as_there(place: ast.expr, text: str) -> str:
    """Return a value as a text where a text stands: environment variables have texts for defaults."""
    return f'"{text}"' if isinstance(place, ast.Constant) and isinstance(place.value, str) else text


def scalar(source: Source, spelled: Sequence[str]) -> ast.expr | None:
    """Return where the first of some names has its one value."""
    for name in spelled:
        places = module_constant(source, name) or syntax.settings(source.tree, name)
        if len(places) == 1:
            return places[0]
    return None


def place_of(source: Source, found: Roles, node: ast.expr) -> ast.expr | None:
    """Return where a value that code reads has its number: the code itself, a constant, a field or a flag."""
    if isinstance(node, ast.Constant):
        return node
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    if not name:
        return None
    function = found.function_of(node)
    if isinstance(node, ast.Name) and function is not None:
        local = syntax.assignments(function, name)
        if local:
            return place_of(source, found, local[0]) if len(local) == 1 else None
        if (default := syntax.default_of(function, name)) is not None:
            return default
    owner = found.class_of(node)
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self" and owner is not None:
        made = roles.attribute_values(owner, name)
        return place_of(source, found, made[0]) if len(made) == 1 else None
    places = module_constant(source, name) or [
        each for each in syntax.settings(source.tree, name) if not syntax.given_elsewhere(source.tree, each)
    ]
    if len(places) != 1:
        return None
    inner = folding.own_default(places[0])
    return inner if isinstance(inner, ast.Constant) else None
