"""Finds the parts of a training program by what they do: attention, feed-forward, model, optimizer steps, the loop."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

from loopgraph_mcp.code import syntax
from loopgraph_mcp.code.folding import Constants, Unknown
from loopgraph_mcp.text import compile_later

Function = ast.FunctionDef | ast.AsyncFunctionDef
ATTENTION = compile_later(r"(scaled_dot_product_attention|flash_attn\w*func|flex_attention|attend|sdpa|attention)$")
ACTIVATIONS = frozenset(
    ["relu", "gelu", "silu", "swish", "relu6", "tanh", "elu", "leaky_relu", "new_gelu", "quick_gelu"]
)
_ACTIVATION_CLASSES = frozenset(["GELU", "NewGELU", "ReLU", "SiLU", "Tanh", "ELU", "LeakyReLU", "QuickGELU"])
_ASIDE = compile_later(r"warm|bench|tun(e|ing)|profil|dry_?run|smoke|eval|valid|compile|prefill", re.IGNORECASE)
_CLIPS = frozenset(["clip_grad_norm_", "clip_grad_norm", "clip_grad_value_", "clip_by_global_norm", "clip_gradients"])
_STEPS = frozenset(["step", "update", "apply_gradients"])


@dataclass(frozen=True, slots=True)
class ModuleClass:
    """A class of layers: its constructor and what it computes."""

    node: ast.ClassDef
    init: Function | None
    forward: Function

    @property
    def name(self) -> str:
        """The class's name."""
        return self.node.name


@dataclass(frozen=True, slots=True)
class Attention:
    """A class that computes attention.

    Args:
        call: The call that mixes the values, or the softmax of an attention written out.
        at: The statement of `forward` itself that holds the call.
        q: What the queries are called where the call reads them; `k` and `v` likewise.
    """

    owner: ModuleClass
    call: ast.Call
    at: ast.stmt
    q: str
    k: str
    v: str


@dataclass(frozen=True, slots=True)
class FeedForward:
    """A class that widens, bends and narrows: its activation is applied to `argument`."""

    owner: ModuleClass
    activation: ast.expr
    argument: ast.expr
    kind: str


@dataclass(frozen=True, slots=True)
class Step:
    """A statement of the training loop that lets an optimizer move the weights."""

    statement: ast.stmt
    body: Sequence[ast.stmt]
    call: ast.Call
    scaler: str = ""


class Roles:
    """What the parts of one program do."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.constants = Constants(tree)

    # ---------------------------------------------------------------------------------------------- the file

    @cached_property
    def parents(self) -> dict[int, ast.AST]:
        """The node around each node, by id."""
        return {id(child): node for node in [self.tree, *syntax.nodes(self.tree)] for child in children(node)}

    @cached_property
    def framework(self) -> str:
        """`torch`, `mlx`, `jax`, or nothing: by what the file imports."""
        found = set[str]()
        for node in syntax.nodes(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
        return next((name for name in ("mlx", "torch", "jax") if name in found), "")

    @cached_property
    def modules(self) -> list[ModuleClass]:
        """The classes that have a `forward`, or in MLX a `__call__`."""
        found = []
        for node in self.tree.body:
            if not isinstance(node, ast.ClassDef):
                continue
            methods = {each.name: each for each in node.body if isinstance(each, Function)}
            forward = methods.get("forward") or (methods.get("__call__") if self.framework != "torch" else None)
            if forward is not None and forward.args.args:
                found.append(ModuleClass(node, methods.get("__init__"), forward))
        return found

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield what is around a node, from the inside out."""
        while (parent := self.parents.get(id(node))) is not None:
            yield parent
            node = parent

    def function_of(self, node: ast.AST) -> Function | None:
        """Return the function whose own code a node is."""
        return next((each for each in self.around(node) if isinstance(each, Function)), None)

    def class_of(self, node: ast.AST) -> ast.ClassDef | None:
        """Return the class that a node is in."""
        return next((each for each in self.around(node) if isinstance(each, ast.ClassDef)), None)

    def statement_of(self, node: ast.AST, scope: ast.AST | None = None) -> ast.stmt | None:
        """Return the statement that holds a node: the innermost, or the one in the body of `scope` itself."""
        for each in [node, *self.around(node)]:
            if isinstance(each, ast.stmt) and (scope is None or self.parents.get(id(each)) is scope):
                return each
        return None

    def names_of(self, name: str) -> list[ast.Name]:
        """Return where the file reads a name."""
        return [
            node
            for node in syntax.nodes(self.tree)
            if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
        ]

    # ---------------------------------------------------------------------------------------- what is built

    def built(self, node: ast.ClassDef) -> bool | None:
        """Return whether the program builds a class; None where it does so in some cases only.

        A class that nothing in the file names may be built by another file, where no class of the file is named.
        """
        sites = [
            name
            for name in self.names_of(node.name)
            if not any(each is node for each in self.around(name)) and not self._is_annotation(name)
        ]
        if not sites:
            return False if self._is_leaf(node) and self._builds_layers else None
        answers = [self.taken(site) for site in sites]
        if any(answer is True for answer in answers):
            return True
        return None if any(answer is None for answer in answers) else False

    def _is_leaf(self, node: ast.ClassDef) -> bool:
        """Return whether a class is no model: it builds no other class of layers."""
        own = {each.name for each in self.modules} - {node.name}
        return not any(isinstance(each, ast.Name) and each.id in own for each in syntax.walk(node))

    @cached_property
    def _builds_layers(self) -> bool:
        return any(not self._is_leaf(each.node) for each in self.modules)

    def _is_annotation(self, name: ast.Name) -> bool:
        parent = self.parents.get(id(name))
        return (isinstance(parent, ast.arg) and parent.annotation is name) or (
            isinstance(parent, ast.AnnAssign) and parent.annotation is name
        )

    def taken(self, node: ast.AST) -> bool | None:
        """Return whether the program comes to a place: True, False, or None where a condition is not constant."""
        answer: bool | None = True
        inner: ast.AST = node
        for outer in self.around(node):
            if isinstance(outer, Function | ast.ClassDef) and answer is False:
                return False
            branch = _branch(outer, inner)
            if branch is not None and isinstance(outer, ast.If | ast.IfExp):
                holds = self.truth(outer.test, outer)
                if holds is not None and holds is not branch:
                    return False
                answer = None if holds is None else answer
            inner = outer
        return answer

    def truth(self, test: ast.expr, place: ast.AST) -> bool | None:
        """Return whether a condition holds, where constants decide it."""
        try:
            return bool(self.constants.value(self.resolved(test, place)))
        except Unknown:
            return None

    def resolved(self, node: ast.expr, place: ast.AST, depth: int = 0) -> ast.expr:
        """Return an expression with `self.x` and `config.x` replaced by what the class or the file gives them."""
        if depth > 8:
            return node
        owner = self.class_of(place)
        roles = self

        class Resolve(ast.NodeTransformer):
            def visit_Attribute(self, each: ast.Attribute) -> ast.AST:
                found: ast.expr | None = None
                if isinstance(each.value, ast.Name) and each.value.id == "self" and owner is not None:
                    values = attribute_values(owner, each.attr)
                    found = roles.resolved(values[0], owner.body[0], depth + 1) if len(values) == 1 else None
                elif (isinstance(each.value, ast.Name) and each.value.id in {"config", "cfg", "c"}) or (
                    isinstance(each.value, ast.Attribute) and each.value.attr in {"config", "cfg"}
                ):
                    found = roles.configured(each.attr)
                return found if found is not None else each

        copied = ast.parse(ast.unparse(node), mode="eval").body
        made = Resolve().visit(copied)
        return made if isinstance(made, ast.expr) else node

    def configured(self, name: str) -> ast.expr | None:
        """Return the value of a field of the configuration: what its one construction passes, else its default."""
        for node in self.tree.body:
            if not isinstance(node, ast.ClassDef) or any(node is each.node for each in self.modules):
                continue
            fields = dict(syntax.fields(node))
            if name not in fields:
                continue
            calls = self.calls_of(node.name)
            given = [kw.value for call in calls for kw in call.keywords if kw.arg == name]
            if any(call.args or any(kw.arg is None for kw in call.keywords) for call in calls) or len(given) > 1:
                return None
            return given[0] if given else fields[name]
        return None

    def calls_of(self, name: str) -> list[ast.Call]:
        """Return the calls of a function, method or class by its last name."""
        return [node for node in syntax.nodes(self.tree) if isinstance(node, ast.Call) and called(node) == name]

    # ---------------------------------------------------------------------------------------------- layers

    @cached_property
    def attentions(self) -> list[Attention]:
        """The classes that compute attention and are built."""
        found = [each for each in map(self._attention, self.modules) if each is not None]
        return [each for each in found if self.built(each.owner.node) is not False]

    def _attention(self, owner: ModuleClass) -> Attention | None:
        for node in syntax.walk(owner.forward):
            if not isinstance(node, ast.Call) or not ATTENTION.search(called(node)) or _is_own(node):
                continue
            given = [
                *node.args,
                *(kw.value for kw in node.keywords if kw.arg in {"q", "k", "v", "query", "key", "value"}),
            ]
            names = [root_name(each) for each in given[:3]]
            at = self.statement_of(node, owner.forward)
            if len(names) == 3 and all(names) and len(set(names)) == 3 and at is not None:
                return Attention(owner, node, at, *names)
        return None

    @cached_property
    def feed_forwards(self) -> list[FeedForward]:
        """The classes that are a feed-forward layer and are built."""
        attending = {each.owner.name for each in self.attentions}
        found = [each for each in map(self._feed_forward, self.modules) if each is not None]
        return [each for each in found if each.owner.name not in attending and self.built(each.owner.node) is not False]

    def _feed_forward(self, owner: ModuleClass) -> FeedForward | None:
        if owner.init is None or len(linears(owner)) not in {2, 3}:
            return None
        if any(
            isinstance(node, ast.Call) and called(node) in {"softmax", "Embedding"} for node in syntax.walk(owner.node)
        ):
            return None
        kinds = {name: called(value) for name, value in assigned_calls(owner.init)}
        for node in syntax.walk(owner.forward):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = called(node)
            own = isinstance(node.func, ast.Attribute) and root_name(node.func) == "self"
            if own and kinds.get(name) in _ACTIVATION_CLASSES:
                return FeedForward(owner, node, node.args[0], kinds[name].lower())
            if not own and name in ACTIVATIONS:
                return FeedForward(owner, node, node.args[0], name)
            if not own and name == "maximum" and len(node.args) == 2 and self.constants.number(node.args[1]) == 0:
                return FeedForward(owner, node, node.args[0], "relu")
        return None

    @cached_property
    def model(self) -> ModuleClass | None:
        """The class that embeds tokens and makes logits of them."""
        found = []
        for each in self.modules:
            text = {called(node) for node in syntax.walk(each.node) if isinstance(node, ast.Call)}
            embeds = "Embedding" in text or any("mbed" in name for name in text)
            if embeds and (
                text & {"cross_entropy", "lm_head"} or any("lm_head" in name for name in attributes(each.node))
            ):
                found.append(each)
        return (
            found[0] if len(found) == 1 else next((each for each in found if each.name in {"GPT", "Transformer"}), None)
        )

    @cached_property
    def config_class(self) -> str:
        """The class of the model's configuration: the dataclass that the model's constructor reads sizes of."""
        if self.model is None or self.model.init is None:
            return ""
        read = {
            node.attr
            for node in syntax.walk(self.model.node)
            if isinstance(node, ast.Attribute) and root_name(node) in {"config", "cfg"}
        }
        layers = {each.name for each in self.modules}
        found = [
            (len(read & {name for name, _ in syntax.fields(node)}), node.name)
            for node in self.tree.body
            if isinstance(node, ast.ClassDef) and node.name not in layers
        ]
        count, name = max(found, default=(0, ""))
        return name if count else ""

    # ------------------------------------------------------------------------------------------- the loop

    @cached_property
    def loops(self) -> list[ast.For | ast.While]:
        """The outermost loops that compute gradients and let an optimizer step, in the order of the file."""
        found = [
            node
            for node in syntax.nodes(self.tree)
            if isinstance(node, ast.For | ast.While)
            and not any(isinstance(each, ast.For | ast.While) and self._trains(each) for each in self.around(node))
            and self._trains(node)
        ]
        return sorted(found, key=lambda node: node.lineno)

    def _trains(self, loop: ast.AST, depth: int = 0) -> bool:
        calls = [node for node in syntax.walk(loop) if isinstance(node, ast.Call)]
        names = {called(node) for node in calls}
        steps = any(_is_step(node) for node in calls)
        if names & {"backward"} and steps:
            return True
        if self.framework == "mlx" and steps and (names & self._gradient_functions or "value_and_grad" in names):
            return True
        if depth < 2:
            for name in names:
                function = self.functions.get(name)
                if function is not None and self._trains(function, depth + 1):
                    return True
        return False

    @cached_property
    def functions(self) -> dict[str, Function]:
        """The file's functions by name."""
        return {node.name: node for node in self.tree.body if isinstance(node, Function)}

    @cached_property
    def _gradient_functions(self) -> set[str]:
        made = set[str]()
        for node in syntax.nodes(self.tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                inner = {called(each) for each in syntax.walk(node.value) if isinstance(each, ast.Call)}
                if inner & {"value_and_grad", "grad"}:
                    made |= {
                        each.id for target in node.targets for each in syntax.walk(target) if isinstance(each, ast.Name)
                    }
        return made

    @cached_property
    def loop(self) -> ast.For | ast.While | None:
        """The training loop: of several, the last that is no warm-up, benchmark or evaluation by its names."""
        own = [loop for loop in self.loops if not self._is_aside(loop)] or self.loops
        return own[-1] if own else None

    def _is_aside(self, loop: ast.For | ast.While) -> bool:
        told = (
            [ast.unparse(loop.target), ast.unparse(loop.iter)]
            if isinstance(loop, ast.For)
            else [ast.unparse(loop.test)]
        )
        function = self.function_of(loop)
        return any(_ASIDE.search(each) for each in [*told, function.name if function else ""])

    @cached_property
    def steps(self) -> list[Step]:
        """The statements of the training loop, or of the functions it calls, in which optimizers step."""
        if self.loop is None:  # a script that steps once, or a part of one
            own = [item for item in self.tree.body if not isinstance(item, Function | ast.ClassDef)]
            return [step for item in own for step in self._steps_in(item)]
        found = list(self._steps_in(self.loop))
        if not found:
            for name in {called(node) for node in syntax.walk(self.loop) if isinstance(node, ast.Call)}:
                function = self.functions.get(name)
                if function is not None:
                    found += self._steps_in(function)
        return sorted(found, key=lambda each: each.statement.lineno)

    def _steps_in(self, scope: ast.AST) -> Iterator[Step]:
        for node in syntax.walk(scope):
            if not isinstance(node, ast.Call) or not _is_step(node):
                continue
            if any(isinstance(each, Function) and each is not scope for each in self.around(node)) and not any(
                each is scope for each in self.around(node) if isinstance(each, Function | ast.For | ast.While)
            ):
                continue
            statement = self.statement_of(node)
            if statement is None or not isinstance(statement, ast.Expr | ast.Assign):
                continue
            parent = self.parents.get(id(statement))
            while isinstance(parent, ast.For) and parent is not self.loop and _is_of(node, parent.target):
                statement, parent = parent, self.parents.get(id(parent))
            body = next((each for each in blocks(parent) if any(item is statement for item in each)), None)
            if body is not None:
                scaler = root_name(node.func) if "scaler" in root_name(node.func) else ""
                yield Step(statement, body, node, scaler)

    @cached_property
    def clips(self) -> list[ast.Call]:
        """The calls that clip gradients."""
        return [node for node in syntax.nodes(self.tree) if isinstance(node, ast.Call) and called(node) in _CLIPS]

    @cached_property
    def model_names(self) -> list[str]:
        """The variables that hold the model: what the loop calls, of those made of a class of the file, or `model`."""
        loop = self.loop or self.tree
        names = [
            node.func.id for node in syntax.walk(loop) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        names += [
            node.func.value.id
            for node in syntax.walk(loop)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.attr in {"train", "parameters", "zero_grad"}
        ]
        bound = {
            node.id
            for node in syntax.nodes(self.tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        } | {node.arg for node in syntax.nodes(self.tree) if isinstance(node, ast.arg)}
        called_so = [name for name in dict.fromkeys(names) if name in bound and re.search(r"model|net$|gpt", name)]
        return called_so or [name for name in ("model",) if name in bound]


_kept: WeakKeyDictionary[syntax.Source, Roles] = WeakKeyDictionary()  # a source holds its tree, and roles hold the tree


def of(source: syntax.Source) -> Roles:
    """Return the roles of a program's parts; found once for each parsed text."""
    if (found := _kept.get(source)) is None:
        found = _kept[source] = Roles(source.tree)
    return found


# ---------------------------------------------------------------------------------------------------- nodes


def children(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes right inside a node."""
    for value in node.__dict__.values():
        if isinstance(value, ast.AST):
            yield value
        elif isinstance(value, list):
            yield from (item for item in value if isinstance(item, ast.AST))


def blocks(node: ast.AST | None) -> Iterator[Sequence[ast.stmt]]:
    """Yield the lists of statements right inside a node."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if isinstance(block, list) and block:
            yield block


def called(call: ast.Call) -> str:
    """Return the last name of what is called."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def root_name(node: ast.AST) -> str:
    """Return the variable that an expression is made of: `q` of `q.transpose(1, 2)`; nothing of several."""
    while True:
        match node:
            case ast.Name(id=name):
                return name
            case ast.Attribute(value=inner) | ast.Subscript(value=inner):
                node = inner
            case ast.Call(func=ast.Attribute() as inner):
                node = inner
            case _:
                return ""


def attributes(node: ast.AST) -> set[str]:
    """Return the attribute names in some code."""
    return {each.attr for each in syntax.walk(node) if isinstance(each, ast.Attribute)}


def assigned_calls(function: Function) -> Iterator[tuple[str, ast.Call]]:
    """Yield the attributes that a function gives a call's result, with the call."""
    for statement in syntax.statements(function):
        match statement:
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=ast.Call() as call):
                yield name, call


def linears(owner: ModuleClass) -> dict[str, ast.Call]:
    """Return the linear layers that a class makes, by attribute."""
    if owner.init is None:
        return {}
    return {name: call for name, call in assigned_calls(owner.init) if called(call).endswith(("Linear", "Linear4bit"))}


def attribute_values(owner: ast.ClassDef, name: str) -> list[ast.expr]:
    """Return the values that a class gives `self.name`."""
    found = []
    for node in syntax.walk(owner):
        match node:
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=attr)], value=value) if attr == name:
                found.append(value)
    return found


def _branch(outer: ast.AST, inner: ast.AST) -> bool | None:
    """Return in which branch of a condition a node is: True, False, or None where it is in none."""
    if isinstance(outer, ast.If):
        if any(each is inner for each in outer.body):
            return True
        return False if any(each is inner for each in outer.orelse) else None
    if isinstance(outer, ast.IfExp):
        return True if outer.body is inner else False if outer.orelse is inner else None
    return None


def _is_own(call: ast.Call) -> bool:
    """Return whether a call is of a layer or method of the class itself, such as `self.attention(x)`."""
    return (
        isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id == "self"
    )


def _is_of(call: ast.Call, target: ast.expr) -> bool:
    """Return whether a call is of an object that a loop goes over."""
    return root_name(call.func) in {each.id for each in syntax.walk(target) if isinstance(each, ast.Name)}


def _is_step(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in _STEPS:
        return False
    holder = ast.unparse(call.func.value).lower()
    if call.func.attr == "update":
        return ("opt" in holder or "muon" in holder or "adam" in holder) and len(call.args) == 2
    return any(word in holder for word in ("opt", "scaler", "muon", "adam")) and "sched" not in holder
