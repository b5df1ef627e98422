from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.config import bundled
from loopgraph_mcp.errors import HistoryError
from loopgraph_mcp.ingest.histories import read_history
from loopgraph_mcp.ingest.history_rows import doubts, read_rows
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.models import Decision, OutcomeKind

METHODS = read_pack(bundled("methodpacks")).methods
HEADER = "commit\tval_bpb\tmemory_gb\tstatus\tdescription"
words = st.sampled_from(
    ["baseline", "halve the batch", "SwiGLU", "rerun with another seed", "matrix LR 0.04 to 0.03", "x"]
)
rows = st.tuples(
    st.sampled_from(["aaaaaa1", "aaaaaa2", "aaaaaa3", "", "lost"]),
    st.sampled_from(["1.0", "0.9", "1.5", "0.000000", "nan", "n/a", "-0.5"]),
    st.sampled_from(["keep", "discard", "crash", "baseline", "finished", ""]),
    words,
)
PROGRAMS = {"aaaaaa1": "LR = 1\n", "aaaaaa2": "LR = 2\n", "aaaaaa3": "LR = 2  # the same\n"}


@given(st.lists(rows, min_size=1, max_size=12))
def test_rows_are_compared_with_earlier_ones_that_have_a_metric(table: list[tuple[str, str, str, str]]) -> None:
    lines = [f"{commit}\t{value}\t1\t{status}\t{description}" for commit, value, status, description in table]
    with suppress(HistoryError):
        history = read_history("\n".join([HEADER, *lines]), name="x.tsv")
        made = read_rows(history, PROGRAMS, METHODS, editable="train.py")
        assert [each.row for each in made] == list(history.rows)
        for place, each in enumerate(made):
            assert (each.kind is OutcomeKind.FINISHED) == (each.row.metric_value is not None)
            assert each.kind is not None or each.notes
            if each.parent is None:
                assert not each.diff
                continue
            parent = made[each.parent]
            assert each.parent < place
            assert parent.row.segment == each.row.segment
            assert parent.row.metric_value is not None
            assert parent.decision is Decision.KEEP or parent.row.is_baseline
            assert bool(each.diff) == bool(each.text and parent.text and each.text != parent.text)
        assert all(note for note in doubts(history, made))
