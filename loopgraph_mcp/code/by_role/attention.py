"""Edits of attention, found by its queries, keys and values."""

import ast
import math
import re
from collections.abc import Iterator

from loopgraph_mcp.code import folding, roles, syntax
from loopgraph_mcp.code.by_role.draft import (
    Answer,
    Draft,
    Held,
    Misfit,
    Values,
    edit,
    elsewhere,
    functional_alias,
    line_of,
    module_alias,
    names_stored,
    parsed_expression,
    written,
)
from loopgraph_mcp.code.by_role.places import as_there, module_constant, scalar
from loopgraph_mcp.code.roles import Attention, Roles
from loopgraph_mcp.code.syntax import Source


def _one_attention(found: Roles, *, called_so: bool = False) -> Attention:
    """Return the one class that computes attention; of a class that is only called so, what its queries are called."""
    if len(found.attentions) == 1:
        return found.attentions[0]
    if called_so and not found.attentions:
        for owner in found.modules:
            read = {node.id for node in syntax.walk(owner.forward) if isinstance(node, ast.Name)}
            if "attention" in owner.name.lower() and {"q", "k"} <= read:
                nothing = ast.Call(ast.Name("attention", ast.Load()), [], [])
                return Attention(owner, nothing, owner.forward.body[-1], "q", "k", "v")
    if found.attentions:
        known = ", ".join(each.owner.name for each in found.attentions)
        raise Misfit("one class that computes attention", f"this file has {len(found.attentions)}: {known}")
    raise Misfit("a class that computes attention from q, k and v", f"this file has none{elsewhere(found)}")


def _per_head(attention: Attention) -> bool:
    """Return whether the queries are cut into heads before attention reads them."""
    for statement in syntax.statements(attention.owner.forward):
        if isinstance(statement, ast.Assign) and attention.q in names_stored(statement):
            calls = {roles.called(node) for node in syntax.walk(statement.value) if isinstance(node, ast.Call)}
            if calls & {"view", "reshape", "unflatten", "rearrange", "unbind", "chunk", "split_heads", "permute"}:
                return True
    return False


def _norm_of_queries(attention: Attention) -> ast.AST | None:
    """Return the code that normalises the queries, or nothing."""
    for node in syntax.walk(attention.owner.forward):
        match node:
            case ast.Call() if roles.called(node) == "rsqrt" and _reads_name(node, attention.q):
                return node
            case ast.Call() if re.search(r"norm|(^|_)ln", roles.called(node), re.IGNORECASE) and any(
                _reads_name(each, attention.q) or roles.root_name(each) == "qk" for each in node.args
            ):
                return node
            case ast.Attribute(attr=name) if re.fullmatch(r"(q|qk|query)_?(norm|ln|layernorm)\w*", name):
                return node
    return None


def _reads_name(node: ast.AST, name: str) -> bool:
    return any(isinstance(each, ast.Name) and each.id == name for each in syntax.walk(node))


@edit
def qk_norm(source: Source, found: Roles, values: Values) -> Answer:
    """Normalise queries and keys right before attention reads them."""
    attention = _one_attention(found)
    there = _norm_of_queries(attention)
    if there is not None:
        if found.taken(there) is False:
            raise Misfit(
                "queries that are not normalised", f"line {line_of(there)} does it under a setting that is off"
            )
        return Held(f"line {line_of(there)} normalises the queries")
    if not _per_head(attention):
        raise Misfit(
            "queries cut into heads", f"{attention.owner.name} does not reshape `{attention.q}` in its forward"
        )
    q, k = attention.q, attention.k
    draft = Draft(source)
    draft.before(attention.at, f"{q}, {k} = {_norm(source, found, q)}, {_norm(source, found, k)}")
    return draft


def _norm(source: Source, found: Roles, name: str) -> str:
    for function in found.functions.values():
        required = len(function.args.args) - len(function.args.defaults)
        if function.name in {"norm", "rms_norm", "rmsnorm", "_norm"} and required == 1 and not function.args.kwonlyargs:
            return f"{function.name}({name})"
    if found.framework == "torch" and (functional := functional_alias(source)):
        return f"{functional}.rms_norm({name}, ({name}.size(-1),))"
    if found.framework == "mlx" and (core := module_alias(source, "mlx.core")):
        return f"{name} * {core}.rsqrt({core}.mean({name} * {name}, axis=-1, keepdims=True) + 1e-5)"
    raise Misfit("a norm to use", "the file has no norm function, and imports neither torch.nn.functional nor mlx.core")


@edit
def qk_scale(source: Source, found: Roles, values: Values) -> Answer:
    """Multiply the normalised queries by a gain; where constants multiply them already, set those."""
    attention, wanted = _one_attention(found, called_so=True), values["gain"]
    if _norm_of_queries(attention) is None:
        raise Misfit("normalised queries", f"{attention.owner.name} does not normalise `{attention.q}`")
    gains = list(_gains(attention))
    of_q = [value for name, value in gains if name == attention.q]
    factors = [found.constants.number(value) for _, value in gains]
    if gains and (len(of_q) != 1 or any(factor is None or factor == 0 for factor in factors)):
        return Held(f"line {gains[0][1].lineno} multiplies queries or keys by a gain of its own")
    if gains:
        others = math.prod(f for (name, _), f in zip(gains, factors, strict=True) if name != attention.q and f)
        product = others * (found.constants.number(of_q[0]) or 1.0)
        if math.isclose(product, float(wanted), rel_tol=1e-9):
            return Held(f"line {of_q[0].lineno}: queries and keys are multiplied by {product:g} together")
        draft = Draft(source, resets=True)
        draft.put(of_q[0], f"{float(wanted) / others:.10g}" if others != 1.0 else written(wanted))
        return draft
    if (own := _own_scale(found, attention)) is not None:
        return Held(f"line {line_of(own)} gives attention a scale of its own")
    if not attention.call.args:
        raise Misfit("a call that mixes values by q and k", f"{attention.owner.name} has none of a known form")
    if found.taken(attention.at) is False:
        raise Misfit("attention that is run", f"line {attention.at.lineno} is under a setting that is off")
    draft = Draft(source)
    draft.before(attention.at, f"{attention.q} = {written(wanted)} * {attention.q}")
    return draft


def _gains(attention: Attention) -> Iterator[tuple[str, ast.expr]]:
    """Yield what queries or keys are multiplied by, with their name."""
    wanted = {attention.q, attention.k}
    for node in syntax.walk(attention.owner.forward):
        match node:
            case ast.AugAssign(target=ast.Name(id=name), op=ast.Mult(), value=value) if name in wanted:
                yield name, value
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in wanted:
                yield from ((name, factor) for factor in _factors(value, name))
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=parts)) if len(targets) == len(
                parts
            ):
                for target, part in zip(targets, parts, strict=True):
                    if isinstance(target, ast.Name) and target.id in wanted:
                        yield from ((target.id, factor) for factor in _factors(part, target.id))
    for argument in attention.call.args[:2]:
        name = roles.root_name(argument)
        yield from ((name, factor) for factor in _factors(argument, name) if name)


def _factors(value: ast.expr, name: str) -> Iterator[ast.expr]:
    match value:
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            if roles.root_name(left) == name or _is_norm_of(left, name):
                yield right
            elif roles.root_name(right) == name or _is_norm_of(right, name):
                yield left


def _is_norm_of(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and any(roles.root_name(each) == name for each in node.args)


def _own_scale(found: Roles, attention: Attention) -> ast.AST | None:
    """Return the scale passed to attention where it is not the usual root of the head's width."""
    for name in roles.attributes(attention.owner.forward):
        if re.fullmatch(r"(q|qk)_?(gain|scale|temp\w*)", name):
            return attention.at
    for keyword in attention.call.keywords:
        if keyword.arg in {"scale", "softmax_scale", "sm_scale"}:
            value: ast.expr | None = keyword.value
            if isinstance(value, ast.Name):
                value = next(iter(syntax.assignments(attention.owner.forward, value.id)), None)
            elif isinstance(value, ast.Attribute):
                value = next(iter(roles.attribute_values(attention.owner.node, value.attr)), None)
            text = "" if value is None else ast.unparse(value)
            if "sqrt" not in text and "** -0.5" not in text and "None" not in text:
                return keyword.value
    return None


@edit
def exclusive_attention(source: Source, found: Roles, values: Values) -> Answer:
    """Take out of each head's output what points along the token's own value."""
    attention = _one_attention(found)
    forward = attention.owner.forward
    for node in syntax.walk(forward):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and ".sum(" in ast.unparse(node):
            return Held(f"line {node.lineno} takes a part of the output out")
    result = _result_of(attention)
    functional = functional_alias(source)
    if found.framework != "torch" or not functional:
        raise Misfit("torch.nn.functional", "the file does not import it")
    if not result:
        raise Misfit("the output of attention in a variable", f"line {attention.at.lineno} goes on with it at once")
    if not _per_head(attention):
        raise Misfit("values cut into heads", f"{attention.owner.name} does not reshape them in its forward")
    cached = [
        each for each in syntax.statements(forward) if isinstance(each, ast.Assign) and "cache" in ast.unparse(each)
    ]
    if any(attention.v in names_stored(each) for each in cached):
        raise Misfit("the values of these tokens alone", "a cache adds those of earlier tokens to them")
    own = f"{functional}.normalize({attention.v}, dim=-1)"
    if groups := _groups(attention):
        axis = 1 if roles.called(attention.call) == "scaled_dot_product_attention" else 2
        own = f"{functional}.normalize({attention.v}.repeat_interleave({groups}, dim={axis}), dim=-1)"
    draft = Draft(source)
    code = f"own = {own}\n{result} = {result} - ({result} * own).sum(dim=-1, keepdim=True) * own"
    draft.after(attention.at, code)
    return draft


def _result_of(attention: Attention) -> str:
    """Return the variable that attention's output is put in as it comes, on every way; nothing where it is reshaped."""
    found = set[str]()
    calls = [
        node
        for node in syntax.walk(attention.owner.forward)
        if isinstance(node, ast.Call) and (node is attention.call or roles.ATTENTION.search(roles.called(node)))
    ]
    for call in calls:
        holder = [
            node for node in syntax.walk(attention.owner.forward) if isinstance(node, ast.Assign) and node.value is call
        ]
        if len(holder) != 1 or not isinstance(holder[0].targets[0], ast.Name):
            return ""
        if any(roles.root_name(each) not in {attention.q, attention.k, attention.v} or not isinstance(each, ast.Name)
               for each in attention.call.args[:3]):  # fmt: skip
            return ""
        found.add(holder[0].targets[0].id)
    if isinstance(attention.at, ast.If):  # an attention written out beside it must fill the same variable
        for block in (attention.at.body, attention.at.orelse):
            if block and not any(isinstance(n, ast.Assign) and found & names_stored(n) for n in block):
                return ""
    return found.pop() if len(found) == 1 else ""


def _groups(attention: Attention) -> str:
    """Return how many queries share a key, as code, or nothing where all have their own."""
    stored = {
        node.attr
        for node in syntax.walk(attention.owner.node)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    for heads, shared in (("n_head", "n_kv_head"), ("num_heads", "num_kv_heads"), ("n_heads", "n_kv_heads"),
                          ("n_head", "n_kv_heads")):  # fmt: skip
        if heads in stored and shared in stored:
            return f"self.{heads} // self.{shared}"
    return ""


@edit
def grouped_queries(source: Source, found: Roles, values: Values) -> Answer:
    """Let groups of query heads share one key and value head, where attention is made for it."""
    groups = int(values["groups"])
    _check_groups_fit(found)
    for call in [node for node in syntax.nodes(source.tree) if isinstance(node, ast.Call)]:
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        heads = given.get("n_head") or given.get("num_heads")
        shared = given.get("n_kv_head") or given.get("num_kv_heads")
        if heads is None or shared is None:
            continue
        if isinstance(shared, ast.Name) and (constants := module_constant(source, shared.id)):
            if not syntax.alike(shared, heads):
                shared = constants[0]
        elif not isinstance(shared, ast.Name | ast.Constant | ast.BinOp) and not _is_divisor(shared):
            continue
        return _share(source, found, heads, shared, groups)
    for name, other in (("num_heads", "num_kv_heads"), ("n_head", "n_kv_head"), ("n_heads", "n_kv_heads")):
        ones, twos = scalar(source, (name,)), scalar(source, (other,))
        if ones is not None and twos is not None:
            own = module_constant(source, name)
            return _share(source, found, ast.Name(name, ast.Load()) if own else ones, twos, groups)
    raise Misfit("a number of key and value heads", f"this file gives none{elsewhere(found)}")


def _is_divisor(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and roles.called(node) == "max"


def _share(source: Source, found: Roles, heads: ast.expr, shared: ast.expr, groups: int) -> Answer:
    """Set how many heads are shared: a number where the heads are one, else the program's own division."""
    whole, own = found.constants.number(heads), found.constants.number(shared)
    text, is_number = ast.unparse(heads), isinstance(folding.own_default(heads), ast.Constant)
    text = text if isinstance(heads, ast.Name | ast.Attribute | ast.Constant) else f"({text})"
    divisor = f"max(k for k in range(1, max(1, {text} // __hole_groups) + 1) if {text} % k == 0)"
    if groups <= 0:
        wanted = "1"
    elif whole is not None and is_number:
        wanted = str(max(k for k in range(1, max(1, int(whole) // groups) + 1) if int(whole) % k == 0))
    else:
        wanted = divisor.replace("__hole_groups", str(groups))
        if (
            isinstance(heads, ast.Name)
            and (lines := syntax.bindings(source.tree, heads.id))
            and lines[0] > shared.lineno
        ):
            raise Misfit("the number of heads above that of the shared ones", f"line {lines[0]} sets it only below")
    if own is not None and whole is not None and own >= 1 and groups > 0 and whole / own >= max(2, groups):
        return Held(f"line {shared.lineno}: {whole / own:g} query heads share a key and value head")
    inner = folding.own_default(shared)
    there = syntax.alike(parsed_expression(divisor), inner, holes={})
    there = there or (own is not None and whole is not None and 1 < own < whole)
    if syntax.alike(parsed_expression(wanted), inner) or (own is not None and wanted.isdigit() and own == int(wanted)):
        if groups > 0 and own == whole and own is not None:
            raise Misfit("more query heads than one", f"line {shared.lineno} makes it {own:g}")
        return Held(f"line {shared.lineno}: query heads share key and value heads")
    if own is not None and own < 1:
        raise Misfit("a number of shared heads", f"line {shared.lineno} leaves it to the program")
    if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and not wanted.isdigit():
        raise Misfit("a number of heads in the file", f"line {shared.lineno} takes a text, and cannot divide")
    draft = Draft(source, resets=there and groups > 0)
    draft.put(inner, as_there(inner, wanted))
    return draft


def _check_groups_fit(found: Roles) -> None:
    """Refuse where attention or an assertion asks for as many key heads as query heads."""
    for node in syntax.nodes(found.tree):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare) and isinstance(node.test.ops[0], ast.Eq):
            sides = [node.test.left, *node.test.comparators]
            if all(isinstance(each, ast.Name | ast.Attribute) for each in sides) and "kv" in ast.unparse(node.test):
                raise Misfit(
                    "attention that lets heads share", f"line {node.lineno} asserts one key head for each query head"
                )
    for attention in found.attentions:
        name = roles.called(attention.call)
        text = ast.unparse(attention.owner.node)
        shares = "enable_gqa" in text or re.search(r"repeat_interleave|repeat_kv|\.expand\(|mx\.repeat", text)
        if name in {"scaled_dot_product_attention", "flex_attention"} and found.framework == "torch" and not shares:
            raise Misfit("attention that lets heads share", f"line {attention.call.lineno} asks for equal heads")
