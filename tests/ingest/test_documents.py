"""Documents: LaTeX, HTML, PDF, Markdown and Python as blocks in reading order, cut into passages that stay put."""

import io
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopgraph_mcp.ingest.chunk import MOST_WORDS, Passage, chunk
from loopgraph_mcp.ingest.parsers import html, latex, markdown, pdf, python
from loopgraph_mcp.ingest.parsers.model import Block, Document
from loopgraph_mcp.ingest.parsers.reading import read
from tests.conftest import ROOT

DATA = ROOT / "tests" / "data" / "documents"
PAPER = {path.name: path.read_bytes() for path in (DATA / "paper").iterdir()}


def tex(body: str, **others: str) -> Document:
    head = r"\documentclass{article}\begin{document}"
    return latex.read(
        {"main.tex": f"{head}\n{body}\n\\end{{document}}".encode(), **{k: v.encode() for k, v in others.items()}}
    )


def only(document: Document, kind: str) -> list[str]:
    return [block.text for block in document.blocks if block.kind == kind]


def text_of(document: Document) -> str:
    return "\n".join(block.text for block in document.blocks)


# ------------------------------------------------------------------------------------------------------ LaTeX


def test_a_latex_paper_of_several_files_is_read_in_order_with_its_macros() -> None:
    paper = latex.read(PAPER)
    assert paper.title == "QuietNorm: Normalising the Residual Stream Without Statistics"
    assert [b.section for b in paper.blocks if b.kind == "heading"] == [
        "Abstract",
        "Introduction",
        "Method",
        "Method > A learned bound",
        "Results",
        "References",
    ]
    assert any(r"norm grows with depth — “drift” for short" in each for each in only(paper, "text"))
    assert any("[vaswani2017, ba2016]" in each for each in only(paper, "text"))
    assert any("Erödős and Møller" in each for each in only(paper, "text"))
    assert only(paper, "equation")[0] == (
        r"\label{eq:bound} y = \frac{x}{1 + \left\lVert x \right\rVert_{1} / b}, \quad b \in \mathbb{R}^+"
    )
    assert only(paper, "equation")[1] == r"\operatorname*{arg\,min}_\theta \mathbb{E}[\ell(\theta)]"
    assert only(paper, "table") == ["Model | Loss\n | small | large\nRMSNorm | 3.21 | 2.98\nQuietNorm | 3.19 | 2.97"]
    assert only(paper, "caption") == ["Table: Loss after five minutes. Lower is better."]
    assert only(paper, "code") == ["def quiet(x):  # 5 % of the time\n    return x / (1 + abs(x))"]
    assert only(paper, "list")[0].split("\n") == [
        "- The first finding is that the bound settles early.",
        "- The second is speed:",
        "  - 4% on one device,",
        "  - 6% on eight.",
    ]
    assert only(paper, "list")[-1].startswith("[ba2016] J. Ba, J. Kiros and G. Hinton.")
    assert "never" not in text_of(paper)
    assert "comment" not in text_of(paper)
    assert "Neither" not in text_of(paper)
    assert paper.warnings == ()


def test_algorithm_boxes_keep_their_lines_in_both_notations() -> None:
    (box,) = only(latex.read(PAPER), "algorithm")
    assert box.split("\n")[0] == "Algorithm: Training with QuietNorm"
    assert box.split("\n")[2:5] == [
        "for $t = 1$ to $T$",
        r"  $x \gets f(x)$",
        r"  if $\left\lVert x \right\rVert_{2} > b$",
    ]
    newer = tex(r"\begin{algorithm2e}\KwIn{$x$}\For{$t<T$}{step\; \If{done}{stop\;}}\Return $x$\end{algorithm2e}")
    assert only(newer, "algorithm") == ["Input: $x$\nfor $t<T$\n  step\n  if done\n    stop\nreturn $x$"]


def test_the_main_file_is_found_among_several() -> None:
    others = {
        "supplement.tex": b"\\documentclass{article}\\begin{document}More.\\end{document}",
        "notes.tex": b"no head",
    }
    document = latex.read({**others, **PAPER})
    assert document.title.startswith("QuietNorm")
    assert document.warnings == ("supplement.tex is another document of this source, and was not read",)
    told = {"a.tex": PAPER["main.tex"], "b.tex": others["supplement.tex"], "00README.XXX": b"b.tex toplevelfile\n"}
    assert text_of(latex.read(told)) == "More."
    assert latex.read({"figure.tex": b""}).state == "broken"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (r"\def\pair#1.#2;{#2 before #1}\pair one.two; end", "two before one end"),
        (r"\newcommand{\hi}[2][you]{#1 and #2}\hi{me}, \hi[he]{she}", "you and me, he and she"),
        (
            r"\let\old\emph \old{kept} \newif\iflong \longtrue \iflong yes\else no\fi \longfalse\iflong yes\else no\fi",
            "kept yes no",
        ),
        (
            r"\v{C}ech, na\"\i ve, \c{c}a, \aa ngstr\"om, {\ss}, don't ``quote'' 1--2",
            "Čech, naïve, ça, ångström, ß, don’t “quote” 1–2",
        ),
        (r"\verb|a_%b| and \verb+c{+.", "a_%b and c{."),
        (
            r"\textcolor{red}{Red} \href{https://x.org}{link} \url{https://y.org}\vspace*{2pt}\label{x}",
            "Red link https://y.org",
        ),
        (r"\newenvironment{box}[1]{Begin #1.}{End.}\begin{box}{one}in\end{box}", "Begin one.inEnd."),
        ("one% note\n\ntwo", "one\ntwo"),
        (r"\input{gone} text", "text"),
        (r"\iffalse a \iffalse b \fi c \fi d", "d"),
    ],
)
def test_tex_writes(body: str, expected: str) -> None:
    assert text_of(tex(body)) == expected


def test_unclosed_groups_and_missing_ends_lose_no_text() -> None:
    document = tex("Before \\footnote{open\n\n\\section{A} $x + 1\n\nafter the formula \\begin{tabular}{l} a & b")
    assert "Before" in text_of(document)
    assert "after the formula" in text_of(document)
    assert "a | b" in text_of(document)


def test_sources_in_old_encodings_are_read() -> None:
    body = "\\documentclass{article}\\begin{document}\r\nNaïve Gödel\r\n\\end{document}"
    assert text_of(latex.read({"a.tex": body.encode("latin-1")})) == "Naïve Gödel"
    assert text_of(latex.read({"a.tex": body.encode("utf-8-sig")})) == "Naïve Gödel"


def test_references_are_read_from_bibtex_and_biblatex_too() -> None:
    bib = "@article{a1, author={A. One and B. Two}, title={On {B}its}, year=2020}\n@misc{b2, title={Uncited}}"
    assert only(tex(r"\cite{a1}\bibliography{refs}", **{"refs.bib": bib}), "list") == [
        "[a1] A. One; B. Two. On Bits. 2020"
    ]
    bbl = r"\entry{k}{article}{}\name{author}{1}{}{{{hash=1}{family={Three},given={C.}}}}"
    bbl += r"\field{title}{On Bytes}\field{year}{2021}\endentry"
    assert only(tex(r"\printbibliography", **{"main.bbl": bbl}), "list") == ["[k] Three. On Bytes. 2021"]


@pytest.mark.parametrize("others", [{}, {"refs.bib": ""}, {"refs.bib": "@string{acl = {ACL}}"}, {"main.bbl": ""}])
def test_a_list_of_references_that_is_missing_or_empty_is_none(others: dict[str, str]) -> None:
    assert only(tex(r"words \cite{a1}\bibliography{refs}", **others), "list") == []


def test_macros_that_write_without_end_are_cut_off_with_a_warning() -> None:
    for bomb in (r"\def\a{\a\a}\a", r"\newcommand{\b}[1]{\b{#1#1}}\b{x}", r"\input{main}"):
        document = tex(f"Text first.\n\n{bomb}")
        assert only(document, "text")[0] == "Text first."


# ------------------------------------------------------------------------------------------------ HTML, Markdown


def test_html_of_latexml_is_read_with_its_formulas() -> None:
    page = html.read((DATA / "latexml.html").read_bytes())
    assert page.title == "Quiet layers & loud ones"
    assert page.warnings == ("1 places were not converted from LaTeX; the source or the PDF has them",)
    assert [(b.kind, b.section) for b in page.blocks if b.kind not in {"text", "heading"}] == [
        ("equation", "Introduction"),
        *[(kind, "Introduction > Setting") for kind in ("caption", "table", "algorithm", "list", "code")],
        ("list", "References"),
    ]
    assert only(page, "equation") == [r"y=\frac{x}{1+|x|}"]
    assert only(page, "table") == ["Model | Loss\nours | 3.19"]
    assert only(page, "list")[0] == "- one thing\n- another\n  - within it"
    assert only(page, "text")[0] == r"We bound the stream by $b\in\mathbb{R}^{d}$."
    assert "never" not in text_of(page)
    assert "A. Writer" not in text_of(page)


def test_html_that_is_no_html_is_still_read() -> None:
    assert (
        text_of(html.read(b"<p>one<p>two <b>bold</i> & three < four<div>five")) == "one\ntwo bold & three < four\nfive"
    )
    assert text_of(html.read("<meta charset=latin-1><p>Gödel".encode("latin-1"))) == "Gödel"
    assert html.read(b"").state == "broken"


def test_markdown_is_read_by_its_blocks() -> None:
    source = """---
title: "Notes"
---
# Notes
Some *plain* text with [a link](https://x.org/a_(b)) and `val_bpb`.
It goes on.

Under
-----
| a | b |
|---|---|
| 1 | 2 |

- one
  - two
1. three

```python
# not a heading
x = 1
```
$$
y = x^2
$$
"""
    document = markdown.read(source)
    assert document.title == "Notes"
    assert [(b.kind, b.section, b.text) for b in document.blocks if b.kind != "heading"] == [
        ("text", "Notes", "Some plain text with a link and `val_bpb`. It goes on."),
        ("table", "Notes > Under", "a | b\n1 | 2"),
        ("list", "Notes > Under", "- one\n  - two\n1. three"),
        ("code", "Notes > Under", "# not a heading\nx = 1"),
        ("equation", "Notes > Under", "y = x^2"),
    ]


def test_markdown_keeps_formulas_and_what_restructured_text_writes() -> None:
    source = """Title
~~~~~
.. code-block:: python
   :linenos:

   x = 1

$$
a
- b
$$ where $x_{i}\\{y\\}$
"""
    assert [(b.kind, b.section, b.text) for b in markdown.read(source).blocks] == [
        ("heading", "Title", "Title"),
        ("code", "Title", "x = 1"),
        ("equation", "Title", "a - b"),
        ("text", "Title", r"where $x_{i}\{y\}$"),
    ]


# --------------------------------------------------------------------------------------------------------- code


SOURCE = '''"""What it does."""
import os

@decorated
def first(x):
    return x

class Model:
    """A model."""

    size = 1

    def forward(self, x):
        return x
{filler}
    async def step(self):
        pass

LAST = 1
'''.replace("{filler}", "\n".join("        # line" for _ in range(30)))


@pytest.mark.parametrize("ending", ["", "broken = ("])
def test_python_is_read_by_symbol_even_where_it_does_not_parse(ending: str) -> None:
    document = python.read(SOURCE + ending, "src/net/model.py")
    symbols = {block.section: block for block in document.blocks}
    assert list(symbols)[:5] == [
        "net.model",
        "net.model.first",
        "net.model.Model",
        "net.model.Model.forward",
        "net.model.Model.step",
    ]
    assert symbols["net.model.first"].text == "@decorated\ndef first(x):\n    return x"
    assert symbols["net.model.first"].lines == (4, 6)
    assert symbols["net.model.Model"].text.startswith('class Model:\n    """A model."""')
    assert bool(document.warnings) == bool(ending)


# ---------------------------------------------------------------------------------------------------------- PDF


def reference() -> list[str]:
    """Return the words of the two-column paper, in the order in which a reader reads its pages."""
    lines = (DATA / "twocolumn.txt").read_text(encoding="utf-8").splitlines()
    return words(" ".join(re.sub(r"^(?:#+ [\d.]*|! |T |\| |\^ )", "", line) for line in lines))


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def fives(told: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(told[start:] for start in range(5)), strict=False))


def common(one: list[str], other: list[str]) -> int:
    """Return the length of the longest common subsequence."""
    before = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for at, found in enumerate(other, start=1):
            row.append(before[at - 1] + 1 if word == found else max(before[at], row[-1]))
        before = row
    return before[-1]


def test_a_two_column_pdf_is_read_in_reading_order() -> None:
    paper = pdf.read((DATA / "twocolumn.pdf").read_bytes())
    wanted, found = reference(), words(f"{paper.title} {text_of(paper)}")
    assert common(wanted, found) / len(wanted) >= 0.97
    assert sum((fives(wanted) & fives(found)).values()) / sum(fives(wanted).values()) >= 0.97
    assert paper.title == "Bounded Residual Streams for Small Language Models"
    assert "Method > A learned bound" in {block.section for block in paper.blocks}
    assert {block.page for block in paper.blocks} == {1, 2, 3}
    assert found.count("streams") == wanted.count("streams")  # the running head says it on each page
    assert only(paper, "table")[0].split("\n")[0] == "Size Loss Ours Time Ours"
    assert only(paper, "caption") == [
        "Table 1: Loss in bits per byte and time of a step in milliseconds for four sizes."
    ]


def small_pdf(drawn: bytes, *, font: bytes = b"/Subtype /Type1 /BaseFont /Helvetica", extra: bytes = b"") -> bytes:
    return b"""%%PDF-1.4
1 0 obj << /Type /Catalog /Pages 2 0 R >> endobj
2 0 obj << /Type /Pages /Kids [3 0 R] /Count 1 >> endobj
3 0 obj << /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R
/Resources << /Font << /F1 5 0 R >> >> >> endobj
4 0 obj << /Length %d >> stream
%s
endstream endobj
5 0 obj << /Type /Font %s >> endobj
trailer << /Size 6 /Root 1 0 R %s >>
%%%%EOF""" % (len(drawn), drawn, font, extra)


def test_letters_without_a_meaning_are_counted_and_ligatures_are_found() -> None:
    lines = b" ".join(b"0 -12 Td (a line that holds enough words to be read %d) Tj" % at for at in range(5))
    encoding = b"<< /Type /Encoding /Differences [1 /g1 /g2 12 /g12] >>"
    font = b"/Subtype /Type1 /BaseFont /AAAAAA+Own /FirstChar 0 /LastChar 127 /Encoding " + encoding
    document = pdf.read(
        small_pdf(b"BT /F1 10 Tf 50 700 Td %s 0 -12 Td (\\001 ef\\014cient \\002) Tj ET" % lines, font=font)
    )
    assert "efficient" in text_of(document)
    assert "cid:" not in text_of(document)
    assert document.warnings[0].startswith("2 of ")


def test_words_are_whole_again_but_compounds_keep_their_hyphen() -> None:
    told = [
        "the low-rank form of nor-",
        "malisation is a low-",
        "rank matter of the state-",
        "of-the-art kind of read-",
        "ing on paper.",
    ]
    drawn = b" ".join(b"0 -12 Td (%s) Tj" % line.encode() for line in told)
    text = text_of(pdf.read(small_pdf(b"BT /F1 10 Tf 50 700 Td %s ET" % drawn)))
    assert (
        text
        == "the low-rank form of normalisation is a low-rank matter of the state-of-the-art kind of reading on paper."
    )


def test_pdfs_that_cannot_be_read_say_why() -> None:
    encrypted = b"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O (%s) /U (%s) >> /ID [(aa) (aa)]" % (
        b"o" * 32,
        b"u" * 32,
    )
    assert pdf.read(small_pdf(b"", extra=encrypted)).state == "encrypted"
    assert pdf.read(small_pdf(b"0 0 100 100 re f")).state == "scanned"
    assert pdf.read(b"%PDF-1.7 and no more").state == "broken"
    assert pdf.read(b"").state == "broken"
    document = pdf.read(bytes(pdf.MOST_BYTES + 1))
    assert document.state == "too_large"
    assert "MiB" in document.warnings[0]


def test_a_broken_page_costs_only_itself() -> None:
    data = (DATA / "twocolumn.pdf").read_bytes()
    starts = [match.start() for match in re.finditer(rb"stream\r?\n", data)]
    hurt = bytearray(data)
    hurt[starts[0] + 10 : starts[0] + 600] = bytes(590)
    paper = pdf.read(bytes(hurt))
    assert paper.state == "read"
    assert len(words(text_of(paper))) > 500


# ----------------------------------------------------------------------------------------------------- passages


def prose(topic: str, sentences: int) -> str:
    return " ".join(
        f"The {topic} sentence number {n} says something about its subject in plain words." for n in range(sentences)
    )


def test_passages_have_80_to_250_words_within_a_section() -> None:
    blocks = [Block("text", prose(topic, 12), topic) for topic in ("first", "second") for _ in range(5)]
    passages = chunk(Document("", tuple(blocks)))
    assert all(80 <= len(each.text.split()) <= MOST_WORDS for each in passages)
    assert {each.place for each in passages} == {"first", "second"}
    assert " ".join(" ".join(each.text.split()) for each in passages) == " ".join(block.text for block in blocks)


def test_an_edit_in_one_section_leaves_the_passages_of_the_others() -> None:
    before = PAPER
    after = {**before, "intro.tex": before["intro.tex"].replace(b"We remove the division.", prose("new", 40).encode())}
    old, new = chunk(latex.read(before)), chunk(latex.read(after))
    assert [each for each in old if each.place != "Introduction"] == [
        each for each in new if each.place != "Introduction"
    ]
    assert [each for each in old if each.place == "Introduction"] != [
        each for each in new if each.place == "Introduction"
    ]


def test_boxes_stay_whole_and_equations_keep_the_sentences_around_them() -> None:
    rows = "\n".join(f"row {n} | {n} | {n} | {n} | {n}" for n in range(60))
    blocks = (
        Block("text", prose("long", 16) + " The rule is", "Method"),
        Block("equation", "y = x", "Method"),
        Block("text", "where x is the input. " + prose("next", 5), "Method"),
        Block("caption", "Table: What came of it.", "Method"),
        Block("table", rows, "Method"),
    )
    passages = [each.text for each in chunk(Document("", blocks))]
    assert any("The rule is\n\ny = x\n\nwhere x is the input." in each for each in passages)
    assert any(f"Table: What came of it.\n\n{rows}" in each for each in passages)


def test_places_name_the_page_where_there_are_pages() -> None:
    passages = chunk(Document("", (Block("text", "Words.", "Method", 3), Block("text", "More.", "", 4))))
    assert passages == [Passage("Method, page 3", "Words."), Passage("page 4", "More.")]


# -------------------------------------------------------------------------------------------------- any input


SNIPPETS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                rb"\begin{",
                rb"\end{",
                rb"\def\a#1{",
                rb"\a",
                "{",
                "}",
                "$",
                "<p>",
                "</",
                "<table>",
                '"',
                "```",
                "|",
                "# ",
                "def x(",
                "- ",
            ]
        ).map(lambda each: each if isinstance(each, bytes) else each.encode()),
        st.binary(max_size=20),
        st.text(max_size=20).map(lambda each: each.encode("utf-8", "replace")),
    ),
    max_size=40,
).map(b"".join)


@settings(max_examples=60, deadline=None)
@given(data=SNIPPETS, form=st.sampled_from(["latex", "html", "pdf", "markdown", "code"]))
def test_any_bytes_are_a_document_and_its_passages_are_the_same_each_time(data: bytes, form: str) -> None:
    document = read(form, data)  # type: ignore[arg-type]
    assert chunk(document) == chunk(read(form, data))  # type: ignore[arg-type]
    assert document.state != "read" or all(block.text.strip() for block in document.blocks)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_damaged_pdf_is_read_or_has_a_state(drawn: st.DataObject) -> None:
    data = bytearray((DATA / "twocolumn.pdf").read_bytes()[-20_000:])
    for _ in range(drawn.draw(st.integers(1, 5))):
        at = drawn.draw(st.integers(0, len(data) - 1))
        data[at : at + drawn.draw(st.integers(0, 50))] = drawn.draw(st.binary(max_size=20))
    assert isinstance(pdf.read(io.BytesIO(data).getvalue()), Document)
