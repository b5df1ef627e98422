"""Tells what a change does to a program's syntax tree, and how it stands to changes that were made before.

A change is known by its turns of knobs (a named value before and after) and by its rewrites (statements taken out
and put in), not by its words: comments, layout and descriptions do not count.
"""

import ast
import difflib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from loopgraph_mcp.code import programs, seeds
from loopgraph_mcp.code.hashes import number, parsed, program_hash, written
from loopgraph_mcp.models import Move
from loopgraph_mcp.ranking.descriptions import content, read_moves
from loopgraph_mcp.ranking.knobs import FAMILIES

_MAX_TURNS_TOLD = 3


@dataclass(frozen=True, slots=True)
class Turn:
    """One knob from one value to another.

    Args:
        knob: Its name, with the scopes it stands in: `MATRIX_LR`, `GPT.forward.softcap`.
        old: Its expression before, as Python writes it.
        new: Its expression after.
    """

    knob: str
    old: str
    new: str

    @property
    def values(self) -> tuple[float, float] | None:
        """Both values where both are numbers, or arithmetic on numbers."""
        before, after = _value(self.old), _value(self.new)
        return None if before is None or after is None else (before, after)

    @property
    def direction(self) -> int:
        """1 where the value grows, -1 where it falls, 0 where that cannot be told."""
        values = self.values
        return 0 if values is None else (values[1] > values[0]) - (values[1] < values[0])

    def __str__(self) -> str:
        """Return the turn in a few words."""
        return f"{self.knob} {self.old} to {self.new}"


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Statements of one scope taken out and others put in, known by their hashes."""

    scope: str
    removed: str
    added: str


@dataclass(frozen=True, slots=True)
class Change:
    """All that a change does: empty where two texts are one program."""

    turns: tuple[Turn, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()

    @property
    def is_seed_alone(self) -> bool:
        """Whether it turns nothing but seeds."""
        only_seeds = all(seeds.sets_seed(turn.knob.rsplit(".", 1)[-1]) for turn in self.turns)
        return bool(self.turns) and not self.rewrites and only_seeds

    @property
    def single(self) -> Turn | None:
        """The one turn that it consists of, if it is no more than that."""
        return self.turns[0] if len(self.turns) == 1 and not self.rewrites else None

    @property
    def reversed(self) -> "Change":
        """The change that takes this one back."""
        return Change(
            tuple(Turn(turn.knob, turn.new, turn.old) for turn in self.turns),
            tuple(sorted((Rewrite(each.scope, each.added, each.removed) for each in self.rewrites), key=_order)),
        )

    def __str__(self) -> str:
        """Return the change in one line."""
        told = [str(turn) for turn in self.turns[:_MAX_TURNS_TOLD]]
        if len(self.turns) > _MAX_TURNS_TOLD:
            told.append(f"{len(self.turns) - _MAX_TURNS_TOLD} more knobs")
        scopes = list(dict.fromkeys(each.scope or "the module" for each in self.rewrites))
        told += [f"other code in {', '.join(scopes[:_MAX_TURNS_TOLD])}"] if scopes else []
        return ", ".join(told) or "nothing"


def change_between(base: str, new: str) -> Change | None:
    """Return what turns one program into another, or None where one of them does not parse."""
    before, after = parsed(base), parsed(new)
    if before is None or after is None or not (before.body or after.body):  # a C header is comments to Python
        return None
    compared = _Compared(base.splitlines(), new.splitlines())
    turns: list[Turn] = []
    rewrites: list[Rewrite] = []
    try:
        for found in compared.blocks("", before.body, after.body):
            if isinstance(found, Turn):
                turns.append(found)
            else:
                rewrites.append(found)
    except RecursionError:  # an expression of thousands of parts
        return None
    if not turns and not rewrites and program_hash(base) != program_hash(new):
        rewrites.append(Rewrite("a docstring", program_hash(base), program_hash(new)))  # it may be the prompt
    return Change(tuple(sorted(turns, key=_turn_order)), tuple(sorted(rewrites, key=_order)))


@dataclass(frozen=True, slots=True)
class _Compared:
    """The lines of two texts: statements of equal lines need no look into their trees."""

    old_lines: Sequence[str]
    new_lines: Sequence[str]

    def blocks(self, scope: str, before: Sequence[ast.stmt], after: Sequence[ast.stmt]) -> Iterator[Turn | Rewrite]:
        """Yield what differs between two blocks: a pair of statements of one name is looked into."""
        old = [_text(each, self.old_lines) for each in before]
        new = [_text(each, self.new_lines) for each in after]
        for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            if kind == "equal":
                continue
            removed, added = list(before[i1:i2]), list(after[j1:j2])
            for one in list(removed):
                name = _name(one)
                other = next((each for each in added if name is not None and _name(each) == name), None)
                inner = None if other is None else list(self._inside(scope, one, other))
                if other is not None and inner is not None and None not in inner:
                    yield from (each for each in inner if each is not None)
                    removed.remove(one)
                    added.remove(other)
            if (gone := _hash(removed)) != (come := _hash(added)):
                yield Rewrite(scope, gone, come)

    def _inside(self, scope: str, one: ast.stmt, other: ast.stmt) -> Iterator[Turn | Rewrite | None]:
        """Yield how two statements of one name differ; None where they are too different to say."""
        if isinstance(one, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            assert isinstance(other, type(one))  # noqa: S101 - they have one name
            path = f"{scope}.{one.name}" if scope else one.name
            yield from _leaves(path, _head(one), _head(other))
            yield from self.blocks(path, one.body, other.body)
        else:
            yield from _leaves(scope, one, other)


def _text(statement: ast.stmt, lines: Sequence[str]) -> str:
    """Return a statement's lines, its decorators with them."""
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(each.lineno for each in decorators)])
    last = statement.end_lineno or statement.lineno
    return "\n".join([lines[first - 1][statement.col_offset :], *lines[first:last]])


def _name(statement: ast.stmt) -> str | None:
    """Return what a statement defines or assigns to, as far as that names it."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return f"def {statement.name}"
        case ast.Assign(targets=[target]) | ast.AnnAssign(target=target) | ast.AugAssign(target=target):
            return f"{type(statement).__name__} {written(target)}"
        case ast.Expr(value=ast.Call(func=function)):
            return f"call {written(function)}"
        case ast.Return():
            return "return"
    return None


def _head(definition: ast.stmt) -> list[object]:
    """Return all of a definition but its body."""
    return [value for field, value in ast.iter_fields(definition) if field not in {"body", "name"}]


def _leaves(path: str, one: object, other: object) -> Iterator[Turn | None]:
    """Yield a turn for each named value in which two trees differ; None where the trees themselves differ."""
    match one, other:
        case (ast.Assign(targets=[target], value=left), ast.Assign(value=right)) | (
            ast.AnnAssign(target=target, value=left),
            ast.AnnAssign(value=right),
        ):
            if isinstance(target, ast.Name | ast.Attribute):
                path = f"{path}.{ast.unparse(target)}" if path else ast.unparse(target)
            yield from _values(path, left, right)
        case ast.keyword(arg=str() as name, value=left), ast.keyword(arg=also, value=right) if name == also:
            yield from _values(f"{path}.{name}" if path else name, left, right)
        case ast.arguments(), ast.arguments():
            yield from _defaults(path, one, other)
        case ast.Call(), ast.Call() if written(one.func) == written(other.func) and len(one.args) == len(other.args):
            inside = f"{path}.{ast.unparse(one.func).rsplit('.', 1)[-1]}".removeprefix(".")
            for left, right in zip(one.args, other.args, strict=True):
                yield from _values(inside, left, right)
            yield from _fields(path, one.keywords, other.keywords)
        case ast.Dict(keys=keys), ast.Dict(keys=also) if written(keys) == written(also):
            for key, left, right in zip(keys, one.values, other.values, strict=True):
                label = key.value if isinstance(key, ast.Constant) else written(key)
                yield from _values(f"{path}.{label!s}", left, right)
        case _:
            yield from _fields(path, one, other)


def _values(path: str, one: ast.expr | None, other: ast.expr | None) -> Iterator[Turn | None]:
    """Yield the turn of one named value, or those of what is named within it, or of its only number."""
    if one is None or other is None or written(one) == written(other):
        return
    inner = list(_fields(path, one, other))
    unnamed = sum(1 for turn in inner if turn is None or turn.knob == path)
    if None in inner or unnamed > 1 or _is_plain(one, other):
        yield Turn(path, ast.unparse(one), ast.unparse(other))
    else:
        yield from inner


def _is_plain(*nodes: ast.expr) -> bool:
    return all(number(node) is not None or isinstance(node, ast.Constant) for node in nodes)


def _defaults(path: str, one: ast.arguments, other: ast.arguments) -> Iterator[Turn | None]:
    old, new = dict(_default_values(one)), dict(_default_values(other))
    if list(old) != list(new):
        yield None
        return
    for name, value in old.items():
        if value is not None and new[name] is not None:
            yield from _values(f"{path}.{name}", value, new[name])
        elif value is not new[name]:
            yield None


def _default_values(arguments: ast.arguments) -> Iterator[tuple[str, ast.expr | None]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    yield from zip((each.arg for each in positional), [*defaults, *arguments.defaults], strict=True)
    yield from zip((each.arg for each in arguments.kwonlyargs), arguments.kw_defaults, strict=True)
    yield from ((f"*{each.arg}", None) for each in (arguments.vararg, arguments.kwarg) if each is not None)


def _fields(path: str, one: object, other: object) -> Iterator[Turn | None]:
    if isinstance(one, ast.Constant) and isinstance(other, ast.Constant):
        if written(one) != written(other):
            yield Turn(path, ast.unparse(one), ast.unparse(other))
    elif isinstance(one, ast.AST) and type(one) is type(other):
        for field in one._fields:
            yield from _leaves(path, getattr(one, field, None), getattr(other, field, None))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for left, right in zip(one, other, strict=True):
            yield from _leaves(path, left, right)
    elif written(one) != written(other):
        yield None


def _hash(statements: Sequence[ast.stmt]) -> str:
    text = "\n".join(written(each) for each in statements)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16] if statements else ""


def _value(expression: str) -> float | None:
    try:
        return number(programs.parse(expression, "eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _order(rewrite: Rewrite) -> tuple[str, str, str]:
    return rewrite.scope, rewrite.removed, rewrite.added


def _turn_order(turn: Turn) -> tuple[str, str, str]:
    return turn.knob, turn.old, turn.new


# --------------------------------------------------------------------------------------- in the words of moves


def named(change: Change) -> Change:
    """Return a change with its knobs under the names that descriptions use as well: MATRIX_LR becomes matrix_lr."""
    turns = (Turn(knob_name(turn.knob), turn.old, turn.new) for turn in change.turns)
    return Change(tuple(sorted(turns, key=_turn_order)), change.rewrites)


def told(description: str) -> Change:
    """Return the change that a description tells of; a move without a value is known by the description's words."""
    turns = []
    for move in read_moves(description):
        new = move.word or (content(description) if move.value is None else f"{move.value:g}")
        turns.append(Turn(move.knob, "" if move.old is None else f"{move.old:g}", new))
    return Change(tuple(sorted(turns, key=_turn_order)))


def moves_of(change: Change, description: str = "") -> tuple[Move, ...]:
    """Return what a change moves; where code is rewritten, what its description says, or else the code itself."""
    found: dict[str, Move] = {}
    loose: list[Move] = [Move("code", word=f"{each.scope} {each.added}") for each in change.rewrites]
    for turn in change.turns:
        knob = knob_name(turn.knob)
        if knob in FAMILIES:
            found.update((move.knob, move) for move in _known_moves(knob, turn))
        elif turn.values is not None:
            found[knob] = Move(knob, turn.direction, turn.values[1], turn.values[0])
        else:
            loose.append(Move(knob, word=turn.new))
    said = [move for move in read_moves(description) if move.knob != "other"] if loose else []
    for move in said or loose:
        found.setdefault(move.knob, move)
    return tuple(found.values()) or (Move("other"),)


def _known_moves(knob: str, turn: Turn) -> tuple[Move, ...]:
    if turn.values is not None and knob != "window":
        return (Move(knob, turn.direction, turn.values[1], turn.values[0]),)
    return read_moves(f"{knob} from {_bare(turn.old)} to {_bare(turn.new)}")


def _bare(expression: str) -> str:
    return expression.strip("'\"")


def knob_name(path: str) -> str:
    """Return the knob that a dotted path names, looking at its end first: `GPT.forward.softcap` is `softcap`."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        known = [move.knob for move in read_moves(parts[end - 1]) if move.knob != "other"]
        if len(known) == 1:
            return known[0]
    return path


# ---------------------------------------------------------------------------------------- what was tried before


class Kinship(StrEnum):
    """How a change stands to an earlier one."""

    SAME = "same"  # the same change, from another parent: a re-test
    SAME_VALUE = "same_value"  # the same knob to the same value, from another one
    BEYOND_FAILED = "beyond_failed"  # the same knob further in a direction that failed
    BETWEEN_FAILED = "between_failed"  # a value between two that failed
    SAME_DIRECTION = "same_direction"  # the same knob in a direction that failed, but not so far
    REVERSES_KEPT = "reverses_kept"  # takes back what was kept
    SEED_ALONE = "seed_alone"  # a replicate, and no method


@dataclass(frozen=True, slots=True)
class Precedent:
    """An earlier change and what came of it.

    Args:
        key: What names it to the caller.
        failed: Whether it lost, crashed or was within noise and not kept.
        kept: Whether it stayed in the program.
    """

    key: str
    change: Change
    failed: bool
    kept: bool


@dataclass(frozen=True, slots=True)
class Kin:
    """One earlier change that has something to say of a new one."""

    kinship: Kinship
    keys: tuple[str, ...]


def kin(change: Change, past: Iterable[Precedent]) -> list[Kin]:
    """Return how earlier changes bear on a new one, the closest first; each earlier change is named once."""
    if change.is_seed_alone:
        return [Kin(Kinship.SEED_ALONE, ())]
    earlier = [each for each in past if each.change != Change()]
    found: dict[Kinship, list[str]] = {}
    told: set[str] = set()

    def tell(kinship: Kinship, keys: Iterable[str]) -> None:
        fresh = [key for key in keys if key not in told]
        told.update(fresh)
        if fresh:
            found.setdefault(kinship, []).extend(fresh)

    tell(Kinship.SAME, (each.key for each in earlier if each.change == change))
    back = change.reversed
    tell(Kinship.REVERSES_KEPT, (each.key for each in earlier if each.kept and each.change == back))
    if (turn := change.single) is not None:
        tries = [(each, other) for each in earlier if (other := each.change.single) and other.knob == turn.knob]
        tell(Kinship.SAME_VALUE, (each.key for each, other in tries if _equal(other.new, turn.new)))
        for kinship, keys in _by_value(turn, [(each.key, other) for each, other in tries if each.failed]):
            tell(kinship, keys)
    return [Kin(kinship, tuple(keys)) for kinship, keys in found.items()]


def _by_value(turn: Turn, failed: Sequence[tuple[str, Turn]]) -> Iterator[tuple[Kinship, list[str]]]:
    """Yield what failed turns of the same knob say of a new value."""
    if turn.values is None:
        return
    at, way = turn.values[1], turn.direction
    tried = [(other.values[1], other.direction, key) for key, other in failed if other.values is not None]
    below, above = [each for each in tried if each[0] < at], [each for each in tried if each[0] > at]
    if below and above:
        yield Kinship.BETWEEN_FAILED, [max(below)[2], min(above)[2]]
    beyond = [key for value, other_way, key in tried if other_way == way and (at - value) * way > 0]
    yield Kinship.BEYOND_FAILED, beyond
    yield (
        Kinship.SAME_DIRECTION,
        [key for value, other_way, key in tried if other_way == way and (value - at) * way > 0],
    )


def _equal(one: str, other: str) -> bool:
    left, right = _value(one), _value(other)
    return one == other if left is None or right is None else left == right
