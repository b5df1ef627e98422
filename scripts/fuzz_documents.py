"""Feeds broken, hostile and random inputs to every parser of documents, in processes with bounds.

No input may crash a parser, take over 10 s or over 1 GB: `python scripts/fuzz_documents.py --count 10000`.
"""

import argparse
import faulthandler
import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from loopgraph_mcp.ingest.chunk import chunk
from loopgraph_mcp.ingest.parsers.model import Format
from loopgraph_mcp.ingest.parsers.reading import read

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data" / "documents"
LIMIT_S = 10
MEMORY_BYTES = 10**9
FORMS: tuple[Format, ...] = get_args(Format)
TREE = (
    "main.tex",
    "main.tex",
    "intro.tex",
    "ourmacros.sty",
    "main.bbl",
    "refs.bib",
)  # which file of a paper is the input
PIECES: dict[Format, list[bytes]] = {  # what each form is made of
    "latex": rb"""{ } $ $$ \[ \] \( \) % & # ^ _ ~ \\ \def\a{\a\a} \a \newcommand{\b}[9][x]{#1#9\b{#1}} \b{y} \if \ifx
        \else \fi \iffalse \begin{document} \end{document} \begin{align} \end{align} \begin{tabular}{ll}
        \end{tabular} \begin{itemize} \item \end{itemize} \input{main} \include{intro} \begin{algorithmic}
        \For{x}{y} \EndFor \section{ \cite{ \footnote{ \verb| \begin{verbatim} \caption{ \bibliography{x}
        \csname \endcsname \let\c\d \'e \begin{x} \end{x} [ ] \newenvironment{x}{\begin{x}}{\end{x}}
        \begin{lstlisting} \multicolumn{2}{c}{ \def\d#1.#2{#2#1} \d \abstract{""".split(),
    "html": b"""<p> </p> <div> </div> <table> <tr> <td> </table> <ul> <li> </ul> <math alttext="x" display="block">
        </math> <pre> </pre> <!-- --> <![CDATA[ ]]> <!DOCTYPE <?x ?> <script> </script> <a href=" <a href=' > <
        & &amp; &#x110000; &#0; <h1> <section> <figure> <figcaption> <cite class="ltx_cite"> <ul
        class="ltx_biblist"> <svg/> <br> <article> " <table class="ltx_equation"> <span class="ltx_ERROR">
        </section> <body>""".split(),
    "pdf": b"""obj endobj stream endstream xref trailer << >> [ ] ( ) < > /Length /Filter /FlateDecode /Kids /Parent
        /Type/Page /Contents /Encrypt /Root /Font 1 0 R 2 0 R 3 0 R 4 0 R 99999999999 -1 1e309 BT ET Tf Tj TJ Td
        Tm Do cm q Q (\\ Ti BI ID EI /ASCII85Decode /LZWDecode /RunLengthDecode /DecodeParms /Predictor 15
        /Columns 1000000 startxref %%EOF ObjStm /W /CIDFont /ToUnicode /Rotate 90 /MediaBox beginbfrange
        endbfrange""".split(),
    "markdown": rb"""#
        ## ``` ~~~ | --- |---| - * 1. > $$ \[ \] [x](y) ![ [ ]( ** * __ _ <!-- --> <a === .. math:: : 1) ====
        | | |""".split(),
    "code": rb"""def
        class async @ ( ) [ ] { } : , = - ~ not lambda if else try: except: return yield await f"{ } '''
        \"\"\" \ # ; 0x 1e match case * ** -> := import pass""".split(),
}


def seeds(form: Format) -> list[bytes]:
    """Return valid documents of a form."""
    match form:
        case "latex":
            return [path.read_bytes() for path in sorted((DATA / "paper").glob("*.tex"))] + [
                (DATA / "twocolumn.tex").read_bytes(),
                (DATA / "paper" / "main.bbl").read_bytes(),
                b'@article{a, author = {A. One and B. {Two}}, title = "On {B}its", year = 2020}\n@string{b = {c}}\n'
                * 9,
            ]
        case "html":
            return [(DATA / "latexml.html").read_bytes()]
        case "pdf":
            return [(DATA / "twocolumn.pdf").read_bytes(), plain_pdf()]
        case "markdown":
            return [path.read_bytes() for path in sorted((ROOT / "docs").glob("*.md"))]
        case "code":
            return [path.read_bytes() for path in sorted((ROOT / "loopgraph_mcp" / "documents").glob("*.py"))]


def plain_pdf() -> bytes:
    """Return a PDF whose streams are not compressed, so that what changes in it changes what is drawn."""
    drawn = b"".join(
        b"BT /F1 10 Tf %d %d Td (words that stand on a line of a column %d) Tj ET\n"
        % (50 + 270 * (at % 2), 700 - 12 * at, at)
        for at in range(40)
    )
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources "
        b"<< /Font << /F1 5 0 R >> /XObject << /X1 6 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s/X1 Do\nendstream" % (len(drawn) + 7, drawn),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Length 6 >>\nstream\n/X1 Do\nendstream",
    ]
    body, places = b"%PDF-1.4\n", list[int]()
    for number, each in enumerate(objects, start=1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(body)
    return body + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF"
        % (len(objects) + 1, table, len(objects) + 1, start)
    )


def fuzzed(form: Format, number: int, valid: Sequence[bytes]) -> bytes:  # noqa: C901 - one case a mutation
    """Return the input of a number: the same in every run."""
    rng = random.Random(f"{form} {number}")
    pieces = PIECES[form]
    chance = rng.random()
    if chance < 0.05:
        return rng.randbytes(rng.randrange(2_000))
    if chance < 0.2:
        return rng.choice((b" ", b"", b"\n")).join(rng.choice(pieces) for _ in range(rng.randrange(1, 1_500)))
    if chance < 0.25:
        start = rng.choice(valid)[: rng.randrange(300)]
        return start + (rng.choice(pieces) + rng.choice((b"", b" ", rng.choice(pieces)))) * rng.randrange(1, 20_000)
    data = bytearray(rng.choice(valid))
    for _ in range(rng.choice((1, 1, 2, 4, 8, 32))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 2, 8, 64, 1024)))
        match rng.randrange(7):
            case 0:
                data[at:end] = rng.randbytes(end - at)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end] * rng.choice((1, 2, 50))
            case 3:
                data[at:at] = rng.choice(pieces)
            case 4:
                del data[at:]
            case 5:
                other = rng.choice(valid)
                data[at:end] = other[rng.randrange(len(other)) :][: rng.randrange(2_000)]
            case _:
                data[at:at] = rng.choice(pieces) * rng.choice((1, 10, 3_000))
    return bytes(data[: 2 * 2**20])


def tree(number: int, data: bytes, paper: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return a paper's files, one of them an input; main.bbl, where it stands, is read before refs.bib."""
    name = TREE[number % len(TREE)]
    kept = {each: text for each, text in paper.items() if name != "refs.bib" or each != "main.bbl"}
    return {**kept, name: data}


def work(form: Format, first: int, last: int) -> None:
    """Read the inputs of some numbers, telling each before it is read and what came of it."""
    faulthandler.enable()
    valid = seeds(form)
    paper = {path.name: path.read_bytes() for path in (DATA / "paper").iterdir()}
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, _too_long)
    for number in range(first, last):
        data = fuzzed(form, number, valid)
        print(json.dumps({"number": number}), flush=True)
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)  # of the processor: others use the machine too
        try:
            document = read(form, tree(number, data, paper) if form == "latex" else data, path="a/b.py")
            chunk(document)
            told = document.state
        except BaseException as error:  # noqa: BLE001 - any is a finding
            told = f"{type(error).__name__}: {error}"[:300]
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"number": number, "told": told, "seconds": time.process_time() - began}), flush=True)


def _too_long(_signal: int, _frame: object) -> None:
    raise SystemExit(f"over {LIMIT_S} s")


def run(form: Format, first: int, last: int) -> Iterator[tuple[int, str, float]]:
    """Yield what came of each input, whatever becomes of the process that reads it."""
    while first < last:
        command = [sys.executable, __file__, "--worker", form, "--first", str(first), "--count", str(last - first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - this very script
            assert process.stdout is not None  # noqa: S101 - it was opened as a pipe
            for line in process.stdout:
                told = json.loads(line)
                if "told" in told:
                    first = told["number"] + 1
                    yield told["number"], told["told"], told["seconds"]
        if process.returncode != 0:
            yield first, f"the process died (exit {process.returncode})", 0.0
            first += 1


def main() -> int:
    """Run all forms, or one; return 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="inputs for each parser")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--form", choices=FORMS, action="append", help="only this one")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that were findings")
    parser.add_argument("--worker", choices=FORMS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work(asked.worker, asked.first, asked.first + asked.count)
        return 0
    findings = 0
    for form in asked.form or FORMS:
        began, slowest, states = time.perf_counter(), (0.0, -1), dict[str, int]()
        for number, told, seconds in run(form, asked.first, asked.first + asked.count):
            slowest = max(slowest, (seconds, number))
            if told in {"read", "encrypted", "scanned", "broken", "too_large"}:
                states[told] = states.get(told, 0) + 1
                continue
            findings += 1
            print(f"{form} {number}: {told}")
            if asked.keep:
                asked.keep.mkdir(parents=True, exist_ok=True)
                (asked.keep / f"{form}-{number}").write_bytes(fuzzed(form, number, seeds(form)))
        took = time.perf_counter() - began
        print(f"{form}: {asked.count} inputs, {states}, slowest {slowest[0]:.2f} s (number {slowest[1]}), {took:.0f} s")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
