import difflib

from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.code.patch import apply_patch, take_out
from loopgraph_mcp.models import Applied, Present, Refused

SOURCE = "import math\n\nLR = 0.5\nDEPTH = 4\n\ndef f(x):\n    return x * LR\n\ndef g(x):\n    return x * LR\n"


def unified(old: str, new: str, context: int = 3) -> str:
    lines = difflib.unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True), "a", "b", n=context)
    return "".join(lines)


def applied(source: str, patch: str) -> str:
    made = apply_patch(source, patch)
    assert isinstance(made, Applied), made
    return made.text


def refused(source: str, patch: str) -> Refused:
    made = apply_patch(source, patch)
    assert isinstance(made, Refused), made
    return made


def test_a_diff_is_applied() -> None:
    new = SOURCE.replace("LR = 0.5", "LR = 0.8").replace("def g", "def h")
    assert applied(SOURCE, unified(SOURCE, new)) == new


def test_wrong_line_numbers_do_not_matter() -> None:
    patch = "@@ -90,3 +95,3 @@\n-LR = 0.5\n+LR = 0.8\n DEPTH = 4\n"
    assert applied(SOURCE, patch) == SOURCE.replace("0.5", "0.8")


def test_a_hunk_without_numbers_and_with_bare_empty_lines_is_applied() -> None:
    patch = "--- a/train.py\n+++ b/train.py\n@@ @@\n DEPTH = 4\n\n-def f(x):\n+def first(x):\n"
    assert applied(SOURCE, patch) == SOURCE.replace("def f", "def first")


def test_windows_newlines_stay() -> None:
    source = SOURCE.replace("\n", "\r\n")
    assert applied(source, "@@ -3 +3 @@\n-LR = 0.5\n+LR = 0.8\n") == source.replace("0.5", "0.8")


def test_an_ambiguous_hunk_is_refused_with_its_places() -> None:
    answer = refused(SOURCE, "@@ @@\n-    return x * LR\n+    return x\n")
    assert "2 places" in answer.reason
    assert "7" in answer.reason


def test_an_ambiguous_hunk_with_the_right_number_is_applied() -> None:
    new = SOURCE[: SOURCE.rindex("    return")] + "    return x\n"
    assert applied(SOURCE, unified(SOURCE, new, context=0)) == new


def test_a_missing_line_is_refused_with_the_nearest_line() -> None:
    answer = refused(SOURCE, "@@ -1 +1 @@\n-DEPTH = 4\n-DEPTH = 5\n+DEPTH = 6\n")
    assert "does not have its lines" in answer.reason
    assert answer.nearest == ("4: DEPTH = 4",)


def test_prose_and_empty_changes_are_no_patches() -> None:
    assert "no hunk" in refused(SOURCE, "please set LR to 0.8").reason
    assert isinstance(apply_patch(SOURCE, "@@ -3 +3 @@\n-LR = 0.5\n+LR = 0.5\n"), Present)
    assert "characters" in refused(SOURCE, "x" * 500_000).reason


lines = st.lists(st.sampled_from(["a = 1", "b = 2", "    c = 3", "", "d(4)", "# é"]), min_size=1, max_size=30)


@given(lines, lines)
def test_every_diff_of_two_files_applies_to_the_first(old_lines: list[str], new_lines: list[str]) -> None:
    old, new = "\n".join(old_lines) + "\n", "\n".join(new_lines) + "\n"
    made = apply_patch(old, unified(old, new) or "none")
    if isinstance(made, Applied):
        assert made.text == new
    else:
        assert old == new


@given(st.text(), st.text())
def test_any_text_is_answered(source: str, patch: str) -> None:
    assert isinstance(apply_patch(source, patch), Applied | Present | Refused)


def test_an_applied_patch_is_taken_out_again() -> None:
    new = SOURCE.replace("LR = 0.5", "LR = 0.8").replace("DEPTH = 4\n", "").replace("def g", "EXTRA = 1\n\ndef h")
    answer = take_out(new, unified(SOURCE, new))
    assert isinstance(answer, Applied)
    assert answer.text == SOURCE
    moved = "# a later edit\n\n" + new
    answer = take_out(moved, unified(SOURCE, new))
    assert isinstance(answer, Applied)
    assert answer.text == "# a later edit\n\n" + SOURCE


def test_what_a_text_does_not_hold_is_not_taken_out() -> None:
    assert isinstance(take_out(SOURCE, "@@ @@\n-LR = 0.5\n+LR = 0.8\n"), Refused)
    assert isinstance(take_out(SOURCE, "@@ -3 +2,0 @@\n-LR = 0.7\n"), Refused)  # a deletion without context


def test_line_numbers_of_any_length_are_no_fault() -> None:
    assert isinstance(apply_patch(SOURCE, f"@@ -{'9' * 5000} +1 @@\n-LR = 0.5\n+LR = 0.8\n"), Refused)


@given(lines, lines)
def test_taking_out_a_diff_gives_back_the_text_it_was_made_of(old_lines: list[str], new_lines: list[str]) -> None:
    old, new = "\n".join(old_lines) + "\n", "\n".join(new_lines) + "\n"
    if old != new:
        answer = take_out(new, unified(old, new))
        assert isinstance(answer, Applied)
        assert answer.text == old
