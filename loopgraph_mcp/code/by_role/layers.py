"""Edits of feed-forward layers and blocks."""

import ast
import re
from collections.abc import Iterator

from loopgraph_mcp.code import roles, syntax
from loopgraph_mcp.code.by_role.draft import (
    Answer,
    Draft,
    Held,
    Misfit,
    Values,
    bracketed,
    count_of,
    edit,
    elsewhere,
    functional_alias,
    module_alias,
)
from loopgraph_mcp.code.roles import FeedForward, Function, ModuleClass, Roles
from loopgraph_mcp.code.syntax import Source


def _one_feed_forward(found: Roles) -> FeedForward:
    if len(found.feed_forwards) == 1:
        each = found.feed_forwards[0]
        acting = [
            node
            for node in syntax.walk(each.owner.forward)
            if isinstance(node, ast.Call) and roles.called(node) in roles.ACTIVATIONS
        ]
        if len(acting) > 1:
            raise Misfit("one activation in the feed-forward layer", f"{each.owner.name} has {len(acting)}")
        if found.built(each.owner.node) is None and len(found.modules) > 1 and found.names_of(each.owner.name):
            raise Misfit(f"a {each.owner.name} in every block", "the program builds it under a condition only")
        return each
    if found.feed_forwards:
        known = ", ".join(each.owner.name for each in found.feed_forwards)
        raise Misfit("one feed-forward class", f"this file has {len(found.feed_forwards)}: {known}")
    raise Misfit("a class that widens, bends and narrows", f"this file has no feed-forward layer{elsewhere(found)}")


@edit
def relu_squared(source: Source, found: Roles, values: Values) -> Answer:
    """Square a ReLU in the place of the feed-forward layer's activation."""
    for each in found.feed_forwards:
        if each.kind == "relu" and _squares(each.owner.forward):
            return Held(f"line {each.activation.lineno}: {each.owner.name} squares a ReLU")
    layer = _one_feed_forward(found)
    if len(roles.linears(layer.owner)) == 3 or layer.kind in {"silu", "swish"}:
        raise Misfit("a feed-forward layer without a gate", f"{layer.owner.name} is gated")
    draft = Draft(source)
    argument = source.slice(source.span(layer.argument))
    functional, core = functional_alias(source), module_alias(source, "mlx.core")
    if found.framework == "torch" and functional:
        draft.put(layer.activation, f"{functional}.relu({argument}).square()")
    elif found.framework == "mlx" and core:
        draft.put(layer.activation, f"{core}.square({core}.maximum({argument}, 0))")
    else:
        raise Misfit("torch.nn.functional or mlx.core", "the file imports neither")
    return draft


def _squares(function: Function) -> bool:
    for node in syntax.walk(function):
        match node:
            case ast.Attribute(attr="square"):
                return True
            case ast.Call(func=ast.Attribute(attr="pow"), args=[ast.Constant(value=2), *_]):
                return True
            case ast.BinOp(op=ast.Pow(), right=ast.Constant(value=2)):
                return True
            case ast.BinOp(left=ast.Name(id=one), op=ast.Mult(), right=ast.Name(id=other)) if one == other:
                return True
    return False


@edit
def swiglu(source: Source, found: Roles, values: Values) -> Answer:
    """Gate the feed-forward layer at two thirds of its width."""
    for owner in found.modules:
        text = ast.unparse(owner.forward)
        if re.search(r"silu\(.*\) \*|\* .*silu\(|swiglu", text) and len(roles.linears(owner)) >= 2:
            return Held(f"line {owner.node.lineno}: {owner.name} is gated already")
    layer = _one_feed_forward(found)
    made = roles.linears(layer.owner)
    if found.framework != "torch" or not (functional := functional_alias(source)) or layer.owner.init is None:
        raise Misfit("a torch feed-forward layer", "the file does not import torch.nn.functional")
    if len(made) != 2:
        raise Misfit("a feed-forward layer of two matrices", f"{layer.owner.name} has {len(made)}")
    (up, widen), (_, narrow) = made.items()
    if len(widen.args) < 2 or len(narrow.args) < 2 or not syntax.alike(widen.args[1], narrow.args[0]):
        raise Misfit("one width between both matrices", f"line {widen.lineno} and line {narrow.lineno} differ in it")
    into = [
        node
        for node in syntax.walk(layer.owner.forward)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"self.{up}"
    ]
    outside = [
        node for node in syntax.nodes(source.tree)
        if isinstance(node, ast.Attribute) and node.attr == up and found.class_of(node) is not layer.owner.node
    ]  # fmt: skip
    if len(into) != 1 or not isinstance(into[0].args[0], ast.Name):
        raise Misfit(f"one call of self.{up} on a variable", f"{layer.owner.name}.forward has another form")
    statement, first = found.statement_of(into[0]), found.statement_of(widen)
    square = _squared_expression(found, layer)
    if statement is None or first is None or square is None:
        raise Misfit("an activation in one expression", f"{layer.owner.name}.forward has another form")
    draft = Draft(source)
    width = source.slice(source.span(widen.args[1]))
    draft.before(
        first,
        f"gated_width = max({values['multiple']}, 2 * ({width}) // 3 // {values['multiple']} * {values['multiple']})",
    )
    draft.put(widen.args[1], "gated_width")
    draft.put(narrow.args[0], "gated_width")
    options = "".join(f", {source.slice(source.span(each))}" for each in widen.args[2:])
    options += "".join(f", {k.arg}={source.slice(source.span(k.value))}" for k in widen.keywords)
    inputs = source.slice(source.span(widen.args[0]))
    draft.after(first, f"self.gate = {ast.unparse(widen.func)}({inputs}, gated_width{options})")
    draft.before(statement, f"gate = self.gate({into[0].args[0].id})")
    draft.put(square, f"{functional}.silu(gate) * {bracketed(source, layer.argument)}")
    for node in outside:
        using = found.statement_of(node)
        if using is None or not isinstance(using, ast.Expr) or "init" not in ast.unparse(using):
            raise Misfit(f"a {up} that only {layer.owner.name} uses", f"line {node.lineno} uses it too")
        draft.after(using, ast.unparse(using).replace(f".{up}.", ".gate."))
    return draft


def _squared_expression(found: Roles, layer: FeedForward) -> ast.expr | None:
    """Return the whole activation, the square of a ReLU included; nothing where the square is made elsewhere."""
    if layer.kind != "relu" or not _squares(layer.owner.forward):
        return layer.activation
    parent = found.parents.get(id(layer.activation))
    if isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Pow):
        return parent
    if isinstance(parent, ast.Attribute) and parent.attr in {"square", "pow"}:
        call = found.parents.get(id(parent))
        return call if isinstance(call, ast.Call) else None
    return None


def _residual(statement: ast.stmt) -> tuple[str, ast.expr] | None:
    """Return the stream and what a statement adds to it: `x = x + branch`, `x += branch`, `return x + branch`."""
    match statement:
        case ast.Assign(
            targets=[ast.Name(id=name)], value=ast.BinOp(left=ast.Name(id=left), op=ast.Add(), right=branch)
        ):
            return (name, branch) if name == left else None
        case ast.AugAssign(target=ast.Name(id=name), op=ast.Add(), value=branch):
            return name, branch
        case ast.Return(value=ast.BinOp(left=ast.Name(id=name), op=ast.Add(), right=branch)):
            return name, branch
    return None


def _block(found: Roles) -> tuple[ModuleClass, list[tuple[ast.stmt, str, ast.expr]]]:
    """Return the block's class and its two neighbouring residual statements."""
    attending = {each.owner.name for each in found.attentions}
    several = []
    for owner in found.modules:
        kinds = {name for name, call in assigned(owner) if roles.called(call) in attending}
        for body in syntax.bodies(owner.forward):
            parts = [(each, *made) for each in body if (made := _residual(each)) is not None]
            if len(parts) >= 2 and kinds and any(f"self.{name}(" in ast.unparse(parts[0][2]) for name in kinds):
                several.append((owner, parts))
    if len(several) != 1:
        raise Misfit("a block that adds attention, then the feed-forward layer", count_of(several, found))
    return several[0]


def assigned(owner: ModuleClass) -> Iterator[tuple[str, ast.Call]]:
    """Yield what a class's constructor gives `self`, with the calls that make it."""
    if owner.init is not None:
        yield from roles.assigned_calls(owner.init)


@edit
def parallel_block(source: Source, found: Roles, values: Values) -> Answer:
    """Let attention and feed-forward layer read the same stream, and add both at once."""
    for owner in found.modules:
        for statement in syntax.statements(owner.forward):
            made = _residual(statement)
            if made is not None and isinstance(made[1], ast.BinOp) and isinstance(made[1].op, ast.Add):
                continue
            if made is None and isinstance(statement, ast.Assign | ast.Return) and _adds_both(found, owner, statement):
                return Held(f"line {statement.lineno} adds both at once")
    owner, parts = _block(found)
    if len(parts) != 2:
        raise Misfit("a block of two branches", f"{owner.name} has {len(parts)}")
    (one, stream, first), (other, name, second) = parts
    body = next(each for each in syntax.bodies(owner.forward) if any(item is one for item in each))
    at = next(place for place, item in enumerate(body) if item is one)
    if name != stream or len(body) <= at + 1 or body[at + 1] is not other:
        raise Misfit("two branches one behind the other", f"{owner.name} does something between them")
    both = f"{stream} + {source.slice(source.span(first))} + {source.slice(source.span(second))}"
    draft = Draft(source)
    if isinstance(other, ast.Return):
        draft.instead(other, f"return {both}")
        draft.gone(one)
    else:
        draft.instead(one, f"{stream} = {both}")
        draft.gone(other)
    return draft


def _adds_both(found: Roles, owner: ModuleClass, statement: ast.stmt) -> bool:
    attending = {each.owner.name for each in found.attentions}
    text = ast.unparse(statement)
    added = text.split(" + ")
    kinds = {name: roles.called(call) for name, call in assigned(owner)}
    attends = any(f"self.{n}(" in text for n, k in kinds.items() if k in attending)
    return attends and sum("self." in each and "(" in each for each in added) >= 2


@edit
def layer_norm_scaling(source: Source, found: Roles, values: Values) -> Answer:
    """Divide what each block normalises by the root of its layer's number."""
    attending = {each.owner.name for each in found.attentions}
    owners = [o for o in found.modules if o.init and any(roles.called(call) in attending for _, call in assigned(o))]
    owners = [owner for owner in owners if found.built(owner.node) is not False]
    for node in syntax.nodes(source.tree):
        if isinstance(node, ast.Attribute) and node.attr == "ln_scale" and isinstance(node.ctx, ast.Load):
            return Held(f"line {node.lineno} scales the norm by the layer")
    if len(owners) != 1 or owners[0].init is None:
        raise Misfit("one class of blocks", count_of(owners, found))
    owner, init = owners[0], owners[0].init
    given = [arg.arg for arg in init.args.args]
    index = next((name for name in ("layer_idx", "layer_id", "layer", "layer_index") if name in given), "")
    if not index:
        raise Misfit("a block that is given its layer's number", f"{owner.name} is not")
    first = next((each for each in init.body if "super().__init__" in ast.unparse(each)), None)
    layers = {name for name, _ in assigned(owner)}
    inputs = [
        node.args[0]
        for node in syntax.walk(owner.forward)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "self"
        and node.func.attr in layers
        and node.args
        and isinstance(node.args[0], ast.Call)
        and re.search(r"norm|(^|_)ln", roles.called(node.args[0]), re.IGNORECASE)
    ]
    if first is None and found.framework == "torch":
        raise Misfit(f"a call of super().__init__() in {owner.name}", "it has none")
    if len(inputs) < 2:
        raise Misfit("layers that read a norm of the stream", f"{owner.name} has another form")
    draft = Draft(source)
    code = f"self.ln_scale = ({index} + 1) ** -0.5"
    if first is not None:
        draft.after(first, code)
    else:
        draft.before(init.body[0], code)
    for each in inputs:
        draft.put(each, f"{source.slice(source.span(each))} * self.ln_scale")
    return draft


@edit
def zero_init_projections(source: Source, found: Roles, values: Values) -> Answer:
    """Start the projections into the stream at zero, where the file starts them by their name."""
    own = re.compile(r"c_proj|o_proj|out_proj|\.proj\b|wo\b")
    for node in syntax.nodes(source.tree):
        match node:
            case ast.Call() if roles.called(node) in {"zeros_", "zero_", "zeros_like"} and own.search(
                ast.unparse(node)
            ):
                return Held(f"line {node.lineno} starts a projection at zero")
            case ast.Attribute(attr="_zero_init"):
                return Held(f"line {node.lineno} marks projections that start at zero")
            case ast.If(
                test=ast.Call(func=ast.Attribute(attr="endswith")) as test, body=[ast.Expr(value=ast.Call() as call)]
            ):
                text = ast.unparse(test)
                if "c_proj.weight" in text and roles.called(call) == "zeros_":
                    return Held(f"line {node.lineno} starts the projections at zero")
                if "c_proj.weight" in text and roles.called(call) == "normal_" and call.args:
                    draft = Draft(source)
                    holder = ast.unparse(call.func).removesuffix("normal_")
                    draft.put(call, f"{holder}zeros_({source.slice(source.span(call.args[0]))})")
                    return draft
    raise Misfit("a start of the projections into the stream", f"this file has none of a known form{elsewhere(found)}")
