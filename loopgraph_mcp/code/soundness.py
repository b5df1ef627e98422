"""Checks an edit against the whole program: what it reads is set, what it changes matters, what is asserted holds."""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from loopgraph_mcp.code import folding, roles, syntax
from loopgraph_mcp.code.folding import Constants, Unknown
from loopgraph_mcp.code.roles import Function, Roles
from loopgraph_mcp.code.syntax import Scope, Source
from loopgraph_mcp.models import Refused

# What every layer, optimizer and plain object has without setting it.
_INHERITED = frozenset(
    [
        "training",
        "parameters",
        "named_parameters",
        "modules",
        "named_modules",
        "children",
        "named_children",
        "buffers",
        "named_buffers",
        "state_dict",
        "load_state_dict",
        "register_buffer",
        "register_parameter",
        "register_module",
        "apply",
        "to",
        "eval",
        "train",
        "zero_grad",
        "half",
        "float",
        "double",
        "bfloat16",
        "cuda",
        "cpu",
        "requires_grad_",
        "param_groups",
        "state",
        "defaults",
        "add_param_group",
        "update",
        "trainable_parameters",
        "leaf_modules",
        "freeze",
        "unfreeze",
        "__class__",
        "__dict__",
        "device",
        "dtype",
    ]
)
_CONSTRUCTORS = frozenset(["__init__", "setup"])
Test = Callable[[ast.stmt], bool]
_KNOWN_BASES = frozenset(["Module", "Optimizer", "object", "Protocol", "NamedTuple", "ABC"])


@dataclass(frozen=True, slots=True)
class Fresh:
    """Code that an edit put into a program: where it is, and what stood in its place."""

    nodes: tuple[ast.AST, ...]
    chain: tuple[ast.AST, ...]
    body: Sequence[ast.stmt]
    at: int
    old: tuple[ast.stmt, ...]

    @property
    def line(self) -> int:
        """Its line in the edited text."""
        return getattr(self.nodes[0], "lineno", 0)


def fault(before: Source, after: Source, siblings: Mapping[str, str]) -> Refused | None:
    """Return why an edit is wrong for its program, or None where nothing speaks against it."""
    fresh = list(changed(before, after))
    beside = folding.parsed(siblings)
    for check in (_unset_attribute, _unbound_name, _broken_count, _without_effect, _off, _single_pass):
        found = check(before, after, fresh, beside)
        if found is not None:
            return found
    return _broken_assert(before, after, beside)


# ---------------------------------------------------------------------------------------------- what is new


def changed(before: Source, after: Source) -> Iterator[Fresh]:
    """Yield the code of a program that another version of it lacks, with its surroundings."""
    yield from _changed(before, before.tree.body, after, after.tree.body, (after.tree,))


def _changed(
    before: Source, old: Sequence[ast.stmt], after: Source, new: Sequence[ast.stmt], chain: tuple[ast.AST, ...]
) -> Iterator[Fresh]:
    ours, theirs = [before.text_of(each) for each in old], [after.text_of(each) for each in new]
    for kind, one, two, three, four in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if kind in {"equal", "delete"}:
            continue
        was, now = list(old[one:two]), list(new[three:four])
        pairs = _paired(was, now)
        loose = [each for each in was if all(each is not left for left, _ in pairs)]
        for at, statement in enumerate(now, start=three):
            left = next((one for one, right in pairs if right is statement), None)
            if left is None:
                yield Fresh((statement,), chain, new, at, tuple(loose))
                continue
            header = [node for node in roles.children(statement) if not isinstance(node, ast.stmt)]
            same = [node for node in roles.children(left) if not isinstance(node, ast.stmt)]
            parts = [node for node in header if not any(syntax.alike(node, each) for each in same)]
            if parts:
                yield Fresh(tuple(parts), chain, new, at, (left,))
            for mine, its in zip(_blocks(left), _blocks(statement), strict=False):
                yield from _changed(before, mine, after, its, (*chain, statement))


def _blocks(node: ast.stmt) -> list[Sequence[ast.stmt]]:
    return [
        getattr(node, name) for name in ("body", "orelse", "finalbody") if isinstance(getattr(node, name, None), list)
    ]


def _paired(was: Sequence[ast.stmt], now: Sequence[ast.stmt]) -> list[tuple[ast.stmt, ast.stmt]]:
    """Pair the compound statements of two lists that are one statement with other contents."""
    pairs, left = list[tuple[ast.stmt, ast.stmt]](), [each for each in was if hasattr(each, "body")]
    for statement in now:
        for each in left:
            if type(each) is type(statement) and getattr(each, "name", "") == getattr(statement, "name", ""):
                pairs.append((each, statement))
                left.remove(each)
                break
    return pairs


# ------------------------------------------------------------------------------------------- attributes, names


def _unset_attribute(
    before: Source, after: Source, fresh: Sequence[Fresh], beside: Mapping[str, ast.Module]
) -> Refused | None:
    """Find `self.x` in new code that its class does not set on every path."""
    classes = {node.name: node for node in after.tree.body if isinstance(node, ast.ClassDef)}
    known = _attribute_names(before.tree)
    for each in fresh:
        owner = next((node for node in reversed(each.chain) if isinstance(node, ast.ClassDef)), None)
        function = next((node for node in reversed(each.chain) if isinstance(node, Function)), None)
        relied = _attributes_read(each.old) | _relied(each)
        for node in (inner for part in each.nodes for inner in syntax.walk(part)):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
                continue
            of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
            if of_self and owner is not None and function is not None:
                if node.attr in relied or _has(owner, node.attr, classes, function, each):
                    continue
                lines = [value.lineno for value in roles.attribute_values(owner, node.attr)]
                why = f"sets it only on some paths (line {lines[0]})" if lines else "never sets it"
                return Refused(f"`self.{node.attr}` in {owner.name}", f"the edit would read it, and {owner.name} {why}")
            if not of_self and _is_config(node.value) and node.attr not in known:
                return Refused(
                    f"`{ast.unparse(node)}`", "the edit would read it, and nothing in the file has this field"
                )
    return None


def _is_config(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in {"config", "cfg", "args", "hparams"}


def _attribute_names(tree: ast.Module) -> set[str]:
    found = set[str]()
    for node in syntax.nodes(tree):
        match node:
            case ast.Attribute(attr=name) | ast.keyword(arg=str() as name):
                found.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.Call() if roles.called(node) == "add_argument":
                found.add(folding.destination(node))
    return found


def _attributes_read(nodes: Sequence[ast.AST]) -> set[str]:
    return {
        node.attr
        for part in nodes
        for node in syntax.walk(part)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }


def _relied(each: Fresh) -> set[str]:
    """Return the attributes that the old code before the new one reads on the same path."""
    found = _attributes_read([item for item in each.body[: each.at] if not _is_set_here(item)])
    inner: ast.AST = each.body[each.at]
    for outer in reversed(each.chain):
        if isinstance(outer, Function | ast.ClassDef | ast.Module):
            break
        found |= _attributes_read([node for node in roles.children(outer) if isinstance(node, ast.expr)])
        for block in roles.blocks(outer):
            if any(item is inner for item in block):
                place = next(at for at, item in enumerate(block) if item is inner)
                found |= _attributes_read(block[:place])
        inner = outer
    return found


def _is_set_here(statement: ast.stmt) -> bool:
    """Return whether a statement gives `self` an attribute: that is no sign that another one is there."""
    return isinstance(statement, ast.If | ast.For | ast.While | ast.Try) or any(
        isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) for node in syntax.walk(statement)
    )


def _has(
    owner: ast.ClassDef, name: str, classes: Mapping[str, ast.ClassDef], function: Function, each: Fresh, depth: int = 0
) -> bool:
    """Return whether an object of a class has an attribute on every path."""
    if name in _INHERITED or depth > 4 or _declares(owner, name):
        return True
    init = next((node for node in owner.body if isinstance(node, Function) and node.name in _CONSTRUCTORS), None)
    if init is not None:
        if function is init:  # the new code itself is in the constructor: what is above it counts
            return _bound_above(each, lambda statement: _sets(statement, name, owner))
        if _on_every_path(init.body, lambda statement: _sets(statement, name, owner)):
            return True
    elif not roles.attribute_values(owner, name) and _read_in_methods(owner, name, each):
        return True  # the constructor is elsewhere: what the class's other methods read is there
    for base in owner.bases:
        base_name = _name_of(base)
        if base_name in classes and base_name != owner.name:
            if _has(classes[base_name], name, classes, function, each, depth + 1):
                return True
        elif base_name not in _KNOWN_BASES and not init:
            return True  # what the base of another file sets cannot be seen
    return False


def _declares(owner: ast.ClassDef, name: str) -> bool:
    """Return whether a class's own body defines a name: as a method, a field, or a class attribute."""
    is_dataclass = any(_name_of(each) == "dataclass" for each in _decorators(owner))
    for node in owner.body:
        match node:
            case ast.FunctionDef(name=own) | ast.AsyncFunctionDef(name=own) | ast.ClassDef(name=own) if own == name:
                return True
            case ast.AnnAssign(target=ast.Name(id=own), value=value) if own == name and (value or is_dataclass):
                return True
            case ast.Assign(targets=targets) if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                return True
    return False


def _read_in_methods(owner: ast.ClassDef, name: str, each: Fresh) -> bool:
    methods = [node for node in owner.body if isinstance(node, Function)]
    old = [node for method in methods for node in method.body if node is not each.body[each.at]]
    return name in _attributes_read([node for node in old if all(node is not part for part in each.nodes)])


def _decorators(node: ast.ClassDef) -> list[ast.expr]:
    return [each.func if isinstance(each, ast.Call) else each for each in node.decorator_list]


def _name_of(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _sets(statement: ast.stmt, name: str, owner: ast.ClassDef, depth: int = 0) -> bool:
    """Return whether a plain statement gives `self` an attribute, by itself or by a method it calls."""
    for node in syntax.walk(statement):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=attr, ctx=ast.Store()) if attr == name:
                return True
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="self"), attr="register_buffer" | "register_parameter"),
                args=[ast.Constant(value=given), *_],
            ) if given == name:
                return True
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=method)) if depth == 0:
                inner = next((each for each in owner.body if isinstance(each, Function) and each.name == method), None)
                if inner is not None and _on_every_path(inner.body, lambda each: _sets(each, name, owner, 1)):
                    return True
    return False


def _on_every_path(body: Sequence[ast.stmt], sets: Test) -> bool:  # noqa: C901, PLR0912 - one case a kind of statement
    """Return whether some statements do a thing whichever way they are run through."""
    for statement in body:
        match statement:
            case ast.If(body=one, orelse=other):
                if _ends(one) and not other:
                    continue
                ways = [way for way in (one, other) if not _ends(way)]
                if ways and all(_on_every_path(way, sets) for way in ways):
                    return True
            case ast.With(body=inner) | ast.AsyncWith(body=inner):
                if _on_every_path(inner, sets):
                    return True
            case ast.Try(body=inner, handlers=handlers, finalbody=last):
                caught = all(_ends(each.body) or _on_every_path(each.body, sets) for each in handlers)
                if _on_every_path(last, sets) or (caught and _on_every_path(inner, sets)):
                    return True
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
                if sets(ast.Import(names=[ast.alias(name=name)])):  # it binds its name, and runs nothing of its body
                    return True
            case ast.For() | ast.While():
                continue
            case ast.Return():
                return False
            case _:
                if sets(statement):
                    return True
    return False


def _ends(body: Sequence[ast.stmt]) -> bool:
    """Return whether some statements leave: nothing behind them is reached from there."""
    return bool(body) and isinstance(body[-1], ast.Raise | ast.Return | ast.Continue | ast.Break)


def _bound_above(each: Fresh, sets: Test) -> bool:
    """Return whether a thing is done on every way to some new code, or in the new code's own place."""
    if _on_every_path(each.body[: each.at], sets):
        return True
    inner: ast.AST = each.body[each.at]
    for outer in reversed(each.chain):
        for block in roles.blocks(outer):
            if any(item is inner for item in block):
                place = next(at for at, item in enumerate(block) if item is inner)
                if _on_every_path(block[:place], sets):
                    return True
        if isinstance(outer, Function | ast.ClassDef | ast.Module):
            return False
        inner = outer
    return False


def _unbound_name(
    before: Source, after: Source, fresh: Sequence[Fresh], beside: Mapping[str, ast.Module]
) -> Refused | None:
    """Find a name in new code that is not bound where it is used, or that is another function's or the module's own."""
    for each in fresh:
        scopes = [node for node in each.chain if isinstance(node, Scope)]
        inner = scopes[-1]
        own = {node.id for part in each.nodes for node in syntax.walk(part) if isinstance(node, ast.Name)}
        made = _made_inside(each.nodes)
        old = {node.id for part in each.old for node in syntax.walk(part) if isinstance(node, ast.Name)}
        for name in sorted(own - made - old):
            if syntax.is_builtin(name):
                continue
            if (why := _not_bound(name, inner, scopes, each, before)) is not None:
                return Refused(f"`{name}` in {_named(scopes)}", f"the edit would read it, {why}")
    return None


def _made_inside(nodes: Sequence[ast.AST]) -> set[str]:
    found = set[str]()
    for part in nodes:
        for node in syntax.walk(part):
            match node:
                case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                    found.add(name)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    found.add(name)
                case ast.alias(name=imported, asname=alias):
                    found.add(alias or imported.split(".")[0])
    return found


def _not_bound(name: str, inner: Scope, scopes: Sequence[Scope], each: Fresh, before: Source) -> str | None:
    def binds(statement: ast.stmt) -> bool:
        return name in _made_inside([statement])

    lines = syntax.bindings(inner, name)
    if lines and not isinstance(inner, ast.ClassDef):
        if isinstance(inner, Function) and any(arg.arg == name for arg in _parameters(inner)):
            return None
        if _bound_above(each, binds) or _is_target(name, each) or _read_above(name, each):
            return None
        return (
            f"which line {lines[0]} sets, not on every way to it" if lines[0] < each.line else "which is set only below"
        )
    for scope in reversed(scopes[:-1]):
        if isinstance(scope, ast.ClassDef):
            continue
        found = syntax.bindings(scope, name) or (
            syntax.global_bindings(before.tree, name) if isinstance(scope, ast.Module) else []
        )
        if not found:
            continue
        is_variable = isinstance(scope, ast.Module) and isinstance(inner, Function) and _is_variable(scope, name)
        if is_variable and isinstance(inner, Function) and not _reads(inner, name, each):
            return f"a variable of the module (line {found[0]}) that {inner.name} does not read"
        return None
    return None if _comes_from_elsewhere(name, before) else "which is not bound there"


def _comes_from_elsewhere(name: str, before: Source) -> bool:
    """Return whether a program may have a name that it binds nowhere: it imports `*`, or reads the name itself."""
    if any(isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names) for node in before.tree.body):
        return True
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(before.tree))


def _parameters(function: Function) -> list[ast.arg]:
    given = function.args
    return [
        *given.posonlyargs, *given.args, *given.kwonlyargs, *(each for each in (given.vararg, given.kwarg) if each)
    ]  # fmt: skip


def _is_target(name: str, each: Fresh) -> bool:
    """Return whether a loop or `with` around some new code gives a name its value."""
    for outer in each.chain:
        if isinstance(outer, ast.For | ast.AsyncFor) and name in _made_inside([outer.target]):
            return True
        if isinstance(outer, ast.With) and any(
            item.optional_vars is not None and name in _made_inside([item.optional_vars]) for item in outer.items
        ):
            return True
    return False


def _read_above(name: str, each: Fresh) -> bool:
    """Return whether the old code next to the new one reads a name too: where it is bound, it is bound for both."""
    others = [item for at, item in enumerate(each.body) if at != each.at]
    return any(
        isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
        for item in others
        if not isinstance(item, Scope)
        for node in _header(item)
    )


def _header(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield the nodes of a statement that are run whenever it is."""
    if not hasattr(statement, "body"):
        yield from syntax.walk(statement)
        return
    for node in roles.children(statement):
        if not isinstance(node, ast.stmt):
            yield from syntax.walk(node)


def _is_variable(module: Scope, name: str) -> bool:
    """Return whether a module's name is a variable: neither imported, defined, nor written in capitals."""
    return name.lower() == name and bool(syntax.assignments(module, name))


def _reads(function: Function, name: str, each: Fresh) -> bool:
    new = {id(node) for part in each.nodes for node in syntax.walk(part)}
    return any(isinstance(node, ast.Name) and node.id == name and id(node) not in new for node in syntax.walk(function))


def _named(scopes: Sequence[Scope]) -> str:
    return ".".join(each.name for each in scopes if not isinstance(each, ast.Module)) or "the module"


# ------------------------------------------------------------------------------------------------- parameters

_MAKES_PARAMETERS = frozenset(["Linear", "Embedding", "Parameter", "CastedLinear", "Conv1d", "LayerNorm", "RMSNorm"])


def _broken_count(
    before: Source, after: Source, fresh: Sequence[Fresh], beside: Mapping[str, ast.Module]
) -> Refused | None:
    """Find a new or shared parameter that a count asserted in the same class leaves out."""
    for each in fresh:
        owner = next((node for node in reversed(each.chain) if isinstance(node, ast.ClassDef)), None)
        name = _parameter_made(each.nodes)
        if owner is None or not name:
            continue
        for method in owner.body:
            if not isinstance(method, Function):
                continue
            counts = [node for node in syntax.walk(method) if isinstance(node, ast.Assert) and _counts(node)]
            covered = any(other.chain[-1] is method or method in other.chain for other in fresh)
            if counts and not covered:
                reason = f"line {counts[0].lineno} asserts the parameters of {owner.name} without it"
                return Refused(f"a count that includes {name}", reason)
    return None


def _parameter_made(nodes: Sequence[ast.AST]) -> str:
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=ast.Call() as call):
                if roles.called(call) in _MAKES_PARAMETERS:
                    return f"self.{name}"
            case ast.Assign(targets=[ast.Attribute(attr="weight") as target], value=ast.Attribute(attr="weight")):
                return ast.unparse(target)
    return ""


def _counts(node: ast.Assert) -> bool:
    return any(
        isinstance(each, ast.Call)
        and isinstance(each.func, ast.Attribute)
        and each.func.attr in {"parameters", "named_parameters"}
        for each in syntax.walk(node.test)
    )


# ---------------------------------------------------------------------------------------------------- effect


def _without_effect(
    before: Source, after: Source, fresh: Sequence[Fresh], beside: Mapping[str, ast.Module]
) -> Refused | None:
    """Find a changed default or constant that the program never reads, or in whose place it always passes a value."""
    for each in fresh:
        for part in each.nodes:
            found = _argument_default(part, each, after) or _field_default(part, each, after, beside)
            found = found or _unread(part, each, after, beside)
            if found is not None:
                return found
    return None


def _argument_default(part: ast.AST, each: Fresh, after: Source) -> Refused | None:
    function = each.body[each.at]
    if not isinstance(part, ast.arguments) or not isinstance(function, Function):
        return None
    old = each.old[0] if each.old and isinstance(each.old[0], Function) else None
    if old is None:
        return None
    owner = next((node for node in reversed(each.chain) if isinstance(node, ast.ClassDef)), None)
    called_as = owner.name if owner is not None and function.name == "__init__" else function.name
    names = [arg.arg for arg in _parameters(function)]
    for name in names:
        ours, theirs = syntax.default_of(function, name), syntax.default_of(old, name)
        if ours is None or theirs is None or syntax.alike(ours, theirs):
            continue
        place = [arg.arg for arg in (*function.args.posonlyargs, *function.args.args)]
        index = place.index(name) - (1 if owner is not None and place[:1] in (["self"], ["cls"]) else 0)
        calls = roles.of(after).calls_of(called_as)
        passing = [call for call in calls if _passes(call, name, index if name in place else None)]
        what = f"a default of `{name}` in `{called_as}` that is used"
        if not calls and roles.of(after).loop is not None:
            return Refused(what, f"nothing in this file calls {called_as}")
        if calls and len(passing) == len(calls):
            lines = ", ".join(str(call.lineno) for call in calls[:3])
            return Refused(what, f"every call passes a value of its own (line {lines})")
    return None


def _passes(call: ast.Call, name: str, index: int | None) -> bool:
    if any(keyword.arg in {name, None} for keyword in call.keywords):
        return True
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    return starred or (index is not None and len(call.args) > index)


def _field_default(part: ast.AST, each: Fresh, after: Source, beside: Mapping[str, ast.Module]) -> Refused | None:
    owner = each.chain[-1]
    if not isinstance(owner, ast.ClassDef):
        return None
    match part:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            pass
        case _:
            return None
    found = roles.of(after)
    calls, direct = found.calls_of(owner.name), _read_on_class(found, owner.name, name)
    for tree in beside.values():
        other = Roles(tree)
        calls = [*calls, *other.calls_of(owner.name)]
        direct = direct or _read_on_class(other, owner.name, name)
    fields = [target for target, _ in syntax.fields(owner)]
    index = fields.index(name) if name in fields else None
    passing = [call for call in calls if _passes(call, name, index)]
    what = f"a field `{name}` of {owner.name} whose default is used"
    if direct:
        return None
    if not calls and not any(_name_of(each) == "dataclass" for each in _decorators(owner)):
        return None  # its fields may be read off the class itself
    if not calls:
        return Refused(what, f"nothing in this file builds {owner.name}: the script that does decides; edit that one")
    if len(passing) == len(calls):
        return Refused(what, f"every place that builds {owner.name} passes its own (line {passing[0].lineno})")
    return None


def _read_on_class(found: Roles, owner: str, name: str) -> bool:
    """Return whether a class's field is read off the class itself, or the class is passed on as a value."""
    for node in found.names_of(owner):
        parent = found.parents.get(id(node))
        if isinstance(parent, ast.Call) and parent.func is node:
            continue
        if isinstance(parent, ast.arg | ast.AnnAssign | ast.ClassDef):
            continue
        if isinstance(parent, ast.Attribute):
            if parent.attr == name:
                return True
            continue
        return True
    return False


def _unread(part: ast.AST, each: Fresh, after: Source, beside: Mapping[str, ast.Module]) -> Refused | None:
    """Find a module's constant, or a flag, that nothing reads, in a program that is whole: it has a training loop."""
    found = roles.of(after)
    if found.loop is None:
        return None
    match part:
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if isinstance(each.chain[-1], ast.Module):
            if isinstance(value, ast.Call) and roles.called(value) == "add_argument":
                return None
            if found.names_of(name) or _is_exported(name, after.tree, beside):
                return None
            return Refused(f"a use of `{name}`", "nothing in this file reads it, so a new value changes nothing")
    for node in syntax.walk(part):
        if isinstance(node, ast.Call) and roles.called(node) == "add_argument":
            name = folding.destination(node)
            if name and not _reads_flag(after.tree, name):
                return Refused(f"a use of `--{name.replace('_', '-')}`", "nothing in this file reads it")
    return None


def _is_exported(name: str, tree: ast.Module, beside: Mapping[str, ast.Module]) -> bool:
    """Return whether another way than its name may read a module's variable."""
    for node in syntax.nodes(tree):
        match node:
            case ast.Call(func=ast.Name(id="globals" | "exec" | "locals" | "vars")) | ast.Global():
                return True
    for other in beside.values():
        for node in syntax.nodes(other):
            if (isinstance(node, ast.alias) and node.name in {name, "*"}) or (
                isinstance(node, ast.Attribute) and node.attr == name
            ):
                return True
    return False


def _reads_flag(tree: ast.Module, name: str) -> bool:
    for node in syntax.nodes(tree):
        match node:
            case ast.Attribute(attr=attr) if attr == name:
                return True
            case ast.Constant(value=text) if text == name:
                return True
            case ast.Call(func=ast.Name(id="vars")) | ast.keyword(arg=None):
                return True
    return False


def _off(before: Source, after: Source, fresh: Sequence[Fresh], beside: Mapping[str, ast.Module]) -> Refused | None:
    """Find new code that the program never comes to."""
    found = roles.of(after)
    layers = {each.name: each.node for each in found.modules}
    for each in fresh:
        owner = next((node for node in each.chain if isinstance(node, ast.ClassDef)), None)
        if owner is not None and owner.name in layers and found.built(owner) is False:
            return Refused(f"a {owner.name} that is built", f"the program builds no {owner.name}: nothing would change")
        statement = each.body[each.at]
        if found.taken(statement) is False:
            return Refused("a place that is run", f"line {each.line} is under a condition that does not hold here")
    return None


def _single_pass(
    before: Source, after: Source, fresh: Sequence[Fresh], beside: Mapping[str, ast.Module]
) -> Refused | None:
    """Find a new number of rounds for a loop that makes one round: fewer are none."""
    constants, found = Constants(before.tree, beside), roles.of(before)
    for each in fresh:
        for part in each.nodes:
            match part:
                case ast.Assign(targets=[ast.Name(id=name)]) if isinstance(each.chain[0], ast.Module):
                    rounds = constants.number(ast.Name(name, ast.Load()))
                    counts = any(
                        isinstance(parent := found.parents.get(id(node)), ast.Call) and roles.called(parent) == "range"
                        for node in found.names_of(name)
                    )
                    if rounds == 1 and counts:
                        line = syntax.bindings(before.tree, name)[0]
                        return Refused(f"more than one pass a step in {name}", f"line {line} makes it 1 here")
    return None


def _broken_assert(before: Source, after: Source, beside: Mapping[str, ast.Module]) -> Refused | None:
    """Find an assertion of the module that holds before the edit and fails after it."""
    one, other = Constants(before.tree, beside), Constants(after.tree, beside)
    for node in syntax.nodes(after.tree):
        if not isinstance(node, ast.Assert):
            continue
        holds = _truth(other, node.test)
        if holds is False and _truth(one, node.test) is not False:
            text = " ".join(ast.unparse(node.test).split())
            return Refused(f"`assert {text}` (line {node.lineno})", "it would fail with the new value")
    return None


def _truth(constants: Constants, test: ast.expr) -> bool | None:
    try:
        return bool(constants.value(test))
    except Unknown:
        return None
