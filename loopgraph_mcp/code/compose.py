"""Combines several methods in one edit with one result for any order of names, or refuses and names the pair."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from loopgraph_mcp.code import apply
from loopgraph_mcp.code.apply import NOTHING, Around
from loopgraph_mcp.models import Applied, EditResult, KnobValue, KnobValues, Method, Present, Refused


@dataclass(frozen=True, slots=True)
class Wish:
    """The methods that one edit is to hold, with the knob values of each by its id."""

    methods: Sequence[Method]
    knobs: Mapping[str, KnobValues] = field(default_factory=dict)


def knobs_by_method(methods: Sequence[Method], given: KnobValues) -> dict[str, dict[str, KnobValue]]:
    """Return knob values by method: `gqa.groups` belongs to that method, a plain name to the first method."""
    found: dict[str, dict[str, KnobValue]] = {method.id: {} for method in methods}
    for name, value in given.items():
        owner, _, knob = name.rpartition(".")
        found.setdefault(owner or methods[0].id, {})[knob] = value
    return found


def compose(wish: Wish, source: str, around: Around = NOTHING) -> EditResult:
    """Return a text with all of some methods, made in an order of their own: what one builds on first, then by id.

    Companions are looked for in every method. Each method must still be there in the end.
    """
    if unknown := sorted(set(wish.knobs) - {method.id for method in wish.methods}):
        return Refused(f"a knob of {unknown[0]}", f"the edit holds {', '.join(m.id for m in wish.methods)}")
    if len(wish.methods) == 1:
        only = wish.methods[0]
        return apply.apply_method(only, source, wish.knobs.get(only.id, {}), around)
    ordered = _ordered(wish.methods)
    for one in ordered:
        for other in ordered:
            if one.recipe is not None and other.id in one.recipe.conflicts:
                return Refused(f"{one.id} beside {other.id}", "their pack declares them as conflicting")
    answer = _in_order(ordered, wish, source, around)
    if isinstance(answer, Refused):
        backwards = _in_order(ordered[::-1], wish, source, around)
        return backwards if isinstance(backwards, Applied) else answer
    return answer


def _ordered(methods: Sequence[Method]) -> list[Method]:
    return sorted({method.id: method for method in methods}.values(), key=lambda method: method.id)


def _in_order(ordered: Sequence[Method], wish: Wish, source: str, around: Around) -> EditResult:
    text, changes, made = source, list[str](), list[Method]()
    for method in ordered:
        answer = _made(method, text, wish, around)
        if isinstance(answer, Refused):
            if made and not isinstance(_made(method, source, wish, around), Refused):
                return _named(answer, _culprit(method, made, wish, source, around), method)
            return replace(answer, looked_for=f"for {method.id}: {answer.looked_for}")
        if isinstance(answer, Applied):
            text = answer.text
            changes += [f"{method.id}: {change}" for change in answer.changes]
        for earlier in made:
            now = _made(earlier, text, wish, around)
            if not isinstance(now, Present):
                place = now if isinstance(now, Refused) else Refused("; ".join(now.changes), "")
                return _named(place, earlier, method)
        made.append(method)
    if text == source:
        return Present(f"the file already equals the result of {', '.join(method.id for method in ordered)}")
    return Applied(text, tuple(changes))


def _made(method: Method, text: str, wish: Wish, around: Around) -> EditResult:
    own = {each.name for each in method.recipe.companions} if method.recipe else set()
    asked = frozenset(name for name in around.companions if name == apply.ALL or name in own)
    return apply.apply_method(method, text, wish.knobs.get(method.id, {}), replace(around, companions=asked))


def _culprit(method: Method, made: Sequence[Method], wish: Wish, source: str, around: Around) -> Method:
    """Return the method that alone is enough to keep another one out."""
    for each in made:
        answer = _made(each, source, wish, around)
        if isinstance(answer, Applied) and isinstance(_made(method, answer.text, wish, around), Refused):
            return each
    return made[-1]


def _named(place: Refused, one: Method, other: Method) -> Refused:
    reason = f"{one.id} and {other.id} change the same place: apply one, then the other to its result"
    return Refused(place.looked_for, f"{place.reason}; {reason}" if place.reason else reason, place.nearest)
