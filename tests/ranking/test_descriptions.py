import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopgraph_mcp.ingest import packs
from loopgraph_mcp.models import Move
from loopgraph_mcp.ranking.descriptions import is_baseline, is_rerun, read_moves, stripped
from loopgraph_mcp.ranking.knobs import FAMILIES


@pytest.mark.parametrize(
    ("description", "moves"),
    [
        ("embedding LR 0.8 to 0.9", [Move("embed_lr", 1, 0.9, 0.8)]),
        ("embedding_lr 0.6->0.8 — val_bpb regressed 1.883->1.949", [Move("embed_lr", 1, 0.8, 0.6)]),
        ("Embedding LR 0.6\u21920.8", [Move("embed_lr", 1, 0.8, 0.6)]),
        ("Decrease EMBEDDING_LR from 0.74 to 0.60", [Move("embed_lr", -1, 0.6, 0.74)]),
        ("unembedding LR 0.004 to 0.008", [Move("unembed_lr", 1, 0.008, 0.004)]),
        ("matrix_lr 0.03", [Move("matrix_lr", 0, 0.03)]),
        ("add 5% LR warmup", [Move("warmup", 1, 0.05)]),
        ("reduce batch to 2^14 with device_batch=8", [Move("batch_size", -1, 2.0**14), Move("device_batch", 0, 8.0)]),
        ("double batch size to 32K tokens", [Move("batch_size", 1, 32.0 * 1024)]),
        ("halve the batch", [Move("batch_size", -1)]),
        ("MLP 4x->3x", [Move("mlp_ratio", -1, 3.0, 4.0)]),
        ("Reduce ADAM_BETAS beta2 from 0.95 to 0.90", [Move("adam_beta2", -1, 0.9, 0.95)]),
        ("Change ADAM_BETAS from (0.85, 0.99) to (0.9, 0.99)", [Move("adam_beta1", 1, 0.9, 0.85)]),
        ("replace ReLU^2 with GELU", [Move("activation", 0, word="gelu")]),
        ("GELU instead of SiLU", [Move("activation", 0, word="gelu")]),
        ("SwiGLU MLP (gated linear unit with SiLU)", [Move("activation", 0, word="silu")]),
        ("window SSSL->SSLL", [Move("window", 1, 0.5, 0.25, "ssll")]),
        ("all full attention", [Move("window", 1, 1.0)]),
        ("weight tying (shared wte/lm_head)", [Move("tying")]),
        ("remove value embeddings", [Move("value_embed", -1)]),
        (
            "Set WARMUP_RATIO from 0.0 to 0.05 and FINAL_LR_FRAC from 0.0 to 0.1 for gentle warmup and cooldown",
            [Move("warmup", 1, 0.05, 0.0), Move("final_lr", 1, 0.1, 0.0)],
        ),
        (
            "Reduce MATRIX_LR from 0.029 to 0.027 with the SLSL window pattern to leverage the increased steps",
            [Move("matrix_lr", -1, 0.027, 0.029)],
        ),
        ("agent1: Higher Matrix LR 0.04\u21920.08", [Move("matrix_lr", 1, 0.08, 0.04)]),
        ("torch.compile", [Move("systems")]),
        ("hybrid config averaging", [Move("other")]),
    ],
)
def test_a_description_tells_its_moves(description: str, moves: list[Move]) -> None:
    found = read_moves(description)
    if len(moves) > 1:
        found = found[: len(moves)]
    assert list(found) == moves


@pytest.mark.parametrize(
    ("description", "moves"),
    [
        ("5 % warmup with 15-min budget", [Move("warmup", 0, 0.05)]),
        ("5% warmup with 15-min budget no cap", [Move("warmup", 0, 0.05)]),
        ("warmup 5 percent in 300 s", [Move("warmup", 0, 0.05)]),
        ("remove logit cap with 15-min budget", [Move("softcap", -1)]),
        ("batch size 64 -> 128 in 5 min", [Move("batch_size", 1, 128.0, 64.0)]),
        ("weight decay for 600 s", [Move("weight_decay")]),
        ("8 layers 512 wide", [Move("depth", 0, 8.0)]),
        ("6 layers -> 8", [Move("depth", 1, 8.0, 6.0)]),
        ("8x MLP expansion (118.6M params)", [Move("mlp_ratio", 0, 8.0)]),
        ("14x512 x 8x MLP", [Move("mlp_ratio", 0, 8.0)]),
        (
            "reduce MATRIX_LR from 0.04 to 0.02 with weight decay",
            [Move("matrix_lr", -1, 0.02, 0.04), Move("weight_decay")],
        ),
        ("EMA weight averaging (decay=0.99)", [Move("optimizer")]),
        ("depthwise conv (kernel=4)", [Move("attn_variant")]),
        ("beta2 0.99 instead of 0.95", [Move("adam_beta2", 1, 0.99, 0.95)]),
        ("matrix_lr 3e-4 (was 1e-4)", [Move("matrix_lr", 1, 3e-4, 1e-4)]),
        ("Reduce TOTAL_BATCH_SIZE from default (16384) to 8192", [Move("batch_size", -1, 8192.0, 16384.0)]),
        ("Adam \u03b21 0.8\u21920.9", [Move("adam_beta1", 1, 0.9, 0.8)]),
        ("lr=0.001,bs=64", [Move("lr_general", 0, 0.001), Move("batch_size", 0, 64.0)]),
        ("6S+2L window", [Move("window", 0, 0.25)]),
    ],
)
def test_a_value_is_next_to_its_knob(description: str, moves: list[Move]) -> None:
    found = {move.knob: (move.value, move.old) for move in read_moves(description)}
    assert found == {move.knob: (move.value, move.old) for move in moves}


@pytest.mark.parametrize(
    ("description", "moves"),
    [
        ("MLP output scale 0.5", [Move("branch_scale", 0, 0.5)]),
        ("scale the MLP output", [Move("branch_scale")]),
        ("experts 4 -> 8", [Move("experts", 1, 8.0, 4.0)]),
        ("MoE with 4 experts, top-2 routing", [Move("experts", 0, 4.0), Move("router")]),
        ("sequence length curriculum", [Move("seq_curriculum")]),
        ("pre-norm instead of post-norm", [Move("norm_place")]),
        ("extra RMSNorm after attention", [Move("norm_place")]),
        ("short window = quarter of the context", [Move("window_size", -1, 0.25)]),
        ("half-context windows", [Move("window_size", -1, 0.5)]),
        ("short window 512 (quarter context)", [Move("window_size", 0, 512.0)]),
        (
            "embedding betas (0.8,0.95)->(0.9,0.99)",
            [Move("group_beta1", 1, 0.9, 0.8), Move("group_beta2", 1, 0.99, 0.95)],
        ),
        ("lm_head beta2 0.95->0.99", [Move("group_beta2", 1, 0.99, 0.95)]),
        ("constant weight decay (remove decay schedule)", [Move("wd_schedule")]),
        ("weight decay 0.2 -> 0.1", [Move("weight_decay", -1, 0.1, 0.2)]),
        ("no weight decay", [Move("weight_decay", -1)]),
        ("muon momentum ramp 300 -> 600", [Move("momentum_schedule", 1, 600.0, 300.0)]),
        ("no muon momentum warmup", [Move("momentum_schedule", -1)]),
        ("swap relu^2 for gelu", [Move("activation", 0, word="gelu")]),
        ("swap in gelu for relu2", [Move("activation", 0, word="gelu")]),
        ("GELU in place of ReLU", [Move("activation", 0, word="gelu")]),
    ],
)
def test_rarer_knobs_are_read(description: str, moves: list[Move]) -> None:
    assert list(read_moves(description)) == moves


@pytest.mark.parametrize(
    ("description", "moves"),
    [
        ("reduce the batch size to 75% of its value", [Move("batch_size", -1)]),
        ("batch size to 1/4 of the default", [Move("batch_size")]),
        ("decrease the batch size by a factor of 2", [Move("batch_size", -1)]),
        ("increase depth by 2", [Move("depth", 1)]),
        ("2x batch size", [Move("batch_size", 1)]),
        ("5x higher LR for the embedding", [Move("lr_general", 1)]),
        ("0.5x learning rate", [Move("lr_general", -1)]),
    ],
)
def test_a_factor_says_the_way_and_no_value(description: str, moves: list[Move]) -> None:
    assert list(read_moves(description)) == moves


@pytest.mark.parametrize(
    ("done", "outcome"),
    [
        ("lr 0.02", " -> val_bpb 0.981"),
        ("depth 10", " (0.9812, -0.003)"),
        ("depth 10", ": 0.9812"),
        ("softcap 20", " \u2192 0.9781"),
        ("warmdown 0.6", " => 0.9777"),
        ("matrix_lr 0.05", ", 0.9785"),
        ("weight decay 0.1", " val_bpb=0.9812"),
        ("weight decay", ": val_bpb from 0.99 to 0.98"),
        ("GQA", " (0.9812)"),
        ("label smoothing", " 3% better"),
        ("qk norm", " +0.003"),
        ("z-loss 1e-4", " 0.02 bpb lower"),
        ("deeper model", ", 50.3M params, loss 3.21"),
    ],
)
def test_a_result_is_no_value(done: str, outcome: str) -> None:
    assert read_moves(done + outcome) == read_moves(done)


@pytest.mark.parametrize(
    "outcome", ["worse", "NEW BEST", "regressed 1.883->1.949", "improved to 1.2", "no improvement"]
)
@pytest.mark.parametrize("done", ["matrix_lr 0.04->0.06", "softcap 15 to 20"])
def test_what_came_of_it_is_left_out(done: str, outcome: str) -> None:
    for told in (f"{done} — {outcome}", f"{done} - {outcome}", f"{done} ({outcome}, worse)", f"{done}; {outcome}"):
        assert read_moves(told) == read_moves(done)
        assert outcome.casefold().split()[0] not in stripped(told)


def test_baselines_and_reruns_are_told_from_changes() -> None:
    assert all(map(is_baseline, ("baseline", "Baseline (M5)", "baseline — depth=4", "agent1: Concurrent baseline", "")))
    assert not any(map(is_baseline, ("depth 4 to 5, beats baseline", "warmup")))
    assert all(map(is_rerun, ("seed 42->137", "change random seed to 1", "rerun best", "new seed")))
    assert all(map(is_rerun, ("verification run", "Final verification run of the best", "noise check", "same config")))
    assert not any(map(is_rerun, ("warmup 0.1", "embedding LR 0.1", "lower the LR to verify the trend")))


@given(st.text(max_size=600))
def test_any_text_is_read_and_read_alike_again(text: str) -> None:
    moves = read_moves(text)
    assert moves
    assert moves == read_moves(text)
    assert all(move.knob in FAMILIES and move.direction in {-1, 0, 1} for move in moves)


@given(
    st.sampled_from(["MATRIX_LR", "embedding LR", "weight_decay", "warmdown", "softcap", "adam beta2"]),
    st.floats(0.001, 50).map(lambda value: float(f"{value:.3g}")),
    st.floats(0.001, 50).map(lambda value: float(f"{value:.3g}")),
    st.sampled_from(["{k} {a:g} to {b:g}", "{k} {a:g}->{b:g}", "Change {k} from {a:g} to {b:g}", "{k}: {a:g} → {b:g}"]),
)
def test_a_knob_from_one_value_to_another_is_read_in_any_form(knob: str, a: float, b: float, form: str) -> None:
    (move,) = read_moves(form.format(k=knob, a=a, b=b))
    assert (move.old, move.value) == (a, b)
    assert a == b or move.direction == (1 if b > a else -1)


@given(
    st.sampled_from(["matrix LR", "weight_decay", "warmdown", "batch size", "depth"]),
    st.floats(0.3, 9).map(lambda value: f"{value:.4f}").filter(lambda text: text[-1] != "0"),
    st.sampled_from(
        [" -> {r}", ": {r}", " = {r}", " ({r})", " ({r}, -0.001)", " gave {r}", " val_bpb {r}", " in 15 min: {r}"]
    ),
)
def test_a_metric_behind_a_knob_is_never_its_value(knob: str, result: str, form: str) -> None:
    assert all(move.value is None for move in read_moves(knob + form.format(r=result)))


def test_knobs_belong_to_the_families_of_packs() -> None:
    assert set(FAMILIES.values()) - {"other", "systems"} <= set(packs.FAMILIES)
