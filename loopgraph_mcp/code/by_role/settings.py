"""Edits that set constants: learning rates, schedules, betas, windows, the rotary base."""

import ast
import re
from collections.abc import Callable, Iterator, Sequence

from loopgraph_mcp.code import folding, roles, syntax
from loopgraph_mcp.code.by_role.draft import (
    EDITS,
    Answer,
    Draft,
    Held,
    Misfit,
    Values,
    count_of,
    edit,
    elsewhere,
    mentions,
    written,
)
from loopgraph_mcp.code.by_role.places import (
    SPELLINGS,
    as_there,
    constant,
    module_constant,
    place_of,
    scalar,
    set_value,
)
from loopgraph_mcp.code.roles import Function, Roles
from loopgraph_mcp.code.syntax import Source
from loopgraph_mcp.models import KnobValue


def _role_edit(role: str, knob: str, missing: str) -> Callable[[Source, Roles, Values], Answer]:
    def edit(source: Source, found: Roles, values: Values) -> Answer:
        place = constant(source, role)
        if place is None:
            raise Misfit(missing, f"this file has none{elsewhere(found)}")
        return set_value(source, place, values[knob])

    return edit


EDITS["embedding_lr"] = _role_edit("embedding_lr", "rate", "a learning rate of the embeddings")


EDITS["unembedding_lr"] = _role_edit("unembedding_lr", "rate", "a learning rate of lm_head")


@edit
def muon_lr(source: Source, found: Roles, values: Values) -> Answer:
    """Set the learning rate of Muon."""
    if not mentions(source, "muon") and (mentions(source, "adam") or mentions(source, "sgd")):
        raise Misfit(
            "an optimizer named Muon", f"this file has none: its matrices are trained by another{elsewhere(found)}"
        )
    place = constant(source, "matrix_lr")
    if place is None:
        given = [
            keyword.value
            for node in syntax.nodes(source.tree)
            if isinstance(node, ast.Call) and re.search(r"muon", roles.called(node), re.IGNORECASE)
            for keyword in node.keywords
            if keyword.arg == "lr" and isinstance(keyword.value, ast.Constant)
        ]
        place = given[0] if len(given) == 1 else None
    if place is None:
        raise Misfit("a learning rate of Muon", "this file has no constant of that role")
    return set_value(source, place, values["rate"])


@edit
def final_lr_floor(source: Source, found: Roles, values: Values) -> Answer:
    """Let the learning rate end at a part of its peak."""
    if (place := constant(source, "final_lr_fraction")) is not None:
        return set_value(source, place, values["fraction"])
    lowest, peak = module_constant(source, "min_lr"), module_constant(source, "learning_rate")
    if lowest and peak and (top := found.constants.number(peak[0])) is not None and _read_by_schedule(found, "min_lr"):
        return set_value(source, lowest[0], float(f"{float(values['fraction']) * top:.6g}"))
    raise Misfit("a constant for where the learning rate ends", f"this file has none{elsewhere(found)}")


@edit
def warmdown_length(source: Source, found: Roles, values: Values) -> Answer:
    """Set over which part of the run the learning rate falls."""
    return _part_of_run(source, found, values["ratio"], "warmdown", "a constant for how long the learning rate falls")


@edit
def lr_warmup(source: Source, found: Roles, values: Values) -> Answer:
    """Set over which part of the run the learning rate rises."""
    return _part_of_run(source, found, values["ratio"], "warmup", "a constant for how long the learning rate rises")


def _part_of_run(source: Source, found: Roles, ratio: KnobValue, kind: str, missing: str) -> Answer:
    place = constant(source, f"{kind}_ratio")
    if place is not None:
        return set_value(source, place, ratio)
    steps, whole = constant(source, f"{kind}_steps"), constant(source, "steps")
    if steps is None:
        raise Misfit(missing, f"this file has none{elsewhere(found)}")
    if not any(_read_by_schedule(found, name) for name in SPELLINGS[f"{kind}_steps"]):
        raise Misfit(missing, f"line {steps.lineno} is read by no schedule of the learning rate")
    total = None if whole is None else found.constants.number(whole)
    own = found.constants.number(folding.own_default(steps))
    if kind == "warmup" and own and own > 1 and (total is None or total <= 1):
        return Held(f"line {steps.lineno}: the learning rate rises over {own:g} steps already")
    if total is None or total <= 1:
        raise Misfit("the number of steps of a run", "this file has no constant for it: a part of it cannot be told")
    if found.constants.number(steps) is None:
        raise Misfit(missing, f"line {steps.lineno} works it out")
    return set_value(source, steps, round(float(ratio) * total))


def _read_by_schedule(found: Roles, name: str) -> bool:
    """Return whether a function or statement that makes learning rates reads a constant."""
    for node in syntax.nodes(found.tree):
        hit = (isinstance(node, ast.Name) and node.id in {name, name.upper()} and isinstance(node.ctx, ast.Load)) or (
            isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Load)
        )
        if not hit:
            continue
        function, statement = found.function_of(node), found.statement_of(node)
        told = [
            function.name if function else "",
            ast.unparse(statement).split("=")[0] if statement is not None else "",
        ]
        if any(re.search(r"(^|_)lr|lr_|schedul|learning_rate|anneal", each) for each in told):
            return True
    return False


@edit
def muon_momentum(source: Source, found: Roles, values: Values) -> Answer:
    """Set over how many steps Muon's momentum rises, where a constant says so."""
    place = constant(source, "momentum_steps")
    if place is not None:
        return set_value(source, place, values["steps"])
    raise Misfit("a ramp of Muon's momentum", f"this file has none of a known form{elsewhere(found)}")


@edit
def cosine_decay(source: Source, found: Roles, values: Values) -> Answer:
    """Say whether the learning rate falls along a cosine already."""
    for node in syntax.nodes(source.tree):
        if isinstance(node, ast.Call) and re.search(
            r"cosine\w*(lr|decay|schedule)|CosineAnnealing", roles.called(node)
        ):
            return Held(f"line {node.lineno} makes a cosine schedule")
        if isinstance(node, ast.Call) and roles.called(node) == "cos":
            function, statement = found.function_of(node), found.statement_of(node)
            told = f"{function.name if function else ''} {ast.unparse(statement)[:60] if statement is not None else ''}"
            if re.search(r"(^|_)lr|lr_|learning_rate", told) and not re.search(
                r"momentum|decay\b.*wd|weight_decay", told
            ):
                return Held(f"line {node.lineno}: the learning rate falls along a cosine")
    raise Misfit("a straight fall of the learning rate", f"this file has none of a known form{elsewhere(found)}")


@edit
def rope_base(source: Source, found: Roles, values: Values) -> Answer:
    """Set the base of the rotary embeddings, where it really comes from."""
    place = constant(source, "rope_base")
    if place is not None and not _is_unread_field(found, place):
        return set_value(source, place, values["base"])
    candidates = list(_rope_places(source, found))
    if len(candidates) != 1:
        raise Misfit("one base of the rotary embeddings", count_of(candidates, found) if candidates else
                     f"this file has no rotary embeddings of a known form{elsewhere(found)}")  # fmt: skip
    return set_value(source, candidates[0], values["base"])


def _is_unread_field(found: Roles, place: ast.expr) -> bool:
    return not any(
        isinstance(node, ast.Name | ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and (node.id if isinstance(node, ast.Name) else node.attr).lower() in SPELLINGS["rope_base"]
        for node in syntax.nodes(found.tree)
    )


def _rope_places(source: Source, found: Roles) -> Iterator[ast.expr]:
    """Yield the constants that rotary frequencies are powers of."""
    for node in syntax.nodes(source.tree):
        match node:
            case ast.Call() if roles.called(node) == "RoPE":
                for keyword in node.keywords:
                    if keyword.arg == "base" and found.constants.number(keyword.value) is not None:
                        yield keyword.value
            case ast.BinOp(left=base, op=ast.Pow(), right=exponent) if _is_frequency(exponent):
                if isinstance(base, ast.Constant):
                    yield base
                elif isinstance(base, ast.Name):
                    yield from _passed(found, node, base.id)


def _is_frequency(exponent: ast.expr) -> bool:
    text = ast.unparse(exponent)
    return "arange" in text or ("/" in text and re.search(r"channel|range|freq|dim", text) is not None)


def _passed(found: Roles, node: ast.AST, name: str) -> Iterator[ast.expr]:
    """Yield what a parameter's value really is: what its calls pass, or its default where one passes nothing."""
    function = found.function_of(node)
    if function is None:
        return
    default = syntax.default_of(function, name)
    owner = found.class_of(function)
    calls = found.calls_of(owner.name if owner is not None and function.name == "__init__" else function.name)
    given = [keyword.value for call in calls for keyword in call.keywords if keyword.arg == name]
    if default is not None and (not calls or len(given) < len(calls)):
        yield default
    for each in given:
        if found.constants.number(each) is not None and isinstance(each, ast.Constant):
            yield each


@edit
def sliding_window_pattern(source: Source, found: Roles, values: Values) -> Answer:
    """Change which layers see a short window, where the change reaches a layer."""
    place = constant(source, "window_pattern")
    if place is None:
        raise Misfit("a pattern of short and long windows", f"this file has none{elsewhere(found)}")
    was, depth = found.constants.get(folding.own_default(place)), constant(source, "depth")
    layers = None if depth is None else found.constants.number(depth)
    wanted = str(values["pattern"])
    if isinstance(was, str) and layers and layers < 256 and set(was) <= set("SLsl") and was.upper() != wanted:
        tiled = [(pattern * int(layers))[: int(layers) - 1] for pattern in (was.upper(), wanted)]
        if tiled[0] == tiled[1]:
            raise Misfit("layers that the pattern changes", f"with {layers:g} layers, {was} and {wanted} are the same")
    inner = folding.own_default(place)
    if was == wanted:
        return Held(f"line {place.lineno} has this pattern already")
    draft = Draft(source)
    draft.put(inner, f'"{wanted}"')
    return draft


@edit
def short_window(source: Source, found: Roles, values: Values) -> Answer:
    """Divide the context by another number for the layers with a short window, where there are such layers."""
    places = [
        (value, function)
        for function in (node for node in syntax.nodes(source.tree) if isinstance(node, Function))
        for name in ("short_window", "short_window_size", "short_len")
        for value in syntax.assignments(function, name)
    ]
    if len(places) != 1:
        raise Misfit("one size of the short window", count_of(places, found))
    pattern = constant(source, "window_pattern")
    told = None if pattern is None else found.constants.get(folding.own_default(pattern))
    if isinstance(told, str) and "S" not in told.upper():
        raise Misfit("a layer with a short window", f"the pattern is {told}: no layer has one")
    value, _ = places[0]
    numbers = [
        node.right
        for node in syntax.walk(value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv) and "window" in ast.unparse(node.left)
        and isinstance(node.right, ast.Constant)
    ]  # fmt: skip
    parts = [(each, int(found.constants.number(each) or 0)) for each in numbers]
    parts = [(each, part) for each, part in parts if 0 < part <= 64]  # larger ones round to a size the device likes
    if len(parts) != 1:
        raise Misfit("a short window that is a part of the long one", f"line {value.lineno} works it out otherwise")
    if parts[0][1] == values["divisor"]:
        return Held(f"line {value.lineno} divides by {values['divisor']} already")
    draft = Draft(source)
    draft.put(parts[0][0], written(values["divisor"]))
    return draft


@edit
def adam_betas(source: Source, found: Roles, values: Values) -> Answer:
    """Set both of Adam's betas wherever the file gives them."""
    first, second = written(values["beta1"]), written(values["beta2"])
    pair = [place for name in ("ADAM_BETAS", "adam_betas", "betas") for place in module_constant(source, name)]
    pair += (
        [] if pair else [p for p in syntax.settings(source.tree, "adam_betas") if isinstance(p, ast.Tuple | ast.List)]
    )
    if len(pair) == 1 and isinstance(pair[0], ast.Tuple | ast.List) and len(pair[0].elts) == 2:
        return _set_pair(source, [pair[0]], first, second)
    ones = scalar(source, ("beta1", "adam_beta1", "BETA1", "ADAM_BETA1"))
    twos = scalar(source, ("beta2", "adam_beta2", "BETA2", "ADAM_BETA2"))
    if ones is not None and twos is not None:
        draft = Draft(source)
        for place, text in ((ones, first), (twos, second)):
            inner = folding.own_default(place)
            if found.constants.number(inner) != float(text):
                draft.put(inner, as_there(inner, text))
        return Held(f"line {ones.lineno} has these betas already") if draft.is_empty else draft
    given = [
        keyword.value
        for node in syntax.nodes(source.tree)
        if isinstance(node, ast.Call) and not re.search("muon", roles.called(node), re.IGNORECASE)
        for keyword in node.keywords
        if keyword.arg == "betas" and isinstance(keyword.value, ast.Tuple | ast.List) and len(keyword.value.elts) == 2
    ]
    if not given:
        raise Misfit("Adam's betas", f"this file gives none{elsewhere(found)}")
    if any(not syntax.alike(each, given[0]) for each in given):
        lines = ", ".join(str(each.lineno) for each in given[:4])
        raise Misfit("one pair of betas", f"the groups have betas of their own (lines {lines})")
    return _set_pair(source, [each for each in given if isinstance(each, ast.Tuple | ast.List)], first, second)


def _set_pair(source: Source, places: Sequence[ast.Tuple | ast.List], first: str, second: str) -> Answer:
    draft, found = Draft(source), roles.of(source)
    for place in places:
        for item, text in zip(place.elts, (first, second), strict=True):
            value = place_of(source, found, item)
            if value is None:
                raise Misfit("betas that are numbers", f"line {item.lineno} works one out")
            if found.constants.number(value) != float(text):
                draft.put(value, as_there(value, text))
    return Held(f"line {places[0].lineno} has these betas already") if draft.is_empty else draft
