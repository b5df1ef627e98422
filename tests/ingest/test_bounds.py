"""What others give is bounded before it is opened, parsed, computed, compared or kept."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopgraph_mcp.api.outline import map_path
from loopgraph_mcp.code import apply, hashes, outline, patch, programs, syntax
from loopgraph_mcp.errors import HistoryError, PackError, SourceError, WorkspaceError
from loopgraph_mcp.ingest import files, local, pack_texts
from loopgraph_mcp.ingest.chunk import chunk
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.ingest.parsers.model import Block, Document, Kind
from loopgraph_mcp.models import Applied
from loopgraph_mcp.ranking.mentions import methods_described, with_names
from loopgraph_mcp.runner.plain_files import NotPlainError, read_plain
from loopgraph_mcp.runner.workspace import load_workspace, reads_variable
from tests.conftest import ROOT

METHODS = read_pack(ROOT / "methodpacks").methods

# ------------------------------------------------------------------------------------------------ plain files


def _pipe(path: Path) -> None:
    os.mkfifo(path)


NOT_PLAIN: dict[str, Callable[[Path], None]] = {
    "a pipe": _pipe,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_what_is_no_plain_file_is_never_waited_for(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "train.py"
    NOT_PLAIN[kind](file)
    with pytest.raises(NotPlainError, match=f"it is {kind}.*replace it by a plain file"):
        read_plain(file)


def test_a_file_over_the_bound_is_refused_with_both_sizes(tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    file.write_bytes(b"x" * 100)
    assert read_plain(file, 100) == b"x" * 100
    with pytest.raises(NotPlainError, match="100 bytes, over the limit of 99 bytes; make it smaller"):
        read_plain(file, 99)
    assert read_plain(Path("/proc/self/status"), 2**20) > b""  # its size is 0, its content is not
    with pytest.raises(NotPlainError, match="over the limit of 10 bytes"):
        read_plain(Path("/proc/self/status"), 10)


def _declared(folder: Path) -> Path:
    (folder / "loopgraph.toml").write_text('[workspace]\ncommand = ["true"]\nprotected = ["prepare.py"]\n')
    (folder / "prepare.py").write_text("pass\n")
    return folder


@pytest.mark.parametrize("kind", ["a pipe", "a folder"])
async def test_a_program_that_is_no_plain_file_is_refused_by_each_reader(tmp_path: Path, kind: str) -> None:
    where = load_workspace(_declared(tmp_path))
    NOT_PLAIN[kind](tmp_path / "train.py")
    with pytest.raises(WorkspaceError, match=kind):
        where.read_program()
    assert not reads_variable(where, "LOOPGRAPH_SEED")
    if kind == "a pipe":
        with pytest.raises(WorkspaceError, match="a pipe"):
            await map_path(tmp_path / "train.py", (), query="", budget_tokens=300)


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_a_declaration_that_is_no_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    NOT_PLAIN[kind](tmp_path / "loopgraph.toml")
    (tmp_path / "train.py").write_text("x = 1\n")
    with pytest.raises(WorkspaceError, match=rf"loopgraph\.toml: .*{kind}"):
        load_workspace(tmp_path)


@pytest.mark.parametrize(
    "text", ["[workspace]\n" + "#" * 20_000, "x = " + "[" * 8_000, "x = " + "1" * 6_000], ids=["long", "deep", "digits"]
)
def test_a_declaration_of_any_kind_is_an_error_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "loopgraph.toml").write_text(text)
    with pytest.raises(WorkspaceError, match=r"loopgraph\.toml: "):
        load_workspace(tmp_path)


def test_a_huge_program_is_refused_with_its_size(tmp_path: Path) -> None:
    where = load_workspace(_declared(tmp_path))
    where.editable_path.write_text("#" * (2**20 + 1))
    with pytest.raises(WorkspaceError, match=r"1,048,577 bytes, over the limit of 1 MiB"):
        where.read_program()


def test_documents_histories_and_packs_are_plain_files(tmp_path: Path) -> None:
    for name, read, error in (
        ("a.md", lambda file: local.read_bytes(file, 100), SourceError),
        ("a.tsv", files.read_file, HistoryError),
        ("a.toml", pack_texts.read_file, PackError),
    ):
        _pipe(tmp_path / name)
        with pytest.raises(error, match=r"plain file"):
            read(tmp_path / name)


@pytest.mark.parametrize("begin", ['[{"loss": 1},', '{"runs": [\n{"loss": 1},', "[\n"])
def test_one_json_value_is_read_up_to_a_size_and_lines_of_them_are_not_bound_by_it(tmp_path: Path, begin: str) -> None:
    (tmp_path / "a.json").write_text(begin + " " * files.MAX_JSON_BYTES)
    with pytest.raises(HistoryError, match=r"one JSON value of 8,\d+,\d+ bytes, over the 8 MiB.*JSONL"):
        files.read_file(tmp_path / "a.json")
    (tmp_path / "a.jsonl").write_text('{"loss": 1}\n' * 700_000)
    assert files.read_file(tmp_path / "a.jsonl").startswith('{"loss"')


# ------------------------------------------------------------------------------------------------ programs


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("#" * 300_000, "300,000 characters, over the limit of 262,144"),
        ("a;" * 30_000, "60,000 words and signs, over the limit of 50,000"),
        ("x = f'" + "{a}" * 9_000 + "'", "9,000 opening braces, over the limit of 8,000"),
    ],
)
def test_a_program_that_takes_long_to_parse_is_refused_with_its_size(text: str, why: str) -> None:
    with pytest.raises(programs.TooLargeError, match=why):
        programs.parse(text)
    with pytest.raises(syntax.Unparsable, match=why):
        syntax.read(text)
    (error, *_) = outline.map_text(text).errors
    assert error.kind is outline.Kind.ERROR


def test_a_program_of_5_000_lines_is_read() -> None:
    text = "".join(f"RATE_{n} = max({n}, 2)  # a rate\n" for n in range(4_000))
    assert len(programs.parse(text).body) == 4_000


def test_a_large_program_is_not_kept_when_nobody_uses_it() -> None:
    text = "".join(f"A{n} = {n}\n" for n in range(12_000))
    held = syntax.read(text)
    assert syntax.read(text) is held
    small = syntax.read("A = 1\n")
    assert syntax.read("A = 1\n") is small
    del held
    assert text not in syntax._in_use


def test_what_is_remembered_is_bounded_by_its_characters() -> None:
    calls = list[str]()

    @programs.remembered(1_000)
    def double(text: str) -> str:
        calls.append(text)
        return text * 2

    for text in ("a" * 300, "b" * 300, "a" * 300, "c" * 300, "a" * 300, "b" * 300):
        assert double(text) == text * 2
    assert [each[0] for each in calls] == ["a", "b", "c", "b"]  # the one that was asked for least lately goes
    assert double("d" * 5_000) == double("d" * 5_000)
    assert len(calls) == 6


@pytest.mark.parametrize(
    "expression",
    ["*".join(["64**64"] * 5_000), "0x" + "f" * 50_000, "+".join(["1"] * 20_000), "64**64**64", "1 << 10**9"],
)
def test_a_number_that_takes_long_is_none(expression: str) -> None:
    try:
        node = programs.parse(expression, "eval").body
    except RecursionError:
        return
    try:
        assert hashes.number(node) is None
    except RecursionError:
        assert not hashes.equal_numbers(node, node)


@given(st.text(alphabet="0123456789+-*/<() ", max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_arithmetic_has_a_bounded_value_or_none(expression: str) -> None:
    try:
        node = programs.parse(expression, "eval").body
    except (SyntaxError, ValueError):
        return
    value = hashes.number(node)
    assert value is None or isinstance(value, float) or value.bit_length() <= 5_000


# ------------------------------------------------------------------------------------------------ diffs


_LINES = st.lists(st.sampled_from(["a\n", "b\n", "c\n", "d\n", "\n"]), max_size=30)


@given(_LINES, _LINES, _LINES, _LINES)
@settings(max_examples=200, deadline=None)
def test_a_diff_of_any_two_texts_makes_the_one_of_the_other(
    head: list[str], old: list[str], new: list[str], tail: list[str]
) -> None:
    before, after = "".join([*head, *old, *tail]), "".join([*head, *new, *tail])
    diff = apply.unified_diff(before, after, "train.py")
    assert bool(diff) is (before != after)
    if diff and before and after:
        made = patch.apply_patch(before, diff)
        assert isinstance(made, Applied)
        assert made.text == after


def test_texts_without_a_line_in_common_are_replaced_whole() -> None:
    before = "same\n" * 5 + "".join(f"a{n % 50}\n" for n in range(5_000)) + "same\n" * 5
    after = "same\n" * 5 + "".join(f"b{n % 50}\n" for n in range(5_000)) + "same\n" * 5
    diff = apply.unified_diff(before, after, "train.py")
    assert "@@ -3,5006 +3,5006 @@" in diff
    made = patch.apply_patch(before, diff)
    assert isinstance(made, Applied)
    assert made.text == after


# ------------------------------------------------------------------------------------------------ passages

_KINDS: list[Kind] = ["text", "equation", "table", "code", "list", "caption"]


@given(
    st.sampled_from(_KINDS),
    st.sampled_from(["a", "a ", "a\n", ".", ". ", "A. ", "\n", " ", "\u00e9", "|a", "x" * 900 + " ", "$"]),
    st.integers(1, 60_000),
)
@settings(max_examples=150, deadline=None)
def test_no_passage_is_large_and_no_letter_is_lost(kind: Kind, unit: str, count: int) -> None:
    text = unit * min(count, 500_000 // len(unit))
    passages = chunk(Document("", (Block("text", "It says."), Block(kind, text), Block("text", "And ends."))))
    assert max(len(each.text) for each in passages) <= 50_000
    kept = "".join(re.sub(r"\s", "", each.text) for each in passages)
    assert kept == re.sub(r"\s", "", f"It says.{text}And ends.")


@given(
    st.lists(st.sampled_from([name for each in METHODS for name in (each.name, each.id, *each.aliases)]), max_size=6)
)
@settings(max_examples=100, deadline=None)
def test_a_passage_is_searched_for_each_name_that_it_may_hold(names: list[str]) -> None:
    text = "We use " + ", then ".join(names) + "s on heads."
    all_of_them = with_names(METHODS)
    found = {each.method.id for each in all_of_them if each.pattern.search(text)}
    words = set(re.findall(r"[^\W_]+", text.casefold()))
    assert found <= {each.method.id for each in all_of_them if each.firsts & words}
    assert set(methods_described(text, all_of_them)) <= found
