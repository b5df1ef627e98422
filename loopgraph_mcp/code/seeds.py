"""Finds the seeds in a program: programs that differ only in these are replicates."""

import ast
import re
from collections.abc import Sequence

from loopgraph_mcp.text import compile_later

# `SEED`, `data_seed`, `random_state`, but not `num_seeds` (how many) or `seed_len`.
_NAME = compile_later(r"(?!(?:\w*_)?(?:n|num|use|max|min|total)_)(?:\w*_)?(?:seeds?|random_state)", re.IGNORECASE)
_SEEDING = frozenset(
    {
        "seed",
        "manual_seed",
        "manual_seed_all",
        "set_seed",
        "set_random_seed",
        "seed_all",
        "seed_everything",
        "srand",
        "default_rng",
        "RandomState",
        "SeedSequence",
        "PRNGKey",
        "Random",
    }
)
_HIDDEN = "seed"
# Of other languages: `seed: 42`, `"seed": 42`, `SEED = 42`, `#define SEED 42`, `--seed 42`, `srand(42)`.
_IN_TEXT = compile_later(
    r"""(?ix)
    ( (?<![\w-]) (?!n_|num_|use_) (?:\w{0,40}_)? (?:seed|random_state) ["']? [ \t]* [:=] [ \t]*
    | \#define [ \t]+ (?:\w{0,40}_)? seed [ \t]+
    | --(?:[\w-]{0,40}-)?seed [ \t=]+
    | \b (?: srand(?:om)? | (?:random_|set[._]?|manual_)seed ) [ \t]* \( [ \t]* )
    -?\d+ \b (?![.\w])
    """
)


def hide_in_text(text: str) -> str:
    """Return a text of another language with the values of its seeds left out."""
    return _IN_TEXT.sub(r"\1seed", text)


def hide_in_command(command: Sequence[str]) -> list[str]:
    """Return a command with the values of its seeds left out: `--seed 1`, `--seed=1`, `train.seed=1`, `SEED=1`."""
    found, before = list[str](), ""
    for word in command:
        name, equals, value = word.partition("=")
        if equals and value.isdigit() and is_seed(name.rpartition(".")[2]):
            found.append(f"{name}={_HIDDEN}")
        else:
            found.append(_HIDDEN if word.isdigit() and before.startswith("-") and is_seed(before) else word)
        before = word
    return found


def is_seed(name: str) -> bool:
    """Return whether a variable, argument or option of this name holds a seed."""
    return _NAME.fullmatch(name.strip("-").replace("-", "_")) is not None


def sets_seed(name: str) -> bool:
    """Return whether a variable holds a seed, or a function of this name takes one."""
    return is_seed(name) or name in _SEEDING


def hide_in_tree(tree: ast.AST) -> None:
    """Replace the values of seeds in a syntax tree, so that trees that differ in them alone become equal."""
    for node in ast.walk(tree):
        for name, value in _named_values(node):
            if is_seed(name) and not _is_count(name, value):
                _hide(value)


def _is_count(name: str, value: ast.expr) -> bool:
    """Return whether a value says how many seeds there are: `seeds = 5`, and not `seeds = (1, 2)`."""
    return name.lower().endswith("seeds") and isinstance(value, ast.Constant)


def _named_values(node: ast.AST) -> list[tuple[str, ast.expr]]:
    """Return the expressions that a node gives to a name, or to what takes a seed."""
    match node:
        case ast.Assign(targets=targets, value=value):
            return [pair for target in targets for pair in _assigned(target, value)]
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            return _assigned(target, value)
        case ast.keyword(arg=str() as name, value=value):
            return [(name, value)]
        case ast.Dict(keys=keys, values=values):
            return [(_text(key), value) for key, value in zip(keys, values, strict=True)]
        case ast.arguments():
            return _defaults(node)
        case ast.Call():
            return _arguments(node)
    return []


def _assigned(target: ast.expr, value: ast.expr) -> list[tuple[str, ast.expr]]:
    match target, value:
        case ast.Tuple(elts=targets), ast.Tuple(elts=values) if len(targets) == len(values):
            return [pair for each, part in zip(targets, values, strict=True) for pair in _assigned(each, part)]
        case ((ast.Name(id=name) | ast.Attribute(attr=name)), _):
            return [(name, value)]
        case ast.Subscript(slice=key), _:
            return [(_text(key), value)]
    return []


def _text(key: ast.expr | None) -> str:
    return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else ""


def _defaults(arguments: ast.arguments) -> list[tuple[str, ast.expr]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(reversed(positional), reversed(arguments.defaults), strict=False)]
    pairs += [(arg, each) for arg, each in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if each]
    return [(arg.arg, default) for arg, default in pairs]


def _arguments(call: ast.Call) -> list[tuple[str, ast.expr]]:
    """Return the arguments of a call that are seeds: of what seeds, the first; of an option, its default."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            pass
        case _:
            return []
    if name in _SEEDING or (name == "key" and "random" in ast.unparse(call.func)):  # jax.random.key
        return [("seed", each) for each in call.args[:1]]
    option = _text(call.args[0]) if call.args else ""  # add_argument("--seed", default=42), environ.get("SEED", 42)
    if not is_seed(option):
        return []
    return [(option, each) for each in (*call.args[1:], *(k.value for k in call.keywords if k.arg == "default"))]


def _hide(value: ast.expr) -> None:
    for node in ast.walk(value):
        if isinstance(node, ast.Constant) and (type(node.value) is int or _is_digits(node.value)):
            node.value = _HIDDEN


def _is_digits(value: object) -> bool:
    return isinstance(value, str) and value.isdigit()  # environ.get("SEED", "42")
