"""The words for what is to be done next: one golden file for models, one for people; other tests assert kinds."""

from pathlib import Path

import pytest

from loopgraph_mcp.cli import next_steps as for_people
from loopgraph_mcp.errors import NotFoundError
from loopgraph_mcp.models import Advice, NextStep
from loopgraph_mcp.server import next_steps as for_models
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "data"
CALLS = {
    Advice.MAKE_EDIT: ("get_code_edit", {"method_id": "gqa", "retrieval_id": "ret_1"}),
    Advice.NONE_FITS: ("map_code", {}),
    Advice.SET_VALUES: ("get_code_edit", {"method_id": "set-values", "retrieval_id": "ret_1"}),
    Advice.REPLICATE_BEST: ("run_experiment", {"replicate": True}),
    Advice.BY_HAND: ("run_experiment", {"patch": "…", "method_id": "gqa"}),
    Advice.TAKE_PARTS: ("run_experiment", {"patch": "…", "description": "…"}),
    Advice.WRITE_IT: ("run_experiment", {"patch": "…", "description": "…", "method_id": "gqa"}),
    Advice.GO_ON: ("search_methods", {}),
    Advice.APPLY_WHOLE: ("get_code_edit", {"method_id": "exp_1", "apply": True}),
    Advice.RUN_EDIT: ("run_experiment", {"edit_id": "edit_1", "description": "…"}),
    Advice.READ_EARLIER: ("run_experiment", {"edit_id": "edit_1", "description": "…"}),
    Advice.RAN_BEFORE: ("run_experiment", {"edit_id": "edit_1", "replicate": True}),
    Advice.WAIT_FOR_OTHER: ("get_experiment", {"experiment_id": "exp_1"}),
    Advice.POLL: ("get_experiment", {"experiment_id": "exp_1"}),
    Advice.RUN_BASELINE: ("run_experiment", {}),
    Advice.FIX_PARENT: ("run_experiment", {}),
    Advice.USE_LEARNED: ("get_code_edit", {"method_id": "gqa"}),
    Advice.NAME_METHOD: ("run_experiment", {"method_id": "…", "replicate": True}),
    Advice.SEND_LOG: ("run_experiment", {}),
    Advice.SHOW_MORE: ("map_code", {"budget_tokens": 1600, "query": "…"}),
    Advice.CHOOSE_SOURCE: ("ingest", {"source": "2309.00001"}),
    Advice.FIND_METHODS: ("search_methods", {}),
    Advice.COUNTED: ("search_methods", {}),
    Advice.BRING_BACK: ("add_method", {"method_id": "gqa"}),
    Advice.AMEND: ("add_method", {"method_id": "gqa"}),
    Advice.MAKE_EDIT_FIRST: ("get_code_edit", {"method_id": "…"}),
    Advice.MAKE_EDIT_AGAIN: ("get_code_edit", {"method_id": "gqa"}),
    Advice.RUN_FILE: ("run_experiment", {}),
    Advice.START_RUN: ("run_experiment", {}),
    Advice.LEAVE_OUT: ("search_methods", {}),
    Advice.WAIT: ("get_experiment", {"experiment_id": "exp_1"}),
    Advice.INGEST: ("ingest", {"source": "…"}),
    Advice.LINK: ("add_method", {"method_id": "gqa"}),
}
ABOUT = {
    "experiment_id": "exp_1", "outcome": "finished: val_bpb 1.5", "seconds": "20", "runs": "2", "parent": "exp_1",
    "files": "settings.py", "passages": "chunk_1, chunk_2", "methods": "gqa", "folder": "out", "file": "train.py",
}  # fmt: skip
STEPS = [NextStep(reason, *CALLS.get(reason, ("", {})), ABOUT) for reason in Advice]


@pytest.mark.parametrize(
    ("golden", "word"), [("next_for_models.txt", for_models.word), ("next_for_people.txt", for_people.word)]
)
def test_every_step_is_worded_as_the_golden_file_says(golden: str, word: object) -> None:
    worded = "".join(f"{step.reason.value}: {word(step)}\n" for step in STEPS)  # type: ignore[operator]
    assert worded == (GOLDEN / golden).read_text(encoding="utf-8")


def test_a_person_is_told_no_call_and_a_model_no_command() -> None:
    tools = {tool for tool, _ in CALLS.values()}
    for step in STEPS:
        assert not any(tool in for_people.word(step) for tool in tools - {"ingest"})
        assert "loopgraph " not in for_models.word(step)


def test_the_way_on_stands_behind_the_first_line_of_a_refusal() -> None:
    error = NotFoundError("no edit 'x'; near\nedit_1", next_step=STEPS[list(Advice).index(Advice.MAKE_EDIT_FIRST)])
    assert for_models.refusal(error).splitlines() == [
        "no edit 'x'; near; get_code_edit(method_id=…) makes one and returns its id",
        "| edit_1",
    ]
    assert for_people.refusal(error).splitlines()[0].endswith("; `loopgraph edit …` makes one and returns its id")
    assert for_models.refusal(NotFoundError("nothing")) == "nothing"


def write(folder: Path = GOLDEN) -> None:
    """Write the golden files anew: python -c 'from tests.server.test_next_steps import write; write()'."""
    for golden, word in (("next_for_models.txt", for_models.word), ("next_for_people.txt", for_people.word)):
        text = "".join(f"{step.reason.value}: {word(step)}\n" for step in STEPS)
        (folder / golden).write_text(text, encoding="utf-8")
