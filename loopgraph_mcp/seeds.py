"""Finds the constants of a program that are seeds: programs that differ in these alone are replicates of each other."""

import ast
import re

# `SEED`, `data_seed`, `random_state`, but not `num_seeds` (how many) or `seed_len`.
_NAME = re.compile(r"(?!n_|num_|use_)(?:\w*_)?(?:seed|seeds|random_state|rng_seed)", re.IGNORECASE)
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
_IN_TEXT = re.compile(
    r"""(?ix)
    ( (?<![\w-]) (?!n_|num_|use_) (?:\w{0,40}_)? (?:seed|random_state) ["']? [ \t]* [:=] [ \t]*
    | \#define [ \t]+ (?:\w{0,40}_)? seed [ \t]+
    | --(?:[\w-]{0,40}-)?seed [ \t=]+
    | \b s?rand (?:om)? (?:_seed)? \( )
    -?\d+ \b (?![.\w])
    """
)


def hide_in_text(text: str) -> str:
    """Return a text of another language with the values of its seeds left out."""
    return _IN_TEXT.sub(r"\1seed", text)


def is_seed(name: str) -> bool:
    """Return whether a variable, argument or option of this name holds a seed."""
    return _NAME.fullmatch(name.strip("-").replace("-", "_")) is not None


def sets_seed(name: str) -> bool:
    """Return whether a variable holds a seed, or a function of this name takes one."""
    return is_seed(name) or name in _SEEDING


def hide_in_tree(tree: ast.AST) -> None:
    """Replace the values of seeds in a syntax tree, so that trees that differ in them alone become equal."""
    for node in ast.walk(tree):
        for value in _seed_values(node):
            _hide(value)


def _seed_values(node: ast.AST) -> list[ast.expr]:
    """Return the expressions that a node gives to a seed."""
    match node:
        case ast.Assign(targets=targets, value=value) if any(map(_names_seed, targets)):
            return [value]
        case ast.AnnAssign(target=target, value=ast.expr() as value) if _names_seed(target):
            return [value]
        case ast.keyword(arg=str() as name, value=value) if is_seed(name):
            return [value]
        case ast.Dict(keys=keys, values=values):
            return [value for key, value in zip(keys, values, strict=True) if _says_seed(key)]
        case ast.arguments():
            return _defaults(node)
        case ast.Call():
            return _arguments(node)
    return []


def _names_seed(target: ast.expr) -> bool:
    match target:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return is_seed(name)
        case ast.Subscript(slice=key):
            return _says_seed(key)
    return False


def _says_seed(key: ast.expr | None) -> bool:
    return isinstance(key, ast.Constant) and isinstance(key.value, str) and is_seed(key.value)


def _defaults(arguments: ast.arguments) -> list[ast.expr]:
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(reversed(positional), reversed(arguments.defaults), strict=False)]
    pairs += [(arg, each) for arg, each in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if each]
    return [default for arg, default in pairs if is_seed(arg.arg)]


def _arguments(call: ast.Call) -> list[ast.expr]:
    """Return the arguments of a call that are seeds: of what seeds, the first; of an option, its default."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            pass
        case _:
            return []
    if name in _SEEDING or (name == "key" and "random" in ast.unparse(call.func)):  # jax.random.key
        return call.args[:1]
    if call.args and _says_seed(call.args[0]):  # add_argument("--seed", default=42), environ.get("SEED", 42)
        return [*call.args[1:], *(each.value for each in call.keywords if each.arg == "default")]
    return []


def _hide(value: ast.expr) -> None:
    for node in ast.walk(value):
        if isinstance(node, ast.Constant) and (type(node.value) is int or _is_digits(node.value)):
            node.value = _HIDDEN


def _is_digits(value: object) -> bool:
    return isinstance(value, str) and value.isdigit()  # environ.get("SEED", "42")
