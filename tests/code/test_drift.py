"""Recipes on forms of train.py that people make of it: each fits soundly, or says why it does not."""

import gc
import importlib.util
import random
from collections.abc import Iterator
from functools import partial

import pytest

from loopgraph_mcp.code.apply import Around
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.models import Applied, Refused
from tests.conftest import ROOT

_SPEC = importlib.util.spec_from_file_location("drift", ROOT / "scripts" / "drift.py")
assert _SPEC is not None
assert _SPEC.loader is not None
drift = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(drift)

METHODS = [method for method in read_pack(ROOT / "methodpacks").methods if method.has_edit]
AROUND = Around(library={method.id: method for method in METHODS})
FILES = drift.files()
SHARE = max(1, len(METHODS) // 3)  # about three recipes a form; scripts/drift.py does them all
HUNDRED = list(zip(list(FILES) * 100, drift.sets_of(METHODS, 100, random.Random(1), most=3), strict=False))
# Which share of a form's few recipes fits at least; the others must refuse. The script's optimizer is its own, so four
# recipes find no place in it; and where a name tells `q` from `k`, recipes hold on to it.
FITS = {"renamed locals": 0.3, "another attention": 0.6, "constants in a dataclass": 0.6, "constants in argparse": 0.6}


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    """Syntax trees hold no cycles; without collections, which walk them all, they are made twice as fast."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_fits_a_form_or_says_why_not(name: str) -> None:
    some = METHODS[list(FILES).index(name) % SHARE :: SHARE]
    made = [drift.check([method], FILES[name], AROUND) for method in some]
    fitting = [answer for answer in made if not isinstance(answer, Refused)]
    file, form = name.split(", ", 1)
    assert len(fitting) >= FITS.get(form, 0.9 if file == "trainer" else 0.6) * len(made), [
        each for each in made if each not in fitting
    ]


@pytest.mark.parametrize("part", range(4))
def test_a_set_of_methods_comes_to_one_text_in_any_order_or_names_the_pair(part: int) -> None:
    for number, (name, chosen) in enumerate(HUNDRED[part::4]):
        how = drift.check_set if number % 8 == 0 else partial(drift.check, again=False)  # scripts/drift.py does both
        answer = how(chosen, FILES[name], AROUND)
        if isinstance(answer, Refused):
            assert any(method.id in f"{answer.looked_for} {answer.reason}" for method in chosen), answer


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="two steps need torch")
def test_what_recipes_make_of_a_form_trains_every_parameter_and_one_that_cannot_train_is_found_out() -> None:
    lots, made = random.Random(2), dict[str, str]()
    for name in lots.sample(list(FILES), 4):
        method = lots.choice(METHODS)
        answer = drift.check([method], FILES[name], AROUND, again=False)
        made[f"{name}: {method.id}"] = answer.text if isinstance(answer, Applied) else FILES[name]
    idle = "        self.idle = nn.Parameter(torch.ones(1))\n        self.masks = {}\n"
    forgotten = FILES["trainer, as it is"].replace("        self.masks = {}\n", idle)
    loose = forgotten.replace("        if forgotten:\n", "        if False:\n")
    told = drift.train({**made, "forgotten": forgotten, "loose": loose})
    assert "add a group for idle" in told.pop("forgotten")
    assert told.pop("loose") == "no group: idle; never moved: idle"
    assert told == dict.fromkeys(made, "")
