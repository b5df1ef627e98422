#!/usr/bin/env python3
"""Tries every method on every training program of a folder, and reports what came of it by class of program.

    scripts/sweep FOLDER                 FOLDER/CLASS/FILE.py is a program, FOLDER/CLASS/NAME/*.py one of several files
    scripts/sweep FOLDER --show METHOD   print what a method changes in each program, to be read
    scripts/sweep FOLDER --refused       print why each method does not fit

Each edit is checked: it parses, asking again says that it is there, and reverting gives the file back to the byte.
"""

import argparse
import ast
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from loopgraph_mcp.code import apply as edits
from loopgraph_mcp.code import revert as undoing
from loopgraph_mcp.code.apply import Around
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.models import Applied, EditResult, Method, Presence, Present, Refused

ROOT = Path(__file__).parent.parent


def programs(folder: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield each program's class, its name, and its files' texts by the name they are imported by."""
    for kind in sorted(each for each in folder.iterdir() if each.is_dir()):
        for entry in sorted(kind.iterdir()):
            files = sorted(entry.glob("*.py")) if entry.is_dir() else [entry] if entry.suffix == ".py" else []
            if files:
                yield kind.name, entry.name, {each.stem: each.read_text(encoding="utf-8") for each in files}


def try_method(method: Method, files: dict[str, str], library: dict[str, Method]) -> dict[str, EditResult]:
    """Return what a method answers on each file of a program, the others beside it."""
    answers: dict[str, EditResult] = {}
    for name, text in files.items():
        beside = {other: body for other, body in files.items() if other != name}
        answers[name] = edits.apply_method(method, text, {}, Around(beside, library))
    return answers


def check(method: Method, text: str, made: Applied, around: Around) -> str:
    """Return what is wrong with an edit's form, or nothing."""
    try:
        ast.parse(made.text)
    except SyntaxError as error:
        return f"does not parse: {error}"
    again = edits.apply_method(method, made.text, {}, around)
    if not isinstance(again, Present):
        told = again.changes if isinstance(again, Applied) else f"{again.looked_for}: {again.reason}"
        return f"asked again: {told}"
    if edits.detect(method, made.text, {}, around) is not Presence.PRESENT:
        return "not detected afterwards"
    back = undoing.undo(text, made.text, made.text)
    return "" if isinstance(back, Applied) and back.text == text else "not reverted to the byte"


def best(answers: dict[str, EditResult]) -> str:
    """Return what a program's files answer together."""
    kinds = [type(each) for each in answers.values()]
    return "present" if Present in kinds else "applied" if Applied in kinds else "refused"


def main() -> None:
    """Run the sweep."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--show", metavar="METHOD", help="print this method's changes; `all` for every method's")
    asked.add_argument("--refused", action="store_true", help="print why each method does not fit")
    asked.add_argument("--only", default="", help="only this class of programs")
    arguments = asked.parse_args()
    methods = read_pack(ROOT / "methodpacks").methods
    library = {method.id: method for method in methods}
    matrix: dict[str, dict[str, Counter[str]]] = {}
    counted, faults, slowest = Counter[str](), list[str](), (0.0, "")
    for kind, name, files in programs(arguments.folder):
        if arguments.only and kind != arguments.only:
            continue
        counted[kind] += 1
        for method in methods:
            start = time.perf_counter()
            answers = try_method(method, files, library)
            slowest = max(slowest, ((time.perf_counter() - start) / len(files), f"{method.id} on {kind}/{name}"))
            matrix.setdefault(method.id, {}).setdefault(kind, Counter())[best(answers)] += 1
            for file, made in answers.items():
                where = f"{kind}/{name}{'' if len(files) == 1 else f'/{file}'}: {method.id}"
                if isinstance(made, Applied):
                    around = Around({k: v for k, v in files.items() if k != file}, library)
                    if fault := check(method, files[file], made, around):
                        faults.append(f"{where}: {fault}")
                if arguments.show in {"all", method.id}:
                    show(where, files[file], made)
                if arguments.refused and isinstance(made, Refused):
                    print(f"{where}: {made.looked_for} | {made.reason}")
    report(matrix, counted)
    print(f"\nslowest: {slowest[0] * 1000:.0f} ms, {slowest[1]}")
    print(f"{len(faults)} faults of form", *faults, sep="\n  ")
    sys.exit(bool(faults))


def show(where: str, text: str, made: EditResult) -> None:
    """Print what an edit changes, or why there is none."""
    if isinstance(made, Applied):
        print(f"=== {where}")
        for line in edits.unified_diff(text, made.text, "train.py").splitlines()[2:]:
            print(f"    {line}")
    elif isinstance(made, Present):
        print(f"=== {where}: present: {made.reason}")


def report(matrix: dict[str, dict[str, Counter[str]]], counted: Counter[str]) -> None:
    """Print the table, and by class the share of pairs that an edit or a presence answers."""
    kinds = sorted(counted)
    print("| method | " + " | ".join(f"{kind} ({counted[kind]})" for kind in kinds) + " |")
    print("|---|" + "---|" * len(kinds))
    for method, row in sorted(matrix.items()):
        cells = [f"{row[kind]['applied']} / {row[kind]['present']} / {row[kind]['refused']}" for kind in kinds]
        print(f"| {method} | " + " | ".join(cells) + " |")
    shares = []
    for kind in kinds:
        total = sum((row[kind] for row in matrix.values()), Counter())
        shares.append(f"{100 * (total['applied'] + total['present']) / sum(total.values()):.0f} %")
    print("| **applied or present** | " + " | ".join(shares) + " |")


if __name__ == "__main__":
    main()
