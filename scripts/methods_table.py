"""Prints docs/methods.md, the table of the bundled methods.

python scripts/methods_table.py > docs/methods.md
"""

from collections.abc import Sequence
from statistics import median

from loopgraph_mcp.code import by_role
from loopgraph_mcp.code.apply import apply_method
from loopgraph_mcp.config import bundled
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.models import (
    ByRole,
    Method,
    Present,
    SetConst,
    SetDefault,
    SetKwarg,
    SetLocal,
    SharedOutcome,
    Source,
)

HEAD = """# The bundled methods

{methods} methods in `methodpacks/`, {recipes} of them with a recipe. `scripts/methods_table.py` writes this page
from the pack, and a test compares the two.

**edit**: what the recipe changes: a constant, a value inside a function, or the structure. **sign**: of the published
gains in val_bpb, measured in five minutes on an H100: +, - or ± for both; "words" if only results from other settings
are described, ? if there are none. Each result, with its setting and source, is in the method's file.
**CPU**: mean gain in val_bpb of a few runs of the bundled trainer, five seconds each on two cores, in its `smoke`
profile (`scripts/measure_methods.py`; another seed changes the same program by {noise:.2f}). **here**: whether the
bundled trainer has it already.

| method | family | edit | sign | CPU | here | sources |
|---|---|---|---|---|---|---|"""
LINKS = {"arxiv": "https://arxiv.org/abs/{}", "github": "https://github.com/{}", "url": "{}"}


def edit_of(method: Method) -> str:
    """Return what a method's recipe touches."""
    if method.recipe is None or not method.has_edit:
        return "by hand"
    ops = [*method.recipe.ops, *(op for variant in method.recipe.variants for op in variant.ops)]
    if all(isinstance(op, SetConst) for op in ops):
        return "constant"
    values = (SetConst, SetLocal, SetDefault, SetKwarg)
    sets = [isinstance(op, values) or (isinstance(op, ByRole) and op.edit in by_role.VALUES) for op in ops]
    return "value" if all(sets) else "structure"


def sign_of(method: Method) -> str:
    """Return the signs of the gains that others measured."""
    signs = {result.gain > 0 for result in method.published if result.gain}
    if not signs:
        return "words" if method.published else "?"
    return "±" if len(signs) == 2 else "+" if True in signs else "-"


def on_cpu(method: Method) -> SharedOutcome | None:
    """Return what came of a method in short runs on a CPU."""
    return next((each for each in method.outcomes if each.device == "cpu" and each.gain_sigmas), None)


def noise(methods: Sequence[Method]) -> float:
    """Return the noise floor of those runs."""
    outcomes = filter(None, map(on_cpu, methods))
    return median((each.mean_gain or 0.0) / (each.gain_sigmas or 1.0) for each in outcomes)


def row(method: Method, program: str) -> str:
    """Return a method's line of the table."""
    here = method.recipe is not None and isinstance(apply_method(method, program, {}), Present)
    measured = on_cpu(method)
    cells = [
        f"[`{method.id}`](../methodpacks/{method.id}.toml)",
        method.family,
        edit_of(method),
        sign_of(method),
        f"{measured.mean_gain:+.3f}" if measured else "",
        "yes" if here else "",
        ", ".join(link(source) for source in method.sources),
    ]
    return f"| {' | '.join(cells)} |"


def link(source: Source) -> str:
    """Return a source as a link, by its number in arXiv where it has one."""
    name = source.ref if source.kind == "arxiv" else source.title
    return f"[{name}]({LINKS[source.kind].format(source.ref)})"


def main() -> None:
    """Print the page."""
    methods = read_pack(bundled("methodpacks")).methods
    program = (bundled("trainer") / "train.py").read_text(encoding="utf-8")
    recipes = sum(method.has_edit for method in methods)
    print(HEAD.format(methods=len(methods), recipes=recipes, noise=noise(methods)))
    for method in sorted(methods, key=lambda each: (each.family, each.id)):
        print(row(method, program))


if __name__ == "__main__":
    main()
