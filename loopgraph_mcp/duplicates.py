"""Tells whether two texts are the same program."""

import ast
import hashlib


def program_hash(source: str) -> str:
    """Return the sha256 of a text's syntax tree: comments, layout and docstrings do not count.

    A text that does not parse is known by its words.
    """
    try:
        tree = ast.parse(source.removeprefix("\ufeff"))
        _drop_docstrings(tree)
        content = ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        content = " ".join(source.split())
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _drop_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())), *rest]:
                    node.body = rest
