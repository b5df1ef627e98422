"""Reads LaTeX: the main file of a source tree, with what it includes, as blocks; equations stay LaTeX."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath

from loopgraph_mcp.ingest.parsers import references
from loopgraph_mcp.ingest.parsers.floats import algorithm, table
from loopgraph_mcp.ingest.parsers.model import Block, Document, Kind
from loopgraph_mcp.ingest.parsers.symbols import SYMBOLS, accented, is_accent, ligatures
from loopgraph_mcp.ingest.parsers.tex import Scope, Tokens, budget

_LEVELS = {r"\part": 0, r"\chapter": 0, r"\section": 1, r"\subsection": 2, r"\subsubsection": 3}
_RUN_IN = frozenset({r"\paragraph", r"\subparagraph"})
_EQUATIONS = frozenset({
    "equation", "align", "gather", "multline", "eqnarray", "displaymath", "flalign", "alignat", "dmath", "dgroup",
    "math", "empheq", "IEEEeqnarray",
})  # fmt: skip
_TABLES = frozenset({
    "tabular", "tabularx", "tabulary", "tabu", "longtable", "tabular*", "tabularx*", "longtabu", "xltabular",
    "NiceTabular",
})  # fmt: skip
_LISTS = frozenset({
    "itemize", "enumerate", "description", "compactitem", "compactenum", "inparaenum", "asparaenum", "enumerate*",
})  # fmt: skip
_LISTINGS = frozenset({"verbatim", "Verbatim", "lstlisting", "minted", "alltt", "python", "pythoncode"})
_SKIPPED = frozenset({"comment", "tikzpicture", "pgfpicture", "picture", "filecontents", "CCSXML", "overpic", "forest"})
_ALGORITHMS = frozenset({"algorithm", "algorithm2e", "algorithmic", "algorithmicx", "pseudocode"})
_ENVIRONMENT_ARGUMENTS = {
    "minipage": "ooom", "multicols": "m", "wrapfigure": "omom", "wraptable": "omom", "adjustbox": "m", "spacing": "m",
    "subfigure": "oom", "subtable": "oom", "thebibliography": "m", "figure": "o", "table": "o", "adjustwidth": "mm",
    "tcolorbox": "o", "mdframed": "o", "list": "mm", "abstract": "o", "turn": "m", "scope": "o",
}  # fmt: skip
# Commands whose arguments are no text, by what is to be passed over; what then remains is read on.
_DROPPED = {
    name: signature
    for signature, names in {
        "": r"\centering \maketitle \FloatBarrier \phantomsection \twocolumngrid \morecmidrules",
        "m": r"\label \bibliographystyle \pagestyle \thispagestyle \vskip \hskip \email \hypersetup \phantom \index "
        r"\date \hphantom \vphantom \keywords \pagenumbering \colorbox \cline \hyperlink \hypertarget "
        r"\scalebox \lstset \sisetup \tikzset \pgfplotsset \usetikzlibrary \graphicspath \setlist \nocite "
        r"\stepcounter \refstepcounter \bibinfo \bibfield \href \enlargethispage \icmlkeywords \ccsdesc "
        r"\titlerunning \authorrunning \todo \addbibresource \newcounter \newlength \theoremstyle \thanks "
        r"\institute \orcid \inst",
        "o": r"\hyperref \linebreak \pagebreak \nolinebreak \nopagebreak \toprule \midrule \bottomrule "
        r"\allowdisplaybreaks",
        "om": r"\includegraphics \RequirePackage \documentclass \color \author \affiliation \affil \address "
        r"\captionsetup \textcolor \rowcolor \cellcolor \columncolor \rotatebox \PassOptionsToPackage "
        r"\lstinputlisting \includesvg \includepdf \setmainfont \vspace \hspace \tag",
        "mm": r"\setlength \addtolength \setcounter \addtocounter \resizebox \fontsize \multicolumn \markboth "
        r"\crefname \crefformat \Crefname \numberwithin \counterwithin \icmlauthor \icmlaffiliation "
        r"\icmlcorrespondingauthor",
        "mmm": r"\definecolor \specialrule \addcontentsline",
        "moo": r"\raisebox",
        "oo": r"\makebox \framebox",
        "ooom": r"\parbox",
        "omm": r"\rule \pdfbookmark",
        "omom": r"\newcolumntype",
        "omomo": r"\multirow",
        "opm": r"\cmidrule",
    }.items()
    for name in names.split()
}
_REFERENCES = frozenset({
    r"\ref", r"\cref", r"\Cref", r"\autoref", r"\pageref", r"\nameref", r"\vref", r"\Vref", r"\subref",
    r"\labelcref",
})  # fmt: skip
_CITE = re.compile(r"\\(?:[a-zA-Z]*[cC]ite(?:[a-z]*|[A-Z]\w*)|shortcites)$")
_FOOTNOTES = frozenset({r"\footnote", r"\footnotetext", r"\sidenote", r"\marginpar", r"\marginnote"})
_TITLES = frozenset({r"\title", r"\icmltitle", r"\Title", r"\papertitle"})
_BIBLIOGRAPHIES = frozenset({r"\bibliography", r"\printbibliography", r"\putbib", r"\bibliographyunit"})
_KEPT = frozenset().union(
    _LEVELS, _RUN_IN, _DROPPED, _REFERENCES, _FOOTNOTES, _TITLES, _BIBLIOGRAPHIES,
    {r"\cite", r"\citep", r"\citet", r"\begin", r"\end", r"\item", r"\caption", r"\bibitem", r"\verb", r"\[", r"\]"},
    {r"\(", r"\)", r"\url", r"\\", r"\par"},
)  # fmt: skip
_DEEPEST = 12
_MOST_ENVIRONMENTS = 100  # one in the other
_BIBLIOGRAPHY, _MOST_BIBLIOGRAPHIES = r"\bibliography", 5
_SPACE = re.compile(r"[ \t\n]+")
_INDENT = "\x02"
_LINE = "\x01"  # a line's end that stays; no text has it, since control characters are taken out of the source


def read(files: Mapping[str, bytes]) -> Document:
    """Return the blocks of a source tree's main document.

    Args:
        files: Sources by their path, bibliographies, styles and inclusions among them.
    """
    sources = {_normal(path): data for path, data in files.items()}
    main, others = main_file(sources)
    if main is None:
        return Document("", (), ("no TeX file holds a document; give the HTML or the PDF",), "broken")
    reader = _Reader(sources, main)
    reader.run()
    warnings = [f"{each} is another document of this source, and was not read" for each in others]
    document = reader.document(warnings)
    if not document.blocks:
        return Document(document.title, (), ("its LaTeX holds no text; give the HTML or the PDF",), "broken")
    return document


def decode(data: bytes) -> str:
    """Return a source as text with plain newlines and no control characters."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", "replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252" if re.search(rb"cp1252|ansinew", data[:5_000]) else "latin-1", "replace")
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", "\n\n").replace("\xa0", "~")
    return re.sub("[\x00-\x08\x0b\x0e-\x1f\x7f]", "", text)


def main_file(files: Mapping[str, bytes]) -> tuple[str | None, list[str]]:
    """Return the file that TeX is to be run on, and the other documents of the tree."""
    texts = {
        path: decode(data)
        for path, data in files.items()
        if PurePosixPath(path).suffix.lower() in {".tex", ".ltx", ".latex", ".txt", ""} or len(files) == 1
    }
    named = re.findall(
        r'^(\S+) +toplevelfile|"filename" *: *"([^"]+)"[^}]*"usage" *: *"toplevel"', _readme(files), re.MULTILINE
    )
    heads = {
        path for path, text in texts.items() if re.search(r"^[^%\n]*\\document(?:class|style)", text, re.MULTILINE)
    }
    parts = {
        _normal(name)
        for text in texts.values()
        for name in re.findall(r"\\(?:input|include|subfile)\s*\{([^}]*)\}", text)
    }

    def likely(path: str) -> tuple[object, ...]:
        text, stem = texts[path], str(PurePosixPath(path).with_suffix(""))
        return (
            path in {one or other for one, other in named},
            path in heads,
            path not in parts and stem not in parts,
            not re.search(r"\\documentclass(?:\[[^]]*\])?\{(?:subfiles|standalone)", text),
            r"\begin{document}" in text,
            r"\begin{abstract}" in text or r"\abstract" in text or r"\title" in text,
            f"{stem}.bbl" in files,
            not re.search(r"supp|append|rebuttal|response|cover|slides|poster", path, re.IGNORECASE),
            bool(re.fullmatch(r"(?:main|paper|ms|article|root|arxiv)", PurePosixPath(path).stem.lower())),
            -path.count("/"),
            len(text),
            path,
        )

    ranked = sorted(texts, key=likely, reverse=True)
    others = [path for path in ranked[1:] if path in heads and path not in parts and r"\begin{document}" in texts[path]]
    return (ranked[0] if ranked else None), [
        path for path in others if str(PurePosixPath(path).with_suffix("")) not in parts
    ][:5]


def _readme(files: Mapping[str, bytes]) -> str:
    return "\n".join(decode(data) for path, data in files.items() if PurePosixPath(path).name.startswith("00README"))


def _normal(path: str) -> str:
    return str(PurePosixPath(*[part for part in PurePosixPath(path.strip()).parts if part not in {".", "/"}]))


class _Reader:
    """Reads one document, token by token."""

    def __init__(self, files: Mapping[str, bytes], main: str) -> None:
        self.files = files
        self.main = main
        letters = sum(
            len(data) for path, data in files.items() if path.endswith((".tex", ".bbl", ".ltx")) or path == main
        )
        self.scope = Scope(self.find_file, _KEPT, tokens_left=budget(letters))
        self.tokens = Tokens(self.scope, _body_of(decode(files[main])))
        self.title = ""
        self.blocks: list[Block] = []
        self.sections: list[tuple[int, str]] = []
        self.text: list[str] = []
        self.notes: list[str] = []
        self.cited: dict[str, None] = {}
        self.environments: list[str] = []
        self.equations = 0
        self.bodies: dict[str, str] = {}  # of included files, by their path
        self.seen: Counter[str] = Counter()  # style files and bibliographies
        self.began = self.ended = False

    def document(self, warnings: list[str]) -> Document:
        """Return what was read."""
        missing = [each for each in self.scope.missing if each]
        if missing:
            warnings.append(f"not in the source, and left out: {', '.join(missing[:5])}")
        if self.scope.tokens_left < 0 or self.scope.expansions_left < 0:
            warnings.append("its macros write more than a book; what follows was left out")
        return Document(self.title, tuple(self.blocks), tuple(warnings))

    def find_file(self, name: str) -> str | None:
        """Return an included file's text, without what makes it a document of its own."""
        path = _normal(name)
        folder = str(PurePosixPath(self.main).parent)
        for candidate in (path, f"{path}.tex", _normal(f"{folder}/{path}"), _normal(f"{folder}/{path}.tex")):
            if candidate in self.files:
                if candidate not in self.bodies:
                    self.bodies[candidate] = _body_of(decode(self.files[candidate]), inner=True)
                return self.bodies[candidate]
        return None

    def run(self) -> None:
        """Read everything."""
        while not self.ended and (token := self.tokens.next()) is not None:
            self.take(token)
        self.flush()

    def take(self, token: str) -> None:
        """Read one token and what belongs to it."""
        match token[0]:
            case "\\":
                self.command(token)
            case "$":
                self.dollar()
            case "{" | "}" | "&" | "#":
                return
            case "~":
                self.text.append(" ")
            case _ if token.isspace():
                if token.count("\n") > 1 and not self.in_list():
                    self.flush()
                else:
                    self.text.append(" ")
            case _:
                self.text.append(ligatures(token))

    def in_list(self) -> bool:
        """Return whether an item is being read."""
        return any(each in _LISTS for each in self.environments)

    def inline(self, source: str | tuple[str, ...] | list[str], depth: int = 0) -> str:
        """Return tokens as one piece of text."""
        return self.within(source, depth).plain()

    def within(self, source: str | tuple[str, ...] | list[str], depth: int = 0) -> "_Reader":
        """Read tokens apart from the rest."""
        inner = object.__new__(_Inner)
        inner.files, inner.main, inner.scope, inner.cited = self.files, self.main, self.scope, self.cited
        inner.bodies, inner.seen = self.bodies, self.seen
        inner.tokens = Tokens(self.scope, source)
        inner.title, inner.equations, inner.began, inner.ended = self.title, 0, self.began, False
        inner.blocks, inner.sections, inner.text, inner.notes, inner.environments = [], [], [], [], []
        inner.depth = max(depth, getattr(self, "depth", 0)) + 1
        if inner.depth <= _DEEPEST:
            inner.run()
        return inner

    def plain(self) -> str:
        """Return what was read as one line."""
        return _squeezed(" ".join(block.text for block in self.blocks)).replace(_LINE, " ").replace(_INDENT, "")

    # -------------------------------------------------------------------------------------------- commands

    def command(self, token: str) -> None:  # noqa: C901, PLR0912, PLR0915 - one case a command
        """Read a command."""
        tokens = self.tokens
        if token == r"\begin":
            self.begin(tokens.name())
        elif token == r"\end":
            self.end(tokens.name())
        elif token in {r"\[", r"\("}:
            self.math({r"\[": r"\]", r"\(": r"\)"}[token], display=token == r"\[")
        elif token in _LEVELS:
            self.section(_LEVELS[token])
        elif token in _RUN_IN:
            tokens.starred()
            tokens.optional()
            self.flush()
            self.text.append(self.inline(tokens.argument()).rstrip(".:") + ". ")
        elif token in _REFERENCES:
            tokens.starred()
            self.text.append(tokens.name())
        elif token == r"\eqref":
            self.text.append(f"({tokens.name()})")
        elif _CITE.match(token):
            self.cite()
        elif is_accent(token):
            letters = tokens.argument()
            self.text.append(accented(token, self.inline(letters)))
            if letters in {(r"\i",), (r"\j",)}:
                tokens.skip_space()
        elif token in _FOOTNOTES:
            tokens.optional()
            self.notes.append(self.inline(tokens.argument()))
        elif token in _TITLES:
            tokens.optional()
            self.title = self.inline(tokens.argument()) or self.title
        elif token in {r"\caption", r"\captionof", r"\subcaption", r"\bicaption"}:
            self.caption(token)
        elif token == r"\item":
            label = tokens.optional()
            depth = sum(each in _LISTS for each in self.environments)
            self.text.append(f"{_LINE}{_INDENT * (depth - 1)}- {f'{self.inline(label)}: ' if label else ''}")
        elif token == r"\bibitem":
            self.flush()
            tokens.optional()
            self.text.append(f"[{tokens.name()}] ")
        elif token in _BIBLIOGRAPHIES:
            self.bibliography(tokens)
        elif token in {r"\verb", r"\lstinline"}:
            self.verb()
        elif token in {r"\url", r"\path", r"\nolinkurl"}:
            self.text.append(tokens.name())
        elif token == r"\abstract":
            self.begin("abstract")
            self.text.append(self.inline(tokens.argument()))
            self.end("abstract")
        elif token == r"\usepackage":
            tokens.optional()
            self.package(tokens.name())
        elif token in _DROPPED:
            tokens.drop("*" + _DROPPED[token])
        elif token == r"\par":
            self.flush()
        elif token in SYMBOLS:
            self.text.append(SYMBOLS[token])
            if token[1:].isalpha() and SYMBOLS[token].isalpha():
                tokens.skip_space()  # `M\o ller` is one word
            if token == r"\\":
                tokens.drop("*o")
        elif token == r"\appendix":
            self.sections = []
        else:
            tokens.starred()

    def section(self, level: int) -> None:
        """Begin a section."""
        tokens = self.tokens
        tokens.starred()
        tokens.optional()
        heading = self.inline(tokens.argument())
        self.flush()
        self.open_section(level, heading)

    def open_section(self, level: int, heading: str) -> None:
        """Begin a section of a level under those above it."""
        self.sections = [each for each in self.sections if each[0] < level] + ([(level, heading)] if heading else [])
        if heading:
            self.add("heading", heading)

    def cite(self) -> None:
        """Keep a citation's keys."""
        tokens = self.tokens
        tokens.drop("*oo")
        keys = [key.strip() for key in tokens.name().split(",") if key.strip()]
        self.cited |= dict.fromkeys(keys)
        self.text.append(f"[{', '.join(keys)}]")

    def caption(self, token: str) -> None:
        """Keep a caption as a block of its own, in a box as a line of it."""
        tokens = self.tokens
        tokens.starred()
        floats = [each for each in self.environments if each.rstrip("*").endswith(("figure", "table", "algorithm"))]
        what = tokens.name() if token == r"\captionof" else (floats[-1].rstrip("*") if floats else "figure")
        tokens.optional()
        text = self.inline(tokens.argument())
        kind = "Table" if "table" in what else "Algorithm" if "algorithm" in what else "Figure"
        self.flush()
        self.add("caption", f"{kind}: {text}")

    def verb(self) -> None:
        r"""Keep `\verb|…|` as it stands."""
        tokens = self.tokens
        tokens.starred()
        first = tokens.raw() or " "
        if first.isspace() or first == "{":
            tokens.push((first,))
            self.text.append("".join(tokens.argument()))
            return
        mark, rest = first[0], first[1:]
        found = list[str]()
        while mark not in rest:
            found.append(rest)
            following = tokens.raw()
            if following is None or "\n" in following.partition(mark)[0] or len(found) > 1_000:
                tokens.push((following,) if following else ())
                self.text += found
                return
            rest = following
        end, _, after = rest.partition(mark)
        self.text += [*found, end]
        if after:
            tokens.push(after)

    def package(self, names: str) -> None:
        """Take the macros of a style file that the authors wrote."""
        for name in names.split(","):
            data = self.files.get(f"{_normal(name)}.sty")
            self.seen[name] += 1
            if data is None or len(data) > 200_000 or self.seen[name] > 1:
                continue
            for found in re.findall(
                r"^[ \t]*(\\(?:(?:re)?newcommand|def|DeclareMathOperator)[^@\n]*)$", decode(data), re.MULTILINE
            ):
                Tokens(self.scope, found).next()

    def bibliography(self, tokens: Tokens) -> None:
        """Read the list of references in this place."""
        tokens.optional()
        names = tokens.name() if self.began else ""
        self.seen[_BIBLIOGRAPHY] += 1
        if self.seen[_BIBLIOGRAPHY] > _MOST_BIBLIOGRAPHIES:
            return
        stem = str(PurePosixPath(self.main).with_suffix(""))
        lists = [path for path in self.files if path.endswith(".bbl")]
        found = f"{stem}.bbl" if f"{stem}.bbl" in self.files else min(lists, default=None)
        if found is not None and (entries := references.from_biblatex(text := decode(self.files[found]))):
            self.references(entries)
        elif found is not None:
            tokens.push(text)
        else:
            wanted = [_normal(each) for each in names.split(",") if each.strip()]
            bibs = [path for path in self.files if path.endswith(".bib")]
            chosen = [path for path in bibs if path.removesuffix(".bib") in wanted] or bibs
            self.references(references.from_bibtex("\n".join(decode(self.files[path]) for path in chosen), self.cited))

    def references(self, entries: Mapping[str, str]) -> None:
        """Keep references as a list."""
        self.flush()
        self.open_section(1, "References" if entries else "")
        for key, text in entries.items():
            self.add("list", f"[{key}] {self.inline(text)}")

    # ---------------------------------------------------------------------------------------- environments

    def begin(self, name: str) -> None:
        """Read an environment, or its beginning."""
        tokens, plain = self.tokens, name.rstrip("*")
        if name == "document":
            self.began = True
            self.blocks, self.text, self.sections, self.notes, self.environments = [], [], [], [], []
        elif plain in _EQUATIONS:
            if plain in {"alignat", "IEEEeqnarray"}:
                tokens.drop("m")
            self.display(_joined(self.gather(name)))
        elif name in _TABLES:
            self.flush()
            tokens.drop("om" if name in {"tabular", "longtable", "tabu", "longtabu", "NiceTabular"} else "mom")
            self.add("table", table(self.gather(name), self.inline))
        elif plain in _LISTINGS:
            self.flush()
            self.add("code", self.listing(name))
        elif plain in _SKIPPED:
            self.gather(name, expand=False)
        elif plain in _ALGORITHMS:
            self.flush()
            tokens.drop("o")
            caption, lines = algorithm(self.gather(name), self.inline)
            self.add("algorithm", "\n".join([f"Algorithm: {caption}", *lines] if caption else lines))
        elif len(self.environments) > _MOST_ENVIRONMENTS:
            return
        elif name in self.scope.begins and plain not in _LISTS:
            self.environments.append(name)
            tokens.expand(self.scope.begins[name])
        else:
            self.environments.append(name)
            self.open_environment(plain)

    def open_environment(self, plain: str) -> None:
        """Read the beginning of an environment that holds text."""
        tokens = self.tokens
        if plain in _LISTS:
            if not any(each in _LISTS for each in self.environments[:-1]):
                self.flush()
            tokens.drop("oo")
            return
        self.flush()
        if plain == "thebibliography":
            self.open_section(1, "References")
        elif plain == "abstract":
            self.open_section(1, "Abstract")
        heading = self.scope.theorems.get(plain, "Proof" if plain == "proof" else "")
        note = tokens.optional() if heading else None
        if heading:
            self.text.append(f"{heading}{f' ({self.inline(note)})' if note else ''}. ")
        tokens.drop(_ENVIRONMENT_ARGUMENTS.get(plain, "o"))

    def end(self, name: str) -> None:
        """Read an environment's end."""
        if name == "document":
            self.ended = True
            return
        if name not in self.environments:
            return
        outer = any(each in _LISTS for each in self.environments[:-1])
        while self.environments.pop() != name:
            continue
        if name in self.scope.ends:
            self.tokens.push(self.scope.ends[name])
        elif name not in _LISTS or not outer:
            self.flush("list" if name in _LISTS else None)
        if name == "abstract":
            self.sections = []

    def gather(self, name: str, *, expand: bool = True) -> list[str]:
        """Return the tokens of an environment; where its end is missing, those up to the document's."""
        tokens, found, depth = self.tokens, list[str](), 0
        while (token := tokens.next() if expand else tokens.raw()) is not None:
            if token in {r"\begin", r"\end"}:
                inner = tokens.argument()
                called = "".join(inner).strip()
                if token == r"\end" and called == "document":
                    self.ended = True
                    break
                if called == name:
                    depth += 1 if token == r"\begin" else -1
                    if depth < 0:
                        return found
                found += [token, "{", *inner, "}"]
            else:
                found.append(token)
        return found

    def listing(self, name: str) -> str:
        """Return a listing as it stands."""
        tokens = self.tokens
        tokens.drop({"lstlisting": "o", "minted": "om", "Verbatim": "o"}.get(name.rstrip("*"), ""))
        lines = "".join(self.gather(name, expand=False)).split("\n")
        while lines and not lines[0].strip():
            del lines[0]
        return "\n".join(line.rstrip() for line in lines).rstrip()

    # ------------------------------------------------------------------------------------------------ math

    def dollar(self) -> None:
        """Read a formula between dollars."""
        token = self.tokens.raw()
        if token != "$":
            self.tokens.push((token,) if token is not None else ())
        self.math("$", display=token == "$")

    def math(self, end: str, *, display: bool) -> None:
        """Read a formula up to its end; where that is missing, up to the end of the paragraph."""
        tokens, found, depth = self.tokens, list[str](), 0
        while (token := tokens.next()) is not None:
            if token == end and depth <= 0:
                if display and end == "$" and (following := tokens.raw()) not in {None, "$"}:
                    tokens.push((following or "",))
                break
            if token.isspace() and token.count("\n") > 1 and not display:
                tokens.push((token,))
                break
            if token in {r"\begin", r"\end"} and not display:
                name = tokens.argument()
                if "".join(name) in {"document", *self.environments}:
                    tokens.push((token, "{", *name, "}"))
                    break
                found += [token, "{", *name, "}"]
                continue
            depth += {"{": 1, "}": -1}.get(token, 0)
            found.append(token)
        formula = _joined(found)
        if display:
            self.display(formula)
        elif formula:
            self.text.append(f"${formula}$")

    def display(self, formula: str) -> None:
        """Keep an equation as a block of its own, or in a piece of text as a part of it."""
        self.flush()
        self.add("equation", formula)

    # ---------------------------------------------------------------------------------------------- blocks

    def flush(self, kind: Kind | None = None) -> None:
        """End a paragraph, and put its footnotes behind it."""
        raw, self.text = "".join(self.text), []
        lines = [_squeezed(line) for line in raw.split(_LINE)]
        text = "\n".join(line for line in lines if line.strip(_INDENT + "- ")).replace(_INDENT, "  ")
        in_references = bool(self.sections) and self.sections[0][1] == "References" and text.startswith("[")
        chosen: Kind = "list" if self.in_list() or in_references else "text"
        self.add(kind or chosen, text)
        notes, self.notes = self.notes, []
        for note in notes:
            self.add("text", note)

    def add(self, kind: Kind, text: str) -> None:
        """Add a block, unless it is empty."""
        if text.strip():
            self.blocks.append(Block(kind, text.strip("\n"), " > ".join(name for _, name in self.sections)))


class _Inner(_Reader):
    """Reads a piece of text in which everything stands on one line."""

    depth: int

    def display(self, formula: str) -> None:
        self.text.append(f"${formula}$")


def _body_of(text: str, *, inner: bool = False) -> str:
    """Return an included document's body, and any file up to the end that it declares."""
    text = re.split(r"^[ \t]*\\endinput\b", text, maxsplit=1, flags=re.MULTILINE)[0]
    if inner and r"\documentclass" in text and r"\begin{document}" in text:
        return text.split(r"\begin{document}", 1)[1].split(r"\end{document}", 1)[0]
    return text


def _joined(tokens: list[str]) -> str:
    """Return math as LaTeX on one line, a space where a command would run into a letter."""
    parts = list[str]()
    for token in tokens:
        if parts and parts[-1][0] == "\\" and parts[-1][-1].isalpha() and token[0].isalpha():
            parts.append(" ")
        parts.append(" " if token.isspace() else token)
    return _squeezed("".join(parts))


def _squeezed(text: str) -> str:
    return _SPACE.sub(" ", text).strip()
