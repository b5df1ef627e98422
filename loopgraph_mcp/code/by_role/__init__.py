"""Edits whose place is found by its role in a program: what attention, the loss or an optimizer's step is called."""

from loopgraph_mcp.code import roles
from loopgraph_mcp.code.by_role import attention, layers, outputs, settings, training  # noqa: F401 - they name their edits
from loopgraph_mcp.code.by_role.draft import EDITS, Answer, Draft, Held, Misfit, Values
from loopgraph_mcp.code.by_role.places import SETS, constant, constant_names
from loopgraph_mcp.code.syntax import Source

# The edits that change numbers alone
VALUES = frozenset([*SETS, "grouped_queries", "smaller_batch", "short_window", "logit_softcap"])
__all__ = ["VALUES", "Answer", "Draft", "Held", "Misfit", "Values", "constant", "constant_names", "make", "names"]


def names() -> frozenset[str]:
    """Return the names of all edits."""
    return frozenset(EDITS)


def make(name: str, source: Source, values: Values) -> Answer:
    """Return what an edit changes in a program, or that the program has it already.

    Raises:
        Misfit: It does not fit.
        KeyError: There is no such edit, or a value of it is missing.
    """
    if not source.tree.body:
        raise Misfit("a program", "the file is empty")
    return EDITS[name](source, roles.of(source), values)
