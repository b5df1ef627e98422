"""Edits of the training loop: clipped gradients, smaller batches."""

import ast
from collections.abc import Sequence

from loopgraph_mcp.code import folding, roles, syntax
from loopgraph_mcp.code.by_role.draft import (
    Answer,
    Draft,
    Held,
    Misfit,
    Values,
    attributes_in,
    bracketed,
    edit,
    elsewhere,
    imports_module,
    in_loop,
    mentions,
    parsed_expression,
    written,
)
from loopgraph_mcp.code.by_role.places import as_there, module_constant, place_of, scalar
from loopgraph_mcp.code.roles import Function, Roles
from loopgraph_mcp.code.syntax import Source


@edit
def gradient_clipping(source: Source, found: Roles, values: Values) -> Answer:
    """Clip the gradients before every step of the training loop."""
    norm = written(values["norm"])
    if found.framework == "jax":
        raise Misfit("a torch or MLX training loop", "this file trains with JAX, whose optimizers are chains")
    if not found.steps and found.loop is None:
        raise Misfit("a training loop", f"this file has none{elsewhere(found)}")
    if not found.steps:
        raise Misfit("an optimizer's step in the training loop", "the loop leaves it to another file")
    open_steps = [each for each in found.steps if _clip_above(found, each) is None]
    if not open_steps:
        clip = _clip_above(found, found.steps[0])
        assert clip is not None  # noqa: S101 - no step is without
        return _set_limit(source, found, clip, norm)
    if (clip := next((each for each in found.clips if in_loop(found, each)), None)) is not None:
        raise Misfit("a loop that clips every step or none", f"line {clip.lineno} clips on some ways to a step")
    if any(each.attr.startswith("reduce_scatter") for each in attributes_in(source.tree)):
        raise Misfit("gradients that are whole before the step", "the optimizer averages them over devices in its step")
    if found.framework == "mlx":
        return _clip_mlx(source, found, open_steps, norm)
    return _clip_torch(source, found, open_steps, norm)


def _clip_torch(source: Source, found: Roles, steps: Sequence[roles.Step], norm: str) -> Answer:
    """Clip above the first step of each block; where a scaler steps, after it has unscaled."""
    model = next(iter(found.model_names), "")
    if not model:
        raise Misfit("the variable that holds the model", "the training loop calls no variable named model")
    if not imports_module(source, "torch") and syntax.bindings(source.tree, "torch"):
        raise Misfit("`import torch`", "the file imports only parts of it")
    draft, bodies = Draft(source), set[int]()
    for step in steps:
        if id(step.body) in bodies:
            continue
        bodies.add(id(step.body))
        code = f"torch.nn.utils.clip_grad_norm_({model}.parameters(), {norm})"
        if step.scaler and not _unscaled(found, step):
            code = f"{step.scaler}.unscale_({ast.unparse(step.call.args[0])})\n{code}"
        draft.before(step.statement, code)
    return draft


def _set_limit(source: Source, found: Roles, clip: ast.Call, norm: str) -> Answer:
    """Return a change of the limit where the clip that is there is switched off, else that it is there."""
    limit = (
        clip.args[1] if len(clip.args) > 1 else next((k.value for k in clip.keywords if "norm" in (k.arg or "")), None)
    )
    if found.taken(clip) is False and limit is not None:
        place = place_of(source, found, limit)
        if place is None:
            raise Misfit("the limit of the clip that is there", f"line {clip.lineno} is switched off")
        draft = Draft(source)
        draft.put(place, as_there(place, norm))
        return draft
    if isinstance(limit, ast.Constant) and roles.called(clip) == "clip_grad_norm_" and _is_alone(found, clip):
        draft = Draft(source, resets=True)  # what this edit itself put there: another limit is set
        if found.constants.number(limit) != float(norm):
            draft.put(limit, norm)
            return draft
    return Held(f"line {clip.lineno} clips the gradients already")


def _is_alone(found: Roles, clip: ast.Call) -> bool:
    return isinstance(found.parents.get(id(clip)), ast.Expr)


def _clip_mlx(source: Source, found: Roles, steps: Sequence[roles.Step], norm: str) -> Answer:
    draft = Draft(source)
    alias = next(
        (
            alias.asname
            for node in source.tree.body
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.name == "mlx.optimizers" and alias.asname
        ),
        "",
    )
    if not alias:
        place = next(
            (n for n in source.tree.body if isinstance(n, ast.Import) and n.names[0].name.startswith("mlx")), None
        )
        if place is None:
            raise Misfit("`import mlx`", "the file imports only parts of it")
        alias = "optim" if not syntax.bindings(source.tree, "optim") else "mlx_optimizers"
        draft.after(place, f"import mlx.optimizers as {alias}")
    for step in steps:
        passed = [each for each in step.call.args if isinstance(each, ast.Name) and "grad" in each.id]
        if len(passed) != 1:
            raise Misfit("gradients in a variable", f"line {step.statement.lineno} passes none that is called so")
        grads = passed[0]
        draft.before(step.statement, f"{grads.id}, _ = {alias}.clip_grad_norm({grads.id}, max_norm={norm})")
    return draft


def _clip_above(found: Roles, step: roles.Step) -> ast.Call | None:
    """Return the clip that stands before a step, in its block or in one around it."""
    inner: ast.AST = step.statement
    for outer in found.around(inner):
        for block in roles.blocks(outer):
            if any(item is inner for item in block):
                place = next(at for at, item in enumerate(block) if item is inner)
                for item in block[:place]:
                    if isinstance(item, Function | ast.ClassDef):
                        continue
                    clips = [node for node in syntax.walk(item) if any(node is clip for clip in found.clips)]
                    if clips and isinstance(clips[0], ast.Call):
                        return clips[0]
        if outer is found.loop or isinstance(outer, Function | ast.Module):
            return None
        inner = outer
    return None


def _unscaled(found: Roles, step: roles.Step) -> bool:
    inner: ast.AST = step.statement
    for outer in found.around(inner):
        for block in roles.blocks(outer):
            place = next((at for at, item in enumerate(block) if item is inner), 0)
            if any(
                isinstance(n, ast.Attribute) and n.attr == "unscale_" for s in block[:place] for n in syntax.walk(s)
            ):
                return True
        if outer is found.loop:
            return False
        inner = outer
    return False


_TOTALS = ("TOTAL_BATCH_SIZE", "total_batch_size", "train_batch_tokens", "TRAIN_BATCH_TOKENS")


_ROWS = ("DEVICE_BATCH_SIZE", "device_batch_size", "micro_batch_size", "batch_size")


_LENGTHS = ("MAX_SEQ_LEN", "max_seq_len", "sequence_length", "seq_len", "train_seq_len", "block_size", "T")


@edit
def smaller_batch(source: Source, found: Roles, values: Values) -> Answer:
    """Divide the tokens of a step, and the rows of a pass where passes would not stay whole."""
    factor = int(values["factor"])
    total, rows = scalar(source, _TOTALS), scalar(source, _ROWS)
    if total is None:
        passes = scalar(source, ("gradient_accumulation_steps", "grad_accum_steps", "GRAD_ACCUM_STEPS"))
        if passes is None:
            raise Misfit("a constant for the tokens of a step", f"this file has none{elsewhere(found)}")
        if found.constants.number(folding.own_default(passes)) is None:
            raise Misfit("a number of passes a step", f"line {passes.lineno} works it out")
        return _divided(source, found, [passes], factor)
    _divided(source, found, [total], factor)  # which refuses what is no number
    if rows is not None and _reads_constant(total, _ROWS):  # the total follows the rows
        return _divided(source, found, [rows], factor)
    if rows is None or "min(DEVICE_BATCH_SIZE" in ast.unparse(source.tree) or _is_undecided(found, rows):
        return _divided(source, found, [total], factor)
    if _reads_constant(rows, _TOTALS):  # the rows follow the total
        return _divided(source, found, [total], factor)
    length = next((n for n in (found.constants.number(ast.Name(each, ast.Load())) for each in _LENGTHS) if n), None)
    if length is None:
        setting = scalar(source, _LENGTHS[1:])
        length = None if setting is None else found.constants.number(folding.own_default(setting))
    whole, pass_rows = found.constants.number(_base(total, factor)), found.constants.number(folding.own_default(rows))
    if whole is None or pass_rows is None or length is None:
        return _divided_by_expression(source, found, total, rows, factor)
    if whole % (pass_rows * length * factor) == 0 and not mentions(source, "world_size"):
        return _divided(source, found, [total], factor)
    return _divided(source, found, [total, rows], factor)


def _divided(source: Source, found: Roles, places: Sequence[ast.expr], factor: int) -> Answer:
    """Divide some constants; one that this edit divided before is divided anew."""
    draft = Draft(source)
    for place in places:
        inner = folding.own_default(place)
        base = _base(inner, factor)
        number = found.constants.get(base)
        if number is None or isinstance(number, str | bool) or (isinstance(number, int | float) and number <= 0):
            shown = source.slice(source.span(inner))
            raise Misfit("a number above 0", f"line {place.lineno} says {shown}: the program chooses one itself")
        if isinstance(number, int | float) and number % factor:
            raise Misfit(f"a number that {factor} divides", f"line {place.lineno} makes it {number:g}")
        text = bracketed(source, base)
        draft.resets = draft.resets or base is not inner
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            draft.put(inner, f'"{int(float(inner.value)) // factor}"')
        else:
            draft.put(inner, f"{text} // {factor}")
    return Held(f"line {places[0].lineno} is divided by {factor} already") if draft.is_empty else draft


def _base(place: ast.expr, factor: int) -> ast.expr:
    """Return what a constant was before this edit divided it."""
    match place:
        case ast.BinOp(left=left, op=ast.FloorDiv(), right=ast.Constant(value=int() as by)) if by in {2, 4, 8}:
            return left
    return place


def _divided_by_expression(source: Source, found: Roles, total: ast.expr, rows: ast.expr, factor: int) -> Answer:
    """Divide the total, and let the program itself find the most rows whose passes stay whole."""
    names = {id(value): name for name in (*_TOTALS, *_ROWS) for value in module_constant(source, name)}
    one, other = names.get(id(total)), names.get(id(rows))
    length = next((name for name in _LENGTHS if found.names_of(name)), None)
    if one is None or other is None or length is None:
        raise Misfit(
            "numbers of tokens and rows that constants give", f"line {total.lineno} leaves them to the program"
        )
    draft = _divided(source, found, [total], factor)
    pattern = parsed_expression(
        f"max(k for k in range(1, max(1, min(__hole_current, {one} // {length})) + 1) if {one} // {length} % k == 0)"
    )
    holes: dict[str, ast.expr] = {}
    if syntax.alike(pattern, rows, holes=holes):
        return draft
    if rows.lineno < total.lineno:
        raise Misfit(f"{one} above {other}", f"line {total.lineno} sets {one} only below")
    made = draft if isinstance(draft, Draft) else Draft(source)
    text = source.slice(source.span(rows))
    made.put(
        rows, f"max(k for k in range(1, max(1, min({text}, {one} // {length})) + 1) if {one} // {length} % k == 0)"
    )
    return made


def _is_undecided(found: Roles, rows: ast.expr) -> bool:
    """Return whether the program itself chooses the rows of a pass."""
    number = found.constants.get(folding.own_default(rows))
    return number is None or (isinstance(number, int | float) and number <= 0)


def _reads_constant(place: ast.expr, spelled: Sequence[str]) -> bool:
    words = {name.lower() for name in spelled}
    return any(
        (isinstance(node, ast.Name) and node.id.lower() in words)
        or (isinstance(node, ast.Attribute) and node.attr.lower() in words)
        for node in syntax.walk(place)
    )
