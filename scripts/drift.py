#!/usr/bin/env python3
"""Applies every recipe, and random sets of them, to many forms of train.py: each fits, or says why it does not.

    scripts/drift.py                                 all recipes, all forms, a hundred sets for each
    scripts/drift.py --upstream PATH [--branch NAME]  and every version of train.py in a checkout's history
    scripts/drift.py --steps                         and train what came of it for two steps (needs torch)

What fits must parse, be there when asked for again, and come out again to the byte, also when the file has moved on.
`tests/code/test_drift.py` does a part of this at every run.
"""

import argparse
import ast
import gc
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from loopgraph_mcp.code import apply, compose, revert
from loopgraph_mcp.code.apply import Around
from loopgraph_mcp.code.compose import Wish
from loopgraph_mcp.code.syntax import Source, Span, bindings
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.models import Applied, EditResult, Method, Presence, Present, Refused

ROOT = Path(__file__).parent.parent
KNOBS = re.compile(r"^[A-Z][A-Z0-9_]*(_LR|_RATIO|_SIZE|_PATTERN|_DECAY|_FRAC|_BETAS|_DIM|DEPTH|_RATIO)$|^DEPTH$")


# ------------------------------------------------------------------------------------------------- forms


def with_spans(text: str, replaced: Sequence[tuple[Span, str]]) -> str:
    source = Source(text)
    data = source.data
    for span, new in sorted(replaced, key=lambda pair: pair[0].start, reverse=True):
        data = data[: span.start] + new.encode() + data[span.end :]
    return data.decode()


def indented_by(unit: str) -> Callable[[str], str]:
    def form(text: str) -> str:
        return re.sub(r"^(?: {4})+", lambda match: unit * (len(match.group()) // 4), text, flags=re.MULTILINE)

    return form


def commented(text: str) -> str:
    """A comment before every statement of a block, and an empty line here and there."""
    source, lines = Source(text), text.split("\n")
    starts = {
        (min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))]), node.col_offset)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.stmt) and node.col_offset and source.indent_of(node)
    }
    for line, column in sorted(starts, reverse=True):
        lines.insert(line - 1, " " * column + f"# a note on line {line}" + ("\n" if line % 7 == 0 else ""))
    return "\n".join(lines)


def decorated(text: str) -> str:
    tree, lines = ast.parse(text), text.split("\n")
    methods = [
        node
        for outer in tree.body
        if isinstance(outer, ast.ClassDef)
        for node in outer.body
        if isinstance(node, ast.FunctionDef)
    ]
    for node in sorted(methods, key=lambda node: node.lineno, reverse=True):
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        lines.insert(first - 1, " " * node.col_offset + "@as_it_is")
    first_class = next(number for number, line in enumerate(lines) if line.startswith(("class ", "@dataclass")))
    lines[first_class:first_class] = ["def as_it_is(function):", "    return function", "", ""]
    return "\n".join(lines)


def reordered(text: str) -> str:
    """The methods of each class the other way round, each with the comments above it."""
    lines = text.split("\n")
    for outer in ast.parse(text).body:
        if isinstance(outer, ast.ClassDef):
            ends = [outer.body[0].lineno - 1, *(node.end_lineno or 0 for node in outer.body)]
            blocks = []
            for node, start in zip(outer.body, ends, strict=False):
                blocks.append((node, lines[start : node.end_lineno]))
            functions = [block for node, block in blocks if isinstance(node, ast.FunctionDef)][::-1]
            made = [functions.pop(0) if isinstance(node, ast.FunctionDef) else block for node, block in blocks]
            lines[ends[0] : ends[-1]] = [line for block in made for line in block]
    return "\n".join(lines)


def renamed(text: str) -> str:
    """Every local that is assigned in a function has another name; parameters keep theirs."""
    source, replaced = Source(text), []
    for function in ast.walk(source.tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        given = {
            arg.arg
            for node in ast.walk(function)
            if isinstance(node, ast.arguments)
            for arg in ast.walk(node)
            if isinstance(arg, ast.arg)
        }
        quoted = {
            name.id
            for node in ast.walk(function)
            if isinstance(node, ast.JoinedStr)
            for name in ast.walk(node)
            if isinstance(name, ast.Name)
        }
        outer = {
            name for node in ast.walk(function) if isinstance(node, ast.Global | ast.Nonlocal) for name in node.names
        }
        inner = [
            node
            for node in ast.walk(function)
            if isinstance(node, ast.FunctionDef | ast.Lambda) and node is not function
        ]
        inner_names = {name.id for node in inner for name in ast.walk(node) if isinstance(name, ast.Name)}
        inner_names |= {node.name for node in inner if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(function):
            if not isinstance(node, ast.Name) or node.id in given | quoted | outer | inner_names:
                continue
            if bindings(function, node.id) and source.slice(source.span(node)) == node.id:
                replaced.append((source.span(node), f"{node.id}_now"))
    return with_spans(text, replaced)


def _moved_constants(text: str) -> tuple[Source, list[tuple[str, str]], list[tuple[Span, str]]]:
    """The knobs that no f-string names, with their values, and the spans that hold their lines."""
    source, found, gone = Source(text), [], []
    quoted = {
        name.id
        for node in ast.walk(source.tree)
        if isinstance(node, ast.JoinedStr)
        for name in ast.walk(node)
        if isinstance(name, ast.Name)
    }
    for node in source.tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if KNOBS.match(name) and name not in quoted:
                found.append((name, source.slice(source.span(value))))
                gone.append((Span(source.span(node).start, source.line_end(node.end_lineno or node.lineno)), "pass"))
    return source, found, gone


def _with_constants_at(text: str, block: Callable[[list[tuple[str, str]]], str], owner: str) -> str:
    source, found, gone = _moved_constants(text)
    names = dict(found)
    uses = [
        (source.span(node), f"{owner}.{node.id.lower()}")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names
    ]
    first = gone[0][0]
    return with_spans(text, [*uses, *gone[1:], (first, block(found))])


def in_dataclass(text: str) -> str:
    def block(found: list[tuple[str, str]]) -> str:
        fields = "".join(f"    {name.lower()}: object = {value}\n" for name, value in found)
        return f"@dataclass(frozen=True)\nclass Settings:\n{fields}\n\nsettings = Settings()"

    return _with_constants_at(text, block, "settings")


def in_argparse(text: str) -> str:
    def block(found: list[tuple[str, str]]) -> str:
        flags = "".join(
            f'parser.add_argument("--{name.lower().replace("_", "-")}", default={value})\n' for name, value in found
        )
        return f"import argparse\nparser = argparse.ArgumentParser()\n{flags}args, _ = parser.parse_known_args([])"

    return _with_constants_at(text, block, "args")


def other_attention(text: str) -> str:
    """Queries and keys are made by a method of their own, in another class."""
    text = text.replace("CausalSelfAttention", "Attention")
    old = [line for line in text.split("\n") if re.match(r"        [qk] = self\.c_[qk]\(x\)\.view", line)]
    for line in old:
        name, value = line.strip().split(" = ", 1)
        text = text.replace(
            line, f"        {name} = self.split(self.c_{name}(x), {value.split('T, ')[1].split(',')[0]})", 1
        )
    method = "    def split(self, x, heads):\n        return x.view(*x.shape[:2], heads, self.head_dim)\n\n"
    at = text.index("    def forward(self, x, ve, cos_sin")
    return text[:at] + method + text[at:]


FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "tabs": indented_by("\t"),
    "two spaces": indented_by("  "),
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "a byte order mark, no last newline": lambda text: "\ufeff" + text.rstrip(),
    "comments between statements": commented,
    "decorators": decorated,
    "reordered methods": reordered,
    "renamed locals": renamed,
    "constants in a dataclass": in_dataclass,
    "constants in argparse": in_argparse,
    "another attention": other_attention,
}


def files() -> dict[str, str]:
    """Every form of the bundled trainer and of a script in upstream's shape."""
    texts = {
        "trainer": (ROOT / "trainer" / "train.py").read_text(encoding="utf-8"),
        "script": (ROOT / "tests" / "data" / "single_file.txt").read_text(encoding="utf-8"),
    }
    return {f"{name}, {form}": change(text) for name, text in texts.items() for form, change in FORMS.items()}


# ------------------------------------------------------------------------------------------------ checks


def check(methods: Sequence[Method], text: str, around: Around, *, again: bool = True) -> EditResult:
    """Make an edit and return what came of it; anything but a sound edit or a refusal that teaches is an error."""
    wish = Wish(methods)
    made = compose.compose(wish, text, around)
    if isinstance(made, Refused):
        assert made.looked_for, made
        assert made.reason, made
        return made
    if isinstance(made, Present):
        found = [apply.detect(method, text, around=around) for method in methods]
        assert all(each in {Presence.PRESENT, Presence.PARTIAL} for each in found), found
        return made
    assert made.text != text
    if again:
        assert isinstance(compose.compose(wish, made.text, around), Present), "asked for again, it is made again"
    back = revert.undo(text, made.text, moved_on(made.text))
    assert isinstance(back, Applied), back
    assert back.text == moved_on(text), "it does not come out to the byte"
    return made


def moved_on(text: str) -> str:
    """The same file some time later: other lines above, below and between the classes."""
    newline = "\r\n" if "\r\n" in text else "\n"
    head, mark, tail = text.partition("class GPT(")
    return f"{head}later = 1  # a new line{newline}{newline}{newline}{mark}{tail}{newline}# the end{newline}"


def sets_of(methods: Sequence[Method], count: int, lots: random.Random, *, most: int = 5) -> Iterator[list[Method]]:
    for _ in range(count):
        yield lots.sample(methods, min(len(methods), lots.randint(2, most)))


def check_set(chosen: Sequence[Method], text: str, around: Around) -> EditResult:
    """Make an edit of several methods in two orders: both must come to the same."""
    made = check(chosen, text, around)
    assert compose.compose(Wish(chosen[::-1]), text, around) == made, [method.id for method in chosen]
    return made


# --------------------------------------------------------------------------------------------------- run


def upstream(checkout: Path, branch: str) -> dict[str, str]:
    """Every version of train.py on a branch of a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True).stdout

    commits = git("log", "--format=%h", branch, "--", "train.py").split()
    return {f"{branch} {commit}": git("show", f"{commit}:train.py") for commit in commits}


def train(made: dict[str, str]) -> dict[str, str]:
    """Train texts for two steps; return what was wrong with each."""
    with tempfile.TemporaryDirectory() as folder:
        names = {}
        for number, (name, text) in enumerate(made.items()):
            file = Path(folder) / f"made-{number}.py"
            file.write_bytes(text.encode())
            names[str(file)] = name
        command = [sys.executable, str(ROOT / "tests" / "two_steps.py"), *names]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {names[file]: told for file, told in map(json.loads, run.stdout.splitlines())}


def main() -> None:
    """Do the whole sweep and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", type=Path, help="a checkout of karpathy/autoresearch")
    parser.add_argument("--branch", default="exp/H100/mar8")
    parser.add_argument("--sets", type=int, default=100, help="random sets of methods for each file")
    parser.add_argument("--steps", action="store_true", help="train what was made for two steps")
    parser.add_argument("--verbose", action="store_true", help="print every refusal")
    given = parser.parse_args()
    gc.disable()  # syntax trees hold no cycles
    methods = [method for method in read_pack(ROOT / "methodpacks").methods if method.has_edit]
    around = Around(library={method.id: method for method in methods})
    texts, lots, began = files(), random.Random(0), time.perf_counter()
    texts |= upstream(given.upstream, given.branch) if given.upstream else {}
    made, refusals = {}, Counter[str]()
    for name, text in texts.items():
        told = Counter[str]()
        for chosen in [*([method] for method in methods), *sets_of(methods, given.sets, lots)]:
            label = " + ".join(method.id for method in chosen)
            answer = check_set(chosen, text, around)
            told[f"{'sets' if len(chosen) > 1 else 'methods'} {type(answer).__name__.lower()}"] += 1
            if (
                isinstance(answer, Applied)
                and (len(chosen) == 1 or len(made) % 10 == 0)
                and not name.startswith(given.branch)
            ):
                made[f"{name}: {label}"] = answer.text
            if isinstance(answer, Refused) and len(chosen) == 1:
                refusals[label] += 1
                if given.verbose:
                    print(f"    {label}: {answer.looked_for}: {answer.reason}")
        print(f"{name}: {', '.join(f'{count} {kind}' for kind, count in sorted(told.items()))}", flush=True)
    print(f"{len(texts)} files, {time.perf_counter() - began:.0f} s; refused: {dict(refusals) or 'none'}")
    if given.steps:
        wrong = {name: told for name, told in train(made).items() if told}
        for name, told in wrong.items():
            print(f"{name}: {told}")
        print(f"{len(made) - len(wrong)} of {len(made)} train")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
