"""What researchers ask is answered by the right method among the first three."""

import shutil
import tomllib
from pathlib import Path

import pytest

from loopgraph_mcp.api.loopgraph import LoopGraph
from loopgraph_mcp.config import Settings
from loopgraph_mcp.store import methods
from tests.conftest import ROOT

QUESTIONS = tomllib.loads((ROOT / "tests" / "data" / "questions.toml").read_text(encoding="utf-8"))["question"]


@pytest.fixture
async def asked(tmp_path: Path) -> list[list[str]]:
    """The first three methods for each question, each asked of a store that was asked nothing before."""

    def settings(name: str) -> Settings:
        return Settings(home=tmp_path, db_path=tmp_path / name, workspace=tmp_path / "nowhere")

    async with LoopGraph.open(settings("new.db")):
        pass
    answers = []
    for number, question in enumerate(QUESTIONS):
        shutil.copy(tmp_path / "new.db", tmp_path / f"{number}.db")
        async with LoopGraph.open(settings(f"{number}.db")) as graph:
            answer = await graph.search_methods(question["text"], limit=3)
        answers.append([hit.method_id for hit in answer.hits])
    return answers


async def test_nine_of_ten_questions_find_a_right_method_in_the_first_three(asked: list[list[str]]) -> None:
    missed = [
        f"{question['text']}: {shown}"
        for question, shown in zip(QUESTIONS, asked, strict=True)
        if not set(shown) & set(question["right"])
    ]
    assert len(QUESTIONS) >= 30
    assert len(missed) <= 0.1 * len(QUESTIONS), missed


async def test_questions_name_known_methods_and_most_methods_are_asked_for(settings: Settings) -> None:
    async with LoopGraph.open(settings) as graph:
        known = {method.id for method in await methods.all_methods(graph.db)}
    right = {each for question in QUESTIONS for each in question["right"]}
    assert right <= known
    assert len(right) >= 0.9 * len(known)
