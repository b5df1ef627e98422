"""Turns HTML into a tree of elements, in time linear in its length, whatever it is."""

import html
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_NAME = re.compile(r"[a-zA-Z][^\s/>]{0,50}")
_ATTRIBUTE = re.compile(r"""([^\s=>"'/]{1,100})(?:\s{0,9}=\s{0,9}(?:"([^"]*)"|'([^']*)'|([^\s"'>]+)))?""")
_VOID = frozenset({
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr",
})  # fmt: skip
_RAW = frozenset({"script", "style", "textarea", "title", "iframe", "noembed", "noframes", "xmp"})
_ENDS = {  # an element that ends another of these that is still open
    "p": {"p"}, "li": {"li"}, "dt": {"dt", "dd"}, "dd": {"dt", "dd"}, "tr": {"tr", "td", "th"}, "td": {"td", "th"},
    "th": {"td", "th"}, "option": {"option"}, "tbody": {"thead", "tbody"}, "tfoot": {"tbody"},
}  # fmt: skip
_ENDS_P = frozenset({
    "address", "article", "aside", "blockquote", "div", "dl", "fieldset", "figure", "footer", "form", "h1", "h2",
    "h3", "h4", "h5", "h6", "header", "hr", "main", "nav", "ol", "pre", "section", "table", "ul",
})  # fmt: skip
_SCOPES = frozenset({"table", "ul", "ol", "dl", "figure", "section", "article", "div"})
_DEEPEST = 100
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
    stack = [root]
    for tag, attributes, content in itertools.islice(_tokens(text), _MOST_NODES):
        if not tag:
            stack[-1].children.append(content)
        elif tag.startswith("/"):
            _close(stack, tag[1:])
        else:
            _end_implied(stack, tag)
            element = Element(tag, attributes, [content] if content else [])
            stack[-1].children.append(element)
            if tag not in _VOID and tag not in _RAW and not attributes.get("/") and len(stack) < _DEEPEST:
                stack.append(element)
    return root


def _close(stack: list[Element], tag: str) -> None:
    for depth in range(len(stack) - 1, 0, -1):
        if stack[depth].tag == tag:
            del stack[depth:]
            return


def _end_implied(stack: list[Element], tag: str) -> None:
    """End the elements whose end is implied by the start of another."""
    ended = _ENDS.get(tag, frozenset({"p"}) if tag in _ENDS_P else frozenset())
    for depth in range(len(stack) - 1, 0, -1):
        if stack[depth].tag in ended:
            del stack[depth:]
            return
        if stack[depth].tag in _SCOPES and stack[depth].tag != tag:
            return


def _tokens(text: str) -> Iterator[tuple[str, Mapping[str, str], str]]:  # noqa: C901, PLR0912 - one case a sign
    """Yield tags with their attributes, ends as `/tag`, and texts with an empty tag."""
    at, end = 0, len(text)
    quotes_close = True  # until one does not: then `>` ends a tag wherever it stands, so that no text is read twice
    missing = set[str]()  # what was looked for up to the end in vain
    while at < end:
        start = text.find("<", at)
        if start < 0:
            start = end
        if start > at:
            yield "", {}, html.unescape(text[at:start])
        if start == end:
            return
        after = text[start + 1 : start + 2]
        if after in {"!", "?"}:
            close = "-->" if text.startswith("<!--", start) else "]]>" if text.startswith("<![CDATA[", start) else ">"
            found = -1 if close in missing else text.find(close, start + 2)
            if found < 0:
                missing.add(close)
                at = start + 2
            else:
                if close == "]]>":
                    yield "", {}, text[start + 9 : found]
                at = found + len(close)
            continue
        name = _NAME.match(text, start + (2 if after == "/" else 1))
        if name is None:
            yield "", {}, "<"
            at = start + 1
            continue
        stop = _end_of_tag(text, name.end()) if quotes_close else -1
        if stop < 0:
            quotes_close = False
            stop = text.find(">", name.end()) if ">" not in missing else -1
            if stop < 0:
                missing.add(">")
                yield "", {}, text[start : start + 1]
                at = start + 1
                continue
        tag, at = name.group().lower(), stop + 1
        if after == "/":
            yield f"/{tag}", {}, ""
            continue
        attributes = _attributes(text[name.end() : stop])
        content = ""
        if tag in _RAW and not attributes.get("/") and tag not in missing:
            closing = re.compile(rf"</{re.escape(tag)}\b", re.IGNORECASE).search(text, at)
            if closing is None:
                missing.add(tag)
            else:
                content, at = html.unescape(text[at : closing.start()]), closing.start()
        yield tag, attributes, content


def _end_of_tag(text: str, at: int) -> int:
    """Return where a tag's `>` stands, one between quotes not counted, or -1."""
    while True:
        found = _QUOTE_OR_END.search(text, at)
        if found is None:
            return -1
        if found.group() == ">":
            return found.start()
        at = text.find(found.group(), found.end()) + 1
        if at == 0:
            return -1


def _attributes(text: str) -> dict[str, str]:
    found = {"/": "/"} if text.endswith("/") else {}
    for match in _ATTRIBUTE.finditer(text[:200_000]):
        value = next((each for each in match.groups()[1:] if each is not None), "")
        found.setdefault(match[1].lower(), html.unescape(value))
    return found


_QUOTE_OR_END = re.compile(r"[\"'>]")
