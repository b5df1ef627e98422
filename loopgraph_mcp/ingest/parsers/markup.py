"""Turns HTML into a tree of elements with lexbor, after what would cost it more than linear time is taken out."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from selectolax.lexbor import LexborHTMLParser, LexborNode

_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/<>]{0,50})([^<>]*)>")
_ALONE = frozenset({  # what holds no element, or ends with the next of its kind
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr",
    "script", "style", "textarea", "title", "iframe", "noembed", "noframes", "xmp",
    "p", "li", "dt", "dd", "tr", "td", "th", "tbody", "thead", "tfoot",
})  # fmt: skip
# An open one is made again in every later paragraph, and none of them says anything of what a text is.
_LOOKS = frozenset({
    "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u",
})  # fmt: skip
_MOST_OPEN = 1_000  # each start of a paragraph looks through all that is open
_DEEPEST = 100
_MOST_CHARS_OF_A_TAG = 100_000  # each attribute is compared with those before it
_MOST_NODES = 500_000


@dataclass(slots=True)
class Element:
    """An element: what it is, its classes and other attributes, what it holds."""

    tag: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    children: "list[Element | str]" = field(default_factory=list)

    @property
    def classes(self) -> frozenset[str]:
        """Its classes."""
        return frozenset(self.attributes.get("class", "").split())

    def every(self, *tags: str) -> "Iterator[Element]":
        """Yield the elements within it that have one of some tags, in order; not what lies within those."""
        for child in self.children:
            if isinstance(child, Element):
                if child.tag in tags:
                    yield child
                else:
                    yield from child.every(*tags)


def parse(text: str) -> Element:
    """Return the root of a page's tree; what nests deeper than 100 elements is put at that depth."""
    root = Element("")
    page = LexborHTMLParser(_bounded(text)).root
    below: list[tuple[Element, Iterator[LexborNode]]] = [(root, iter([] if page is None else [page]))]
    left = _MOST_NODES
    while below and left:
        into, nodes = below[-1]
        node = next(nodes, None)
        if node is None:
            below.pop()
            continue
        left -= 1
        if node.is_text_node:
            into.children.append(node.text_content or "")
        elif node.tag != "-comment":
            if len(below) < _DEEPEST:
                element = Element(node.tag or "", {name: value or "" for name, value in node.attributes.items()})
                into.children.append(element)
                into = element
            below.append((into, node.iter(include_text=True)))
    return root


def _bounded(text: str) -> str:
    """Return a page without the tags that would make its parser slow; an unmatched end ends nothing."""
    opened = Counter[str]()
    depth = 0

    def kept(tag: re.Match[str]) -> str:
        nonlocal depth
        name, rest = tag[2].lower(), tag[3]
        if name in _LOOKS or len(rest) > _MOST_CHARS_OF_A_TAG:
            return ""
        if name in _ALONE:
            return tag[0]
        if rest.endswith("/"):
            return f"<{name}{rest[:-1]}></{name}>"
        step = (opened[name] > 0) * -1 if tag[1] else 1
        opened[name] += step
        depth += step
        return tag[0] if depth < _MOST_OPEN else ""

    return _TAG.sub(kept, text)
