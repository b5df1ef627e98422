import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.config import bundled
from loopgraph_mcp.ingest.packs import read_pack
from loopgraph_mcp.ranking.mentions import methods_tried

METHODS = read_pack(bundled("methodpacks")).methods


@pytest.mark.parametrize(
    ("description", "method_ids"),
    [
        ("halve the batch", ["smaller-batch"]),
        ("reduce TOTAL_BATCH_SIZE to 2^14 DEVICE_BATCH_SIZE=8", ["smaller-batch"]),
        ("double the batch size", []),  # its knob, the other way
        ("matrix LR 0.04 → 0.03: improved", ["muon-lr"]),
        ("multi-query attention (n_kv_head=1)", ["mqa"]),
        ("GQA: fewer KV heads", ["gqa"]),
        ("SwiGLU and matrix LR 0.04 to 0.03", ["swiglu", "muon-lr"]),
        ("label smoothing", ["label-smoothing"]),
        ("dropout 0.1", []),
        ("batch size schedule", ["batch-size-schedule"]),
        ("add gradient clipping max_norm=1.0", ["gradient-clipping"]),
        ("remove gradient clipping", []),
        ("cautious weight decay", ["cautious-weight-decay"]),
        ("weight decay 0.1", []),
        ("init scale 0.7 to 0.68", ["init-scale"]),
        ("depth 9 aspect_ratio 57", ["depth-width-ratio"]),
        ("warmdown 0.5 to 0.7", ["warmdown-length"]),
        ("FINAL_LR_FRAC 0.0 to 0.05", ["final-lr-floor"]),
        ("parallel attn+MLP", []),  # nobody calls it so in the pack
    ],
)
def test_a_description_names_the_methods_it_tries(description: str, method_ids: list[str]) -> None:
    assert sorted(methods_tried(description, METHODS).method_ids) == sorted(method_ids)


@pytest.mark.parametrize(
    ("description", "doubt"),
    [
        ("SwiGLU and depth 12", "also changes depth to 12: not counted for swiglu"),
        ("batch 131K", "does not say which way: not counted for smaller-batch"),
    ],
)
def test_what_is_in_doubt_is_counted_for_none_and_said(description: str, doubt: str) -> None:
    tried = methods_tried(description, METHODS)
    assert (tried.method_ids, tried.doubt) == ((), doubt)


@given(st.text(max_size=200))
def test_any_text_names_known_methods_only(description: str) -> None:
    tried = methods_tried(description, METHODS)
    assert set(tried.method_ids) <= {method.id for method in METHODS}
    assert not (tried.method_ids and tried.doubt)
