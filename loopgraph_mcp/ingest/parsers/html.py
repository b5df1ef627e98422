"""Reads HTML: what LaTeXML makes of papers, and ordinary pages."""

import re

from loopgraph_mcp.ingest.parsers.markup import Element, parse
from loopgraph_mcp.ingest.parsers.model import Block, Document, Kind

_LEFT = frozenset({
    "script", "style", "nav", "aside", "footer", "form", "button", "select", "option", "template", "svg",
    "noscript", "iframe", "head", "input", "canvas", "audio", "video", "object", "dialog",
})  # fmt: skip
_LEFT_CLASSES = frozenset({
    "ltx_page_header", "ltx_page_footer", "ltx_page_navbar", "ltx_TOC", "ltx_authors", "ltx_dates",
    "ltx_role_newpage", "ltx_pagination", "package-alerts", "ltx_document_header", "ltx_tag_bibitem", "headerlink",
    "toc", "sidebar", "mw-editsection",
})  # fmt: skip
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_PARAGRAPHS = frozenset({
    "p", "div", "section", "article", "main", "header", "blockquote", "address", "dd", "dt", "center", "body",
    "html", "td", "th", "tr", "tbody",
})  # fmt: skip
_LISTINGS = frozenset({"pre", "textarea", "xmp"})
_NOTES = frozenset({"ltx_note", "ltx_role_footnote", "footnote"})
_SPACE = re.compile(r"\s+")
_NUMBER = re.compile(r"^(?:(?:section|appendix|chapter)\s+)?(?:\d+|[A-Z])(?:\.\d+)*[.:]?\s+(?=\S)", re.IGNORECASE)


def read(data: bytes) -> Document:
    """Return a page's blocks, formulas as the LaTeX that they bear; navigation and the like are left out."""
    text = _decode(data)
    root = parse(re.sub("[\x00-\x08\x0b\x0e-\x1f\x7f]", " ", text))
    title = next((_inline(each) for each in root.every("title")), "")
    reader = _Reader()
    main = next(iter(root.every("main")), None) or next(iter(root.every("article")), None) or root
    reader.walk(main if len(_inline(main)) > 0.3 * len(_inline(root)) else root)
    reader.flush()
    warnings = []
    if reader.errors:
        warnings.append(f"{reader.errors} places were not converted from LaTeX; the source or the PDF has them")
    if not reader.blocks:
        return Document(title, (), ("the page holds no text; give the source or the PDF", *warnings), "broken")
    return Document(reader.title or title, tuple(reader.blocks), tuple(warnings))


def _decode(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    declared = re.search(rb"charset\s{0,9}=\s{0,9}[\"']?([\w-]{1,30})", data[:4096], re.IGNORECASE)
    for encoding in ("utf-8-sig", declared[1].decode("ascii", "replace") if declared else "cp1252"):
        try:
            return data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    return data.decode("cp1252", "replace")


class _Reader:
    """Walks a tree and writes its blocks."""

    def __init__(self) -> None:
        self.title = ""
        self.blocks: list[Block] = []
        self.sections: list[tuple[int, str]] = []
        self.text: list[str] = []
        self.notes: list[str] = []
        self.errors = 0

    def walk(self, element: Element) -> None:
        """Read an element's children."""
        for child in element.children:
            if isinstance(child, str):
                self.text.append(child)
            else:
                self.element(child)

    def element(self, element: Element) -> None:  # noqa: C901, PLR0912 - one case an element
        """Read one element."""
        tag, classes = element.tag, element.classes
        if tag in _LEFT or classes & _LEFT_CLASSES or "hidden" in element.attributes:
            return
        if "ltx_ERROR" in classes:
            self.errors += 1
        elif tag in _HEADINGS:
            self.heading(element)
        elif "ltx_equation" in classes or "ltx_equationgroup" in classes or "ltx_eqn_table" in classes:
            self.add("equation", " \\\\ ".join(filter(None, map(_formula, element.every("math")))) or _inline(element))
        elif tag == "math":
            self.math(element)
        elif classes & _NOTES:
            self.notes.append(re.sub(r"^\d+\s*", "", _inline(element)))
        elif tag == "figure" and (classes & {"ltx_float_algorithm", "ltx_algorithm"}):
            self.algorithm(element)
        elif tag == "figcaption" or "ltx_caption" in classes or tag == "caption":
            self.add("caption", _inline(element))
        elif tag == "table" or "ltx_tabular" in classes:
            self.table(element)
        elif tag in _LISTINGS or "ltx_listing" in classes:
            self.add("code", _lines(element))
        elif tag in {"ul", "ol"}:
            self.items(element)
        elif tag == "br":
            self.text.append("\n")
        elif tag in _PARAGRAPHS or tag in {"figure", "li"}:
            self.flush()
            outer = list(self.sections)
            self.walk(element)
            self.flush()
            if tag in {"section", "article"} or "ltx_abstract" in classes:
                self.sections = outer
        else:
            self.walk(element)

    def heading(self, element: Element) -> None:
        """Begin a section; the first heading of all is the title."""
        self.flush()
        level, text = _HEADINGS[element.tag], _NUMBER.sub("", _inline(element, left=frozenset({"ltx_tag"})))
        if not text:
            return
        if "ltx_title_document" in element.classes or (level == 1 and not self.title):
            self.title = text
            return
        level = 1 if "ltx_title_abstract" in element.classes else level
        self.sections = [*(each for each in self.sections if each[0] < level), (level, text)]
        self.add("heading", text)

    def math(self, element: Element) -> None:
        """Read a formula: in its line, or as a block of its own."""
        if element.attributes.get("display") == "block":
            self.add("equation", _formula(element))
        else:
            self.text.append(_in_line(element))

    def algorithm(self, element: Element) -> None:
        """Read an algorithm box with its caption."""
        captions = list(element.every("figcaption"))
        lines = [_lines(each) for each in element.children if isinstance(each, Element) and each not in captions]
        self.add("algorithm", "\n".join([*map(_inline, captions), *lines]))

    def table(self, element: Element) -> None:
        """Read a table's rows; one that only lays out a page is read as text."""
        if any(True for _ in element.every("table", "ul", "pre", "p", "h1", "h2", "h3")):
            self.flush()
            self.walk(element)
            self.flush()
            return
        for caption in element.every("caption"):
            self.add("caption", _inline(caption))
        rows = [
            [_inline(cell) for cell in row.every("td", "th")] or [_inline(row)]
            for row in [*element.every("tr")] or _by_class(element, "ltx_tr")
        ]
        self.add("table", "\n".join(" | ".join(row) for row in rows if any(row)))

    def items(self, element: Element) -> None:
        """Read a list; references one by one."""
        if "ltx_biblist" in element.classes:
            for item in element.every("li"):
                self.add("list", f"[{item.attributes.get('id', '')}] {_inline(item, left=frozenset({'ltx_tag'}))}")
        elif any(True for _ in element.every("pre", "table", "figure")):
            self.flush()
            self.walk(element)
            self.flush()
        else:
            self.add("list", "\n".join(_item_lines(element, 0)))

    def flush(self) -> None:
        """End a paragraph, and put its footnotes behind it."""
        text, self.text = _squeezed("".join(self.text)), []
        if text:
            self.block("text", text)
        notes, self.notes = self.notes, []
        for note in notes:
            self.block("text", note)

    def add(self, kind: Kind, text: str) -> None:
        """Add a block after the paragraph before it, unless it is empty."""
        self.flush()
        self.block(kind, text)

    def block(self, kind: Kind, text: str) -> None:
        """Add a block, unless it is empty."""
        if text.strip():
            place = " > ".join(name for _, name in self.sections)
            self.blocks.append(Block(kind, text.strip("\n"), place))


def _item_lines(element: Element, depth: int) -> list[str]:
    lines = list[str]()
    for item in (child for child in element.children if isinstance(child, Element) and child.tag == "li"):
        inner = list(item.every("ul", "ol"))
        own = _inline(item, left=frozenset({"ltx_tag"}), without=inner)
        lines += [f"{'  ' * depth}- {own}"] if own else []
        for each in inner:
            lines += _item_lines(each, depth + 1)
    return lines


def _by_class(element: Element, name: str) -> list[Element]:
    return [each for each in element.every("span", "div") if name in each.classes]


def _formula(math: Element) -> str:
    """Return a formula's LaTeX where the page bears it, and its letters where it does not."""
    if latex := math.attributes.get("alttext"):
        return _squeezed(latex)
    for annotation in math.every("annotation"):
        if annotation.attributes.get("encoding") == "application/x-tex":
            return _inline(annotation)
    return _squeezed("".join(each for child in math.children for each in _texts(child, frozenset(), ())))


def _in_line(math: Element) -> str:
    formula = _formula(math)
    return f"${formula}$" if formula else ""


def _inline(element: Element, *, left: frozenset[str] = frozenset(), without: "list[Element] | tuple[()]" = ()) -> str:
    """Return an element's text as one line."""
    return _squeezed("".join(each for child in element.children for each in _texts(child, left, without)))


def _texts(node: Element | str, left: frozenset[str], without: "list[Element] | tuple[()]") -> list[str]:
    if isinstance(node, str):
        return [node]
    if node.tag in _LEFT or node.classes & left or any(node is each for each in without):
        return []
    if node.tag == "math":
        return (
            [_in_line(node)]
            if node.attributes.get("alttext") or any(True for _ in node.every("annotation"))
            else [each for child in node.children for each in _texts(child, left, without)]
        )
    inner = [each for child in node.children for each in _texts(child, left, without)]
    return [" ", *inner, " "] if node.tag in _PARAGRAPHS or node.tag in {"br", "li"} else inner


def _lines(element: Element) -> str:
    """Return an element's text with its lines."""
    if element.tag in _LISTINGS:
        return "".join(each for child in element.children for each in _raw(child))
    found = _by_class(element, "ltx_listingline")
    lines = [_inline(each, left=frozenset({"ltx_tag_listingline"})) for each in found] or [_inline(element)]
    return "\n".join(line for line in lines if line)


def _raw(node: Element | str) -> list[str]:
    if isinstance(node, str):
        return [node]
    return ["\n"] if node.tag == "br" else [each for child in node.children for each in _raw(child)]


def _squeezed(text: str) -> str:
    return _SPACE.sub(" ", text).strip()
