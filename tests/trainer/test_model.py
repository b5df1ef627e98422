"""The model's parts against slow and obvious versions of themselves."""

import dataclasses

import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")


def naive_attention(q, k, v, window):
    """Softmax attention in loops, over (B, T, H, D) with as many key heads as query heads."""
    out = torch.zeros_like(q)
    batch, length, n_head, width = q.shape
    for b in range(batch):
        for h in range(n_head):
            for i in range(length):
                seen = range(max(0, i - window), i + 1)
                scores = torch.stack([q[b, i, h] @ k[b, j, h] / width**0.5 for j in seen])
                weights = scores.exp() / scores.exp().sum()
                out[b, i, h] = sum(weight * v[b, j, h] for weight, j in zip(weights, seen, strict=True))
    return out


def dense_attention(q, k, v, *, causal, window_size):
    """What flash_attn_func of FlashAttention 3 promises, by a dense mask: (B, T, H, D), windows (left, right)."""
    assert causal
    assert window_size[1] == 0
    position = torch.arange(q.size(1))
    distance = position[:, None] - position
    hidden = (distance < 0) | (distance > window_size[0])
    k, v = (t.repeat_interleave(q.size(2) // k.size(2), dim=2) for t in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.size(-1) ** 0.5
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def heads(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("length", "window"), [(1, 1), (5, 2), (8, 4), (8, 8), (9, 0)])
def test_the_window_shows_a_token_itself_and_those_just_before_it(train, length, window):
    mask = train.window_mask("sdpa", length, window, "cpu")
    if mask is None:  # the kernel's own causal mask
        assert window >= length
        mask = torch.ones(length, length, dtype=torch.bool).tril()
    for query in range(length):
        for key in range(length):
            assert mask[query, key].item() == (query - window <= key <= query)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # slow, and right
@pytest.mark.parametrize("kind", ["sdpa", "flex", "flash3"])
@pytest.mark.parametrize("window", [0, 3, 11])
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_every_attention_agrees_with_a_softmax_in_loops(train, monkeypatch, kind, window, kv_heads):
    monkeypatch.setattr(train, "flash_attn_func", dense_attention, raising=False)
    q, k, v = heads(2, 11, 6, 16), heads(2, 11, kv_heads, 16, seed=1), heads(2, 11, kv_heads, 16, seed=2)
    shared = [head * kv_heads // 6 for head in range(6)]
    expected = naive_attention(q, k[:, :, shared], v[:, :, shared], window)
    found = train.attend(q, k, v, train.window_mask(kind, 11, window, "cpu"), kind)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [0, 3, 11])
def test_the_gradients_of_attention_agree_too(train, window):
    q, k, v = (heads(2, 11, n, 16, seed=n).requires_grad_() for n in (6, 2, 3))
    v = v[:, :, :2]
    shared = [0, 0, 0, 1, 1, 1]
    expected = naive_attention(q, k[:, :, shared], v[:, :, shared], window)
    found = train.attend(q, k, v, train.window_mask("sdpa", 11, window, "cpu"), "sdpa")
    weight = heads(2, 11, 6, 16, seed=3)
    mine, theirs = (torch.autograd.grad((y * weight).sum(), (q, k, v)) for y in (found, expected))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_an_older_flash_attention_that_returns_its_log_sums_too_is_understood(train, monkeypatch):
    def with_log_sums(*args, **options):
        return dense_attention(*args, **options), None

    monkeypatch.setattr(train, "flash_attn_func", with_log_sums, raising=False)
    q, k, v = (heads(1, 5, 2, 8, seed=seed) for seed in range(3))
    expected = dense_attention(q, k, v, causal=True, window_size=(2, 0))
    torch.testing.assert_close(train.attend(q, k, v, 2, "flash3"), expected)


def test_rotary_is_a_turn_in_the_complex_plane(train):
    model = train.GPT(train.build_model_config(2))
    cos, sin = model._precompute_rotary_embeddings(10, 8, base=500)
    x = heads(2, 10, 3, 8)
    turned = train.apply_rotary(x, cos, sin)
    for position in range(10):
        for pair in range(4):
            angle = position * 500 ** (-2 * pair / 8)
            before = torch.complex(x[:, position, :, pair], x[:, position, :, pair + 4])
            after = torch.complex(turned[:, position, :, pair], turned[:, position, :, pair + 4])
            turn = torch.polar(torch.tensor(1.0), torch.tensor(angle))
            torch.testing.assert_close(after, before * turn, rtol=1e-5, atol=1e-5)


def small_model(train, **changes):
    torch.manual_seed(0)
    shape = {"sequence_len": 16, "n_head": 4, "n_kv_head": 4} | changes
    model = train.GPT(dataclasses.replace(train.build_model_config(4), **shape))
    model.init_weights()
    with torch.no_grad():  # what starts at zero would hide the rest of the model
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("pattern", ["L", "SL", "SSSL"])
def test_no_token_sees_a_later_one(train, kv_heads, pattern):
    model = small_model(train, n_kv_head=kv_heads, window_pattern=pattern)
    idx = torch.arange(32).view(2, 16)
    changed = idx.clone()
    changed[:, 9:] += 100
    before, after = model(idx), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_a_short_window_hides_what_lies_before_it(train):
    model = small_model(train, window_pattern="S")
    assert model.windows == [8, 8, 8, 16]
    assert model.masks[16, 8].sum() < model.masks[16, 8].numel() / 2
    assert model.masks[16, 16] is None


def test_a_shorter_input_wants_its_masks_made_first(train):
    model = small_model(train, window_pattern="S")
    idx = torch.arange(16).view(1, 16)
    with pytest.raises(KeyError):
        model(idx[:, :4])
    model.add_masks(4)
    torch.testing.assert_close(model(idx[:, :4]), model(idx)[:, :4])


def loss_and_gradients(model, call):
    idx = torch.arange(32).view(2, 16)
    model.zero_grad(set_to_none=True)
    loss = call(idx, idx.roll(-1, 1))
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_and_sdpa_are_one_and_the_same_model(train):
    idx = torch.arange(32).view(2, 16)
    with torch.no_grad():
        sdpa, flex = (small_model(train, attention=kind, n_kv_head=2)(idx) for kind in ("sdpa", "flex"))
    torch.testing.assert_close(sdpa, flex, rtol=1e-3, atol=1e-4)


def test_the_model_is_traced_in_one_piece_and_stays_the_same(train):
    model = small_model(train)
    traced = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    for mine, theirs in zip(loss_and_gradients(model, traced), loss_and_gradients(model, model), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_traced_in_one_piece_too(train):
    model = small_model(train, attention="flex")
    idx = torch.arange(32).view(2, 16)
    with torch.no_grad():  # it has no backward on a CPU
        traced = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")(idx)
        torch.testing.assert_close(traced, model(idx), rtol=1e-3, atol=1e-4)


def test_a_pattern_of_other_letters_is_refused(train):
    with pytest.raises(ValueError, match="made of S and L"):
        small_model(train, window_pattern="SXL")


def test_key_heads_that_do_not_divide_the_heads_are_refused(train):
    with pytest.raises(ValueError, match="n_kv_head must divide"):
        small_model(train, n_kv_head=3)


def test_every_parameter_learns(train):
    model = small_model(train, n_kv_head=2)
    idx = torch.arange(32).view(2, 16)
    model(idx, idx.roll(-1, 1)).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_losses_without_reduction_average_to_the_loss(train):
    model = small_model(train)
    idx = torch.arange(32).view(2, 16)
    each = model(idx, idx, reduction="none")
    assert each.numel() == 32
    torch.testing.assert_close(each.mean(), model(idx, idx))


def test_logits_stay_under_the_softcap(train):
    model = small_model(train)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    assert model(torch.arange(16).view(1, 16)).abs().max() <= 15


def test_a_new_model_predicts_every_token_alike(train):
    torch.manual_seed(0)
    model = train.GPT(train.build_model_config(2))
    model.init_weights()
    loss = model(torch.arange(64).view(1, 64), torch.arange(64).view(1, 64)).item()
    assert loss == pytest.approx(torch.tensor(float(train.VOCAB_SIZE)).log().item(), abs=0.01)
