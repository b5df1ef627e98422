"""Other people's words at every edge: they are words, whatever they hold, and no line of ours begins with them."""

import dataclasses
import enum
import io
import json
import logging
import re
import time
import types
import typing
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, example, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from loopgraph_mcp import logs, models
from loopgraph_mcp.api import answers
from loopgraph_mcp.cli import render
from loopgraph_mcp.cli.doctor import Check
from loopgraph_mcp.config import Settings
from loopgraph_mcp.errors import RunError
from loopgraph_mcp.runner.workspace import RESULTS_NAME, append_result, load_workspace, results_size
from loopgraph_mcp.server import pages
from loopgraph_mcp.server import render as server_render
from loopgraph_mcp.server.metrics import Metrics
from loopgraph_mcp.server.oauth import _grant
from loopgraph_mcp.server.prompts import research_loop
from loopgraph_mcp.store.chunks import Chunk
from loopgraph_mcp.store.papers import StoredChunk, StoredDocument
from loopgraph_mcp.text import plain, plain_line, plain_text, quoted, said, visible

KEYWORDS = ("Next", "next", "Verdict", "verdict", "Decision", "Note", "Before", "Now", "Recipe", "Source", "Plateau")
FORGED = re.compile(rf"^\s*(?:{'|'.join(KEYWORDS)}):\s*EVIL", re.MULTILINE)
BREAKS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\n\n", "\n\t "]
BREAKS += ["\x1b[2K\r", "\x1b]0;x\x07\n"]
COMMANDS = ["\x1b[31m", "\x1b]8;;http://evil\x1b\\", "\x9b2J", "\u202e", "\u2066", "\u200b", "\x00", "\x07", "\ud800"]
COMMANDS += ["[/x]", "[bold]", "[/]", "\\", "\\[", ":bomb:", "%s", "{}", "\t", "```", "| ", "\U000e0041", "\ufe0f"]


@st.composite
def foreign(draw: st.DrawFn) -> str:
    """What somebody writes who wants a line of it taken for one of ours; EVIL follows nothing but a keyword."""
    junk = st.lists(st.sampled_from([*COMMANDS, "a", " ", "word " * 30]) | st.text(max_size=8), max_size=4).map("".join)
    forged = f"{draw(st.sampled_from(KEYWORDS))}: EVIL"
    before = draw(st.just("") | st.tuples(junk, st.sampled_from(BREAKS)).map("".join))
    return before + forged + draw(junk.map(lambda words: words.replace("EVIL", "")))


def is_plain(shown: str, *, tabs: bool = False) -> None:
    """Nothing that cannot be seen but line ends, and no line that begins as ours and was not written by us."""
    wrong = {each for each in shown if unicodedata.category(each) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}
    assert wrong <= ({"\n", "\t"} if tabs else {"\n"}), shown
    assert not FORGED.search(shown), shown


OURS = {"next_step", "kind", "status", "stage", "chunk_id", "chunk_ids", "undone_by", "nearest_recipe", "understood"}


def made(kind: Any, words: str, name: str = "") -> Any:
    """A value of a type in which all text that somebody else may have written is some words."""
    origin, inside = typing.get_origin(kind), [each for each in typing.get_args(kind) if each is not type(None)]
    if kind is str:
        return "ours" if name in OURS or name.endswith("_id") else words
    if origin in {typing.Union, types.UnionType}:
        return made(inside[0], words, name)
    if origin in {list, tuple}:
        each = made(inside[0], words, name) if inside else words
        return (
            origin([each, each])
            if origin is list or Ellipsis in inside or len(inside) == 1
            else tuple(made(part, words, name) for part in inside)
        )
    if origin is dict:
        return {made(inside[0], words, name): made(inside[1], words, name)}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(iter(kind))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{each.name: made(hints[each.name], words, each.name) for each in dataclasses.fields(kind)})
    return {bool: False, int: 1, float: 0.5}[kind]


def variants(answer: Any) -> list[Any]:
    """An answer, and where an edit can be missing the one without it."""
    if isinstance(answer, answers.EditAnswer):
        return [answer, dataclasses.replace(answer, edit_id=None)]
    if isinstance(answer, answers.IngestAnswer):
        return [answer, dataclasses.replace(answer, kind="choice")]
    if isinstance(answer, answers.SearchAnswer):
        return [dataclasses.replace(answer, note="ours")]
    if isinstance(answer, answers.ImportAnswer):  # what a row is understood as is one of three
        return [dataclasses.replace(answer, rows=[dataclasses.replace(row, understood="whole") for row in answer.rows])]
    if isinstance(answer, answers.PackCheckAnswer):
        rows = [dataclasses.replace(each, fits=dict.fromkeys(each.fits, "refused")) for each in answer.methods]
        return [dataclasses.replace(answer, methods=rows)]
    if isinstance(answer, answers.ExperimentAnswer):
        return [
            answer,
            dataclasses.replace(answer, state=models.RunState.DONE),
            dataclasses.replace(answer, state=models.RunState.RUNNING),
        ]
    return [answer]


WORDED: list[tuple[Any, Callable[[Any], str]]] = [
    (answers.SearchAnswer, lambda answer: server_render.search(answer, "detailed")),
    (answers.EditAnswer, server_render.edit),
    (answers.CodeMapAnswer, server_render.code_map),
    (answers.ExperimentAnswer, server_render.experiment),
    (answers.ExperimentAnswer, server_render.progress),
    (answers.RecordAnswer, server_render.record),
    (answers.IngestAnswer, server_render.ingest),
    (answers.MethodAnswer, server_render.method),
    (answers.TraceAnswer, server_render.trace),
]


@pytest.mark.parametrize(("kind", "word"), WORDED, ids=lambda each: getattr(each, "__name__", "words"))
@limits(max_examples=60, deadline=None)
@given(words=foreign())
def test_no_field_of_a_tools_answer_forges_a_line(kind: Any, word: Callable[[Any], str], words: str) -> None:
    for answer in variants(made(kind, words)):
        is_plain(word(answer), tabs=kind is answers.EditAnswer)


@limits(max_examples=60, deadline=None)
@given(words=foreign())
def test_no_field_of_a_resource_forges_a_line(words: str) -> None:
    method = models.Method(
        "gqa", words, words, words, words, (words,), (models.Source("arxiv", words, words),),
        (made(models.PublishedResult, words),), (made(models.Knob, words),), None, (),
        (made(models.SharedOutcome, words),),
    )  # fmt: skip
    is_plain(pages.method(method, [Chunk("paper", words, words, words, words)]))
    is_plain(pages.passage(Chunk("paper", words, words, words, words)))
    document = made(StoredDocument, words)
    is_plain(pages.paper(dataclasses.replace(document, id=words), [StoredChunk("chunk_1", words, words)], 0))
    is_plain(pages.log("exp_1", words, at=0, end=5, size=10))
    is_plain(research_loop(words, words))


SHOWN: list[tuple[Any, Callable[[Any], None]]] = [
    (answers.SearchAnswer, render.show_search),
    (answers.EditAnswer, render.show_edit),
    (answers.CodeMapAnswer, render.show_map),
    (answers.ExperimentAnswer, render.show_experiment),
    (answers.ExperimentAnswer, lambda answer: render.console.print(render.results_table([answer]))),
    (answers.BestResult, render.show_best),
    (answers.IngestAnswer, render.show_ingest),
    (answers.MethodAnswer, render.show_method),
    (answers.TraceAnswer, render.show_trace),
    (answers.PackExportAnswer, render.show_export),
    (answers.PackCheckAnswer, render.show_pack_check),
    (Check, lambda check: render.show_checks([check])),
    (answers.ImportAnswer, lambda answer: render.show_imports([answer], [], details=True)),
    (answers.ImportAnswer, lambda answer: render.show_imports([answer, answer], [], details=False)),
]


@pytest.mark.parametrize(("kind", "show"), SHOWN, ids=lambda each: getattr(each, "__name__", "shown"))
@limits(max_examples=40, deadline=None)
@given(words=foreign())
def test_no_field_of_an_answer_reaches_a_terminal_as_a_command(
    kind: Any, show: Callable[[Any], None], words: str
) -> None:
    for answer in variants(made(kind, words)):
        with render.console.capture() as captured:
            show(answer)
        is_plain(captured.get(), tabs=kind is answers.EditAnswer)


@limits(max_examples=60, deadline=None)
@given(words=foreign())
def test_a_refusal_is_its_own_line_and_quotes_the_rest(words: str) -> None:
    for refusal in (words, f"{words}: lies outside", f"the patch does not fit; the nearest lines are\n{words}"):
        is_plain(said(refusal))
    with render.errors.capture() as captured, pytest.raises(typer.Exit):
        render.end_with([RunError(words)])
    is_plain(captured.get())


@limits(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=foreign(), metric=foreign())
def test_a_row_of_results_is_one_line_of_its_columns(workspace: Path, words: str, metric: str) -> None:
    where = dataclasses.replace(load_workspace(workspace), metric=metric)
    (workspace / RESULTS_NAME).unlink(missing_ok=True)
    for _ in range(2):
        append_result(
            where,
            {"commit": "abc1234", metric: "0.9", "memory_gb": "0.0", "status": "keep", "description": words},
            begun=results_size(where),
        )
    rows = (workspace / RESULTS_NAME).read_bytes().decode("utf-8").splitlines()
    assert len(rows) == 3
    assert [len(row.split("\t")) for row in rows] == [5, 5, 5]
    assert rows[1].startswith("abc1234\t0.9\t")
    is_plain("\n".join(rows), tabs=True)


@pytest.mark.parametrize("form", ["text", "json"])
@limits(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=foreign())
def test_a_record_of_the_log_is_one_line(settings: Settings, form: typing.Literal["text", "json"], words: str) -> None:
    written = io.StringIO()
    handler = logs.handler_of(dataclasses.replace(settings, log_format=form), written)
    error = RunError(words)
    record = logging.LogRecord("loopgraph", logging.WARNING, "", 0, "Invalid Host header: %s", (words,), None)
    record.fields = {"token": words}
    handler.handle(record)
    failed = logging.LogRecord("loopgraph", logging.ERROR, "", 0, "failed", (), (RunError, error, None))
    handler.handle(failed)
    is_plain(written.getvalue())
    lines = written.getvalue().rstrip("\n").split("\n")
    if form == "json":
        assert len(lines) == 2
        told = json.loads(lines[0])
        is_plain(told["message"] + " " + told["token"])
    else:
        assert [line.startswith(("WARNING loopgraph: ", "ERROR loopgraph: ", "  | ")) for line in lines] == [
            True
        ] * len(lines)


@limits(max_examples=60, deadline=None)
@given(words=foreign())
def test_a_label_and_a_subject_are_one_word_of_a_line(words: str) -> None:
    page = Metrics([]).page([(words, words)]).decode("utf-8", "replace")
    is_plain(page)
    grant = _grant({"scope": "loopgraph:read", "sub": words, "exp": 1})
    assert grant is not None
    assert re.fullmatch(r"oauth:[\w.@:|/+#-]+", grant.name, re.ASCII)


def test_subjects_that_look_alike_have_names_of_their_own() -> None:
    subjects = ["ada", "ada\u200b", "ada\n", "ada ", "ada#1", "a" * 101, "a" * 102, "ada\x1b[31m"]
    grants = [_grant({"scope": "loopgraph:read", "sub": each, "exp": 1}) for each in subjects]
    assert len({each.name for each in grants if each is not None}) == len(subjects)


@example(words="word " * 61)  # a space where it is cut
@given(words=foreign() | st.text())
def test_plain_text_is_plain_and_stays_so(words: str) -> None:
    for make in (visible, plain_text, plain_line):
        once = make(words)
        assert make(once) == once
        assert not set(once) & {"\x1b", "\x9b", "\r", "\u202e", "\u200b"}
    assert plain({"a": [words]}) == plain(plain({"a": [words]}))


def test_words_of_any_language_stay_as_they_are() -> None:
    for words in (
        "Größe ändern",
        "学習率を下げる",
        "уменьшить шаг",
        "β₂ = 0.95 → 0.99",
        "naïve café",
        "a 🙂 b",
        "x  y",
    ):
        assert visible(words) == words


def test_hostile_text_is_made_plain_in_time() -> None:
    for words in (
        "\x1b[" * 500_000,
        "\x1b]" * 500_000,
        "\x1b]0;" + "a" * 2_000_000,
        "\x9d" * 1_000_000,
        "\n" * 1_000_000,
    ):
        began = time.perf_counter()
        plain_line(words)
        quoted(words)
        assert time.perf_counter() - began < 2
