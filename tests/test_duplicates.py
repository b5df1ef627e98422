import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopgraph_mcp.duplicates import number, program_hash, tree_hash

SOURCE = '"""Train."""\n\nLR = 0.8  # fast\n\n\ndef f(x):\n    """Say."""\n    return (x, LR)\n'


@pytest.mark.parametrize(
    "same",
    [
        SOURCE.replace("  # fast", ""),
        SOURCE.replace("\n", "\r\n"),
        "\ufeff" + SOURCE,
        SOURCE.replace("0.8", ".80"),
        SOURCE.replace("    ", "\t"),
        SOURCE.replace("Say.", "Say it otherwise."),
        SOURCE.replace('    """Say."""\n', ""),
        SOURCE.replace('"""Train."""\n', "# Train\n"),
        SOURCE.replace("(x, LR)", "x, LR"),
        SOURCE.replace("LR = 0.8", "LR = (\n    0.8\n)"),
    ],
)
def test_comments_layout_and_docstrings_do_not_count(same: str) -> None:
    assert same != SOURCE
    assert program_hash(same) == program_hash(SOURCE)


@pytest.mark.parametrize(
    "other",
    [
        SOURCE.replace("0.8", "0.9"),
        SOURCE.replace("0.8", "'0.8'"),
        SOURCE.replace("(x, LR)", "[x, LR]"),
        SOURCE.replace("def f(x)", "def f(x=None)"),
        SOURCE.replace("def f(x)", "def f(*x)"),
        SOURCE.replace("def f", "async def f"),
        SOURCE + "f(1)\n",
        SOURCE.replace("    return", "    'said'\n    return"),
    ],
)
def test_every_change_of_the_program_counts(other: str) -> None:
    assert other != SOURCE
    assert program_hash(other) != program_hash(SOURCE)


def test_a_body_that_is_a_docstring_alone_is_no_other_program_with_another_docstring() -> None:
    assert program_hash('class A(E):\n    """One."""\n') == program_hash('class A(E):\n    """Two."""\n')
    assert program_hash('"""One."""\n') == program_hash('"""Two."""\n') == program_hash("")


def test_a_text_that_does_not_parse_is_known_by_its_words() -> None:
    assert program_hash("def f(:\n    x") == program_hash("def  f(:\n\tx\n")
    assert program_hash("def f(:") != program_hash("def g(:")


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_has_a_hash(source: str) -> None:
    assert len(program_hash(source)) == 64


@given(st.lists(st.sampled_from(SOURCE.splitlines(keepends=True)), max_size=12))
@settings(max_examples=100, deadline=None)
def test_a_program_written_anew_is_the_same(lines: list[str]) -> None:
    source = "".join(lines)
    try:
        again = ast.unparse(ast.parse(source))
    except SyntaxError:
        return
    assert program_hash(again) == program_hash(source)


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("2**18", 262144),
        ("1 << 18", 262144),
        ("-3", -3),
        ("(1 + 2) * 4 // 5 - 6 / 4", 0.5),
        (".8", 0.8),
        ("True", None),
        ("'1'", None),
        ("x + 1", None),
        ("1 % 2", None),
        ("1 / 0", None),
        ("1 << -1", None),
        ("1 << 1000", None),
        ("1.0 << 2", None),
        ("(2**64)**2", None),
        ("(-8)**0.5", None),
        ("((-8)**0.5)**2", None),
    ],
)
def test_numbers_are_calculated_without_running_code(code: str, value: float | None) -> None:
    found = number(ast.parse(code, mode="eval").body)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (SOURCE.replace("  # fast", ""), True),
        (SOURCE.replace("\n", "\r\n"), True),
        ("\ufeff" + SOURCE, True),
        (SOURCE.replace("LR = 0.8", "LR = (\n    0.8\n)"), True),
        (SOURCE.replace("Say.", "Say it otherwise."), False),
        (SOURCE.replace('    """Say."""\n', ""), False),
        (SOURCE.replace("0.8", "0.9"), False),
    ],
)
def test_docstrings_count_where_a_program_may_read_them(other: str, same: bool) -> None:  # noqa: FBT001
    assert (tree_hash(other.encode()) == tree_hash(SOURCE.encode())) is same


@pytest.mark.parametrize("source", [b"def f(:", b"x = 1\0", b"(" * 5_000, b"# coding: nonsense\n", b"\xff\xfe"])
def test_what_does_not_parse_has_no_tree(source: bytes) -> None:
    assert tree_hash(source) is None
