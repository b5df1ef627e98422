"""A program with one of its constants changed: what can be changed without writing code."""

from loopgraph_mcp.edits import apply_method
from loopgraph_mcp.models import EditResult, Method, Recipe, SetConst


def set_constant(source: str, name: str, value: str) -> EditResult:
    """Return a program with one constant changed to an expression, or why that cannot be."""
    recipe = Recipe((SetConst(name, value),))
    return apply_method(Method("set-value", name, "other", "", "", recipe=recipe), source, {})
