import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopgraph_mcp.code import syntax
from loopgraph_mcp.code.syntax import HOLE, Source, Unparsable

SOURCE = """
import os
X = 1
if X:
    Y: int = 2
else:
    Y = 3

class A:
    def f(self, a, b=1, *, c=2, d):
        for i in range(3):
            x = g(i)
        with open(os.devnull) as handle:
            x += 1
        try:
            pass
        except OSError as error:
            z = "é🌀"; w = 5
        match x:
            case 1:
                (v := 3)
        def inner():
            x = 9
        return h.g(lambda q=7: q)

    class B:
        def f(self): pass
""".lstrip()


def expression(code: str) -> ast.expr:
    return ast.parse(code, mode="eval").body


def scope(dotted: str) -> syntax.Scope:
    (found,) = syntax.scopes(ast.parse(SOURCE), dotted)
    return found


# ---------------------------------------------------------------------------------------------- places


def test_a_scope_is_found_by_its_whole_name() -> None:
    assert isinstance(scope(""), ast.Module)
    assert scope("A.f").lineno == 9  # type: ignore[union-attr]
    assert scope("A.B.f").lineno == 26  # type: ignore[union-attr]
    assert scope("A.f.inner").lineno == 21  # type: ignore[union-attr]
    assert syntax.scopes(ast.parse(SOURCE), "f") == []
    assert syntax.scopes(ast.parse(SOURCE), "A.inner") == []


@pytest.mark.parametrize(
    ("dotted", "name", "lines"),
    [
        ("", "X", [2]),
        ("", "Y", [4, 6]),
        ("", "os", [1]),
        ("", "A", [8]),
        ("", "x", []),
        ("A.f", "x", [11, 13]),
        ("A.f", "i", [10]),
        ("A.f", "handle", [12]),
        ("A.f", "error", [16]),
        ("A.f", "w", [17]),
        ("A.f", "v", [20]),
        ("A.f", "q", []),
        ("A.f.inner", "x", [22]),
    ],
)
def test_every_way_to_bind_a_name_is_found_in_its_scope(dotted: str, name: str, lines: list[int]) -> None:
    assert syntax.bindings(scope(dotted), name) == lines


def test_a_declared_type_alone_binds_nothing() -> None:
    tree = ast.parse("X: int\nX = 1\n")
    assert syntax.bindings(tree, "X") == [2]
    assert len(syntax.assignments(tree, "X")) == 1


def test_defaults_are_found_among_all_kinds_of_parameters() -> None:
    found = {name: syntax.default_of(scope("A.f"), name) for name in ("self", "a", "b", "c", "d", "e")}
    values = {name: node.value for name, node in found.items() if isinstance(node, ast.Constant)}
    assert values == {"b": 1, "c": 2}
    assert syntax.default_of(scope("A"), "b") is None


def test_a_call_in_a_nested_block_counts_once() -> None:
    assert sorted(call.lineno for call in syntax.calls(scope("A.f"), "g")) == [11, 23]


# ----------------------------------------------------------------------------------------------- spans


@given(
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", "\ufeff"]),
    st.sampled_from(["", "# é🌀\n", "\f\n", "s = '''a\n\f\u2028é\n'''\n", "t = 1 + \\\n 2\n"]),
)
def test_the_span_of_every_node_is_its_text(newline: str, mark: str, head: str) -> None:
    source = Source(mark + (head + SOURCE).replace("\n", newline))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name | ast.Call | ast.Constant) and not isinstance(node, ast.JoinedStr):
            text = source.slice(source.span(node))
            assert ast.dump(expression(f"({text})")) == ast.dump(node).replace("Store()", "Load()")
    whole = source.spliced(syntax.Span(0, 0), "")
    assert whole == source.bom + source.text
    assert source.newline == newline


def test_a_statement_knows_whether_its_line_is_its_own() -> None:
    source = Source("@a\ndef f():\n    x = 1; y = 2  # note\n    z = 3  # note\nif f: w = 4\n")
    function = source.tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    x, y, z = function.body
    branch = source.tree.body[1]
    assert isinstance(branch, ast.If)
    assert [source.indent_of(each) for each in (function, x, y, z, branch.body[0])] == ["", "    ", None, "    ", None]
    assert [source.alone_until_line_end(each) for each in (x, y, z)] == [False, True, True]
    assert source.start(function) == 0


def test_the_nearest_lines_carry_their_numbers() -> None:
    source = Source("A = 1\n\nMATRIX_LR = 0.04  # Muon\nMATRIX_RATE = 2\nother = 5\n")
    assert source.nearest("MATRIX_LR = 0.05")[0] == "3: MATRIX_LR = 0.04  # Muon"
    assert source.nearest("class MATRIX")[:1] == ("3: MATRIX_LR = 0.04  # Muon",)
    assert source.nearest("") == ()
    assert source.nearest("§") == ()


@pytest.mark.parametrize("text", ["def f(:", "\0", "\ud800", "(" * 10_000, "x = 1\n  y = 2", "'"])
def test_a_text_that_python_cannot_read_says_so(text: str) -> None:
    with pytest.raises(Unparsable) as caught:
        Source(text)
    assert str(caught.value)
    assert "None" not in str(caught.value)


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_is_parsed_or_unparsable(text: str) -> None:
    try:
        source = Source(text)
    except Unparsable:
        return
    assert "".join(source.lines()).encode() == source.data.replace(b"\r", b"").replace(b"\n", b"")


# --------------------------------------------------------------------------------------------- meaning


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("f(a, 'b')", 'f( a,\n"b")', True),
        ("f(1)", "f(True)", False),
        ("f(1)", "f(1.0)", False),
        ("f(a)", "f(a, b)", False),
        ("[a]", "(a,)", False),
        ("f(x=a)", "f(y=a)", False),
        ("f(x=a)", "f(**a)", False),
        ("a < b", "a <= b", False),
        ("f'{a}b'", "f'{a}c'", False),
        ("1", "1.0", False),
        ("a", "a", True),
    ],
)
def test_trees_are_alike_but_for_layout(one: str, other: str, *, same: bool) -> None:
    assert syntax.alike(expression(one), expression(other)) is same
    assert syntax.alike(expression(other), expression(one)) is same


def test_holes_take_constants_and_the_current_value() -> None:
    pattern = expression(f"{HOLE}current * {HOLE}k + {HOLE}k")
    holes: dict[str, ast.expr] = {}
    assert syntax.alike(pattern, expression("f(x) * -2 + -2"), holes=holes)
    assert {name: ast.unparse(node) for name, node in holes.items()} == {"current": "f(x)", "k": "-2"}
    assert not syntax.alike(pattern, expression("f(x) * 2 + 3"), holes={})
    assert not syntax.alike(pattern, expression("f(x) * y + y"), holes={})
    assert not syntax.alike(pattern, expression("f(x) * 2 + 2"))


def test_runs_are_found_in_every_block_and_in_order() -> None:
    tree = ast.parse("x = 1\ny = 2\nif x:\n    x = 1\n    y = 2\n    z = 3\ndef f():\n    x = 1\n    y = 2\n")
    wanted = ast.parse("x = 1\ny = 2").body
    runs = syntax.runs_of(tree, wanted)
    assert [run.statements[0].lineno for run in runs] == [1, 4]
    assert syntax.runs_of(tree, []) == []
    (last,) = syntax.runs_of(tree, ast.parse("z = 3").body)
    assert last.is_behind(runs[1])
    assert not last.is_behind(runs[0])
    assert not runs[1].is_behind(last)
    (inner,) = [run for run in syntax.runs_of(tree, ast.parse("y = 2").body) if runs[1].holds(run)]
    assert inner.statements[0].lineno == 5
