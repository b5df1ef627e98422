"""Edits of logits and loss."""

import ast
from collections.abc import Iterator, Sequence

from loopgraph_mcp.code import roles, syntax
from loopgraph_mcp.code.by_role.draft import (
    Answer,
    Draft,
    Held,
    Misfit,
    Values,
    count_of,
    edit,
    elsewhere,
    imports_module,
    in_loop,
    module_alias,
    reset,
    written,
)
from loopgraph_mcp.code.by_role.places import as_there, place_of
from loopgraph_mcp.code.roles import ModuleClass, Roles
from loopgraph_mcp.code.syntax import Source


def _losses(found: Roles) -> list[ast.Call]:
    """Return the calls that compute the loss in the model's own forward, or in the training loop."""
    scope = found.model.forward if found.model else None
    calls = [node for node in found.calls_of("cross_entropy") if "losses" not in ast.unparse(node.func)]
    inside = [node for node in calls if scope is not None and found.function_of(node) is scope]
    return inside or [node for node in calls if in_loop(found, node)]


def _one_loss(found: Roles) -> ast.Call:
    if found.framework != "torch":
        raise Misfit("torch's cross_entropy", "this file does not train with torch" if found.framework else
                     f"this file has none{elsewhere(found)}")  # fmt: skip
    calls = _losses(found)
    if len(calls) != 1:
        raise Misfit("one cross_entropy in the model or the training loop", count_of(calls, found))
    return calls[0]


def _when_training(found: Roles, call: ast.Call) -> str:
    """Return the condition under which a loss in a model is the training loss; nothing in the training loop."""
    if in_loop(found, call):
        return ""
    evaluates = [node for node in found.calls_of("eval") if isinstance(node.func, ast.Attribute) and not node.args]
    if not evaluates and found.loop is not None:
        raise Misfit("an evaluation in `model.eval()`", "this file never calls it: the metric itself would change")
    return "self.training"


@edit
def label_smoothing(source: Source, found: Roles, values: Values) -> Answer:
    """Mix the target with the uniform distribution, in training only."""
    share = written(values["share"])
    for node in found.calls_of("cross_entropy"):
        for keyword in node.keywords:
            if keyword.arg == "label_smoothing":
                return reset(source, found, keyword.value, values["share"], f"line {node.lineno} smooths the labels")
    call = _one_loss(found)
    training = _when_training(found, call)
    value = f"{share} if {training} else 0.0" if training else share
    text = source.slice(source.span(call))
    draft = Draft(source)
    closing = text.rstrip()[:-1].rstrip()
    closing = closing.removesuffix(",")
    draft.put(call, f"{closing}, label_smoothing={value})")
    return draft


@edit
def z_loss(source: Source, found: Roles, values: Values) -> Answer:
    """Add a small penalty on the squared log of the softmax's sum, in training only."""
    for node in found.calls_of("logsumexp"):
        if (statement := found.statement_of(node)) is not None:
            factor = next((each for each in syntax.walk(statement) if isinstance(each, ast.Constant)
                           and isinstance(each.value, float)), None)  # fmt: skip
            reason = f"line {node.lineno} penalises the softmax's sum"
            return Held(reason) if factor is None else reset(source, found, factor, values["weight"], reason)
    call = _one_loss(found)
    statement = found.statement_of(call)
    if (
        not isinstance(statement, ast.Assign)
        or statement.value is not call
        or not isinstance(statement.targets[0], ast.Name)
    ):
        raise Misfit("the loss in a variable", f"line {call.lineno} goes on with it at once")
    logits, loss = source.slice(source.span(call.args[0])), statement.targets[0].id
    training = _when_training(found, call)
    added = f"{loss} = {loss} + {written(values['weight'])} * {logits}.float().logsumexp(dim=-1).square().mean()"
    draft = Draft(source)
    draft.after(statement, f"if {training}:\n    {added}" if training else added)
    return draft


@edit
def logit_softcap(source: Source, found: Roles, values: Values) -> Answer:
    """Bound the logits by a tanh; where one is there, move its bound."""
    model = found.model
    if model is None:
        raise Misfit("a model that makes logits", f"this file has none{elsewhere(found)}")
    wanted = written(values["cap"])
    for node in syntax.walk(model.forward):
        match node:
            case ast.BinOp(
                left=cap, op=ast.Mult(), right=ast.Call(args=[ast.BinOp(op=ast.Div(), right=other)]) as bend
            ) if roles.called(bend) == "tanh":
                return _set_cap(source, found, [cap, other], wanted)
            case ast.Call() if roles.called(node) in {"softcap", "soft_cap"} or (
                roles.called(node) in {"tanh", "sigmoid"} and "logits" in ast.unparse(node)
            ):
                return Held(f"line {node.lineno} bounds the logits in a form of its own")
    if "softcap" in " ".join(roles.attributes(model.node)):
        return Held(f"{model.name} bounds its logits")
    losses = _losses(found)
    name = next((roles.root_name(each.args[0]) for each in losses if each.args), "") or "logits"
    made = [
        each for each in syntax.statements(model.forward)
        if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name) and each.targets[0].id == name
    ]  # fmt: skip
    made = [each for each in made if isinstance(each.value, ast.Call)]
    core = "torch" if imports_module(source, "torch") else module_alias(source, "mlx.core")
    if not made or not core or found.framework not in {"torch", "mlx"}:
        raise Misfit("logits in a variable", f"{model.name} goes on with them at once")
    draft = Draft(source)
    for body in syntax.bodies(model.forward):
        inside = [each for each in body if any(each is item for item in made)]
        if inside:
            draft.after(inside[-1], f"{name} = {wanted} * {core}.tanh({name} / {wanted})")
    return draft


def _set_cap(source: Source, found: Roles, caps: Sequence[ast.expr], wanted: str) -> Answer:
    draft = Draft(source)
    for cap in caps:
        place = place_of(source, found, cap)
        if place is None:
            return Held(f"line {cap.lineno} bounds the logits by a number of its own")
        if found.constants.number(place) != float(wanted):
            draft.put(place, as_there(place, wanted))
    return Held(f"line {caps[0].lineno} bounds the logits there") if draft.is_empty else draft


@edit
def weight_tying(source: Source, found: Roles, values: Values) -> Answer:
    """Say whether embedding and unembedding are one matrix already."""
    embeds = {name.rpartition(".")[2] for owner in found.modules for name in _embeddings(owner)}
    for node in syntax.nodes(source.tree):
        match node:
            case ast.Assign(targets=[ast.Attribute(attr="weight") as one], value=ast.Attribute(attr="weight") as other):
                if {_before_weight(one), _before_weight(other)} & embeds and found.taken(node) is not False:
                    return Held(f"line {node.lineno} ties both matrices")
            case ast.Call(func=ast.Attribute(attr="linear"), args=[_, ast.Attribute(attr="weight") as used, *_]):
                if _before_weight(used) in embeds and found.taken(node) is not False:
                    return Held(f"line {node.lineno} uses the embedding for the logits")
            case ast.Call(func=ast.Attribute(attr="as_linear")):
                return Held(f"line {node.lineno} uses the embedding for the logits")
    raise Misfit("an embedding and an lm_head that this recipe knows", f"this file has another form{elsewhere(found)}")


def _embeddings(owner: ModuleClass) -> Iterator[str]:
    for node in syntax.walk(owner.node):
        match node:
            case ast.Assign(targets=[ast.Attribute(attr=name)], value=ast.Call() as call) if (
                "Embedding" in roles.called(call)
            ):
                yield name
            case ast.keyword(arg=str() as name, value=ast.Call() as call) if "Embedding" in roles.called(call):
                yield name
            case ast.Dict(keys=keys, values=made):
                for key, value in zip(keys, made, strict=True):
                    if (
                        isinstance(key, ast.Constant)
                        and isinstance(value, ast.Call)
                        and "Embedding" in roles.called(value)
                    ):
                        yield str(key.value)


def _before_weight(node: ast.Attribute) -> str:
    return node.value.attr if isinstance(node.value, ast.Attribute) else roles.root_name(node.value)
