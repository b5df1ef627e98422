"""What came of what: the programs of a search as a tree, and the chain that led to one experiment."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from loopgraph_mcp.api.answers import TraceLink
from loopgraph_mcp.api.closeup import Closeup
from loopgraph_mcp.api.overview import Line, Overview

_MOST_SHOWN = 60  # of the changes of one program that were not kept
# The chain from left to right; what a trace finds beside it is not on the way.
_STAGES = ("pack", "paper", "document", "passage", "method", "retrieval", "recipe", "edit")
_BEHIND = ("outcome", "decision", "recipe")


@dataclass(slots=True)
class Program:
    """One program of a search with what was made of it.

    Args:
        runs: Its runs, oldest first.
        on_the_way: Whether the best program came of it, or it is the best.
        tried: Last runs of the changes that were not kept, oldest first.
        left: How many more of these there are.
        branches: Programs that were kept and that the best did not come of, each with what came of it.
    """

    runs: list[Line]
    on_the_way: bool = False
    tried: list[Line] = field(default_factory=list)
    left: int = 0
    branches: list[list["Program"]] = field(default_factory=list)

    @property
    def last(self) -> Line:
        """Its last run."""
        return self.runs[-1]


def tree(overview: Overview) -> list[list[Program]]:
    """Return the programs of a setting as trunks: each a list of programs that came of one another, with branches."""
    runs = defaultdict[str, list[Line]](list)
    for line in overview.here:
        runs[line.group].append(line)
    parents = {each: same[-1].parent for each, same in runs.items()}
    children = defaultdict[str | None, list[str]](list)
    for each, parent in parents.items():
        children[parent if parent in runs and parent != each else None].append(each)
    best = None if overview.best is None else overview.best.experiment_id
    way = set[str]()
    group: str | None = next((line.group for line in overview.here if line.experiment_id == best), None)
    while group is not None and group in runs and group not in way:
        way.add(group)
        group = parents[group]
    return [_trunk(root, runs, children, way) for root in children[None]]


def _trunk(
    root: str, runs: dict[str, list[Line]], children: dict[str | None, list[str]], way: set[str]
) -> list[Program]:
    """Return a program and, as long as one came of another, the next: that on the way to the best, or the last kept."""
    trunk, seen = list[Program](), set[str]()
    group: str | None = root
    while group is not None and group not in seen:
        seen.add(group)
        program = Program(runs[group], group in way)
        trunk.append(program)
        grown = [each for each in children.get(group, []) if runs[each][-1].stays or children.get(each)]
        rest = [runs[each][-1] for each in children.get(group, []) if each not in grown]
        program.tried, program.left = rest[:_MOST_SHOWN], max(0, len(rest) - _MOST_SHOWN)
        following = next((each for each in grown if each in way), None)
        if following is None and len(grown) == 1:
            following = grown[0]
        program.branches = [_trunk(each, runs, children, way) for each in grown if each != following]
        group = following
    return trunk


@dataclass(frozen=True, slots=True)
class Link:
    """One stage of the chain with its rows."""

    stage: str
    rows: tuple[TraceLink, ...]


def chain(found: Closeup) -> list[Link]:
    """Return what led to an experiment and what came of it, stage by stage, as the chain goes."""
    return [*_stages(found.before, _STAGES), *_stages(found.after, _BEHIND)]


def _stages(links: Sequence[TraceLink], stages: Sequence[str]) -> list[Link]:
    rows = defaultdict[str, dict[str, TraceLink]](dict)
    for link in links:
        rows[link.stage].setdefault(link.id or link.words, link)
    return [Link(stage, tuple(rows[stage].values())) for stage in stages if rows[stage]]
