"""Parses other people's Python up to a size, because Python's parser blocks every other thread."""

import ast
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Literal, TypeVar, overload

from loopgraph_mcp.text import compile_later

MAX_CHARS = 2**18
MAX_TOKENS = 50_000  # some 5,000 lines: Python 3.11 parses them in 0.1 s, and their tree has 40 MB
MAX_BRACES = 8_000  # an f-string's fields take a time that grows with their square: these take 0.05 s
_TOKEN = compile_later(r"\w+|\n\s*|[^\w\s]")
_T = TypeVar("_T")


class TooLargeError(ValueError):
    """A text that is larger than the programs that people edit."""


def check_size(text: str) -> None:
    """Refuse a text that would take Python's parser long.

    Raises:
        TooLargeError: It is one; the message says how large it is, and what to do.
    """
    if len(text) > MAX_CHARS:
        raise TooLargeError(_too_large(len(text), MAX_CHARS, "characters"))
    if (braces := text.count("{")) > MAX_BRACES:
        raise TooLargeError(_too_large(braces, MAX_BRACES, "opening braces"))
    tokens = 0
    for tokens, _ in enumerate(_TOKEN.finditer(text), start=1):
        if tokens > MAX_TOKENS:
            raise TooLargeError(_too_large(sum(1 for _ in _TOKEN.finditer(text)), MAX_TOKENS, "words and signs"))


def _too_large(count: int, most: int, what: str) -> str:
    return f"it has {count:,} {what}, over the limit of {most:,}; move its data or helpers to other files"


@overload
def parse(text: str) -> ast.Module: ...
@overload
def parse(text: str, mode: Literal["eval"]) -> ast.Expression: ...
def parse(text: str, mode: Literal["exec", "eval"] = "exec") -> ast.Module | ast.Expression:
    """Return the syntax tree of a text.

    Raises:
        TooLargeError: It is too large to be parsed; this is a ValueError.
        SyntaxError, ValueError, RecursionError, MemoryError: Python cannot parse it.
    """
    check_size(text)
    tree = ast.parse(text, mode=mode)
    assert isinstance(tree, ast.Module | ast.Expression)  # noqa: S101 - what the two modes make
    return tree


def remembered(most_chars: int) -> Callable[[Callable[..., _T]], Callable[..., _T]]:
    """Keep the newest results of a function of texts, for as many as have so many characters together.

    A cache that counts its entries keeps hundreds of megabytes once somebody sends long ones.
    """

    def decorate(function: Callable[..., _T]) -> Callable[..., _T]:
        kept: OrderedDict[tuple[object, ...], _T] = OrderedDict()
        lock, size = threading.Lock(), [0]

        @wraps(function)
        def call(*arguments: object) -> _T:
            with lock:
                if arguments in kept:
                    kept.move_to_end(arguments)
                    return kept[arguments]
            made = function(*arguments)
            with lock:
                if arguments not in kept:
                    kept[arguments] = made
                    size[0] += _chars(arguments)
                while size[0] > most_chars and kept:
                    gone, _ = kept.popitem(last=False)
                    size[0] -= _chars(gone)
            return made

        return call

    return decorate


def _chars(arguments: tuple[object, ...]) -> int:
    return sum(len(each) for each in arguments if isinstance(each, str)) + 100
