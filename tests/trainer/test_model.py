"""The model's parts against slow and obvious versions of themselves."""

import dataclasses

import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")


def naive_attention(q, k, v, window):
    """Softmax attention in loops, over (B, H, T, D) with as many key heads as query heads."""
    out = torch.zeros_like(q)
    batch, n_head, length, width = q.shape
    for b in range(batch):
        for h in range(n_head):
            for i in range(length):
                seen = range(max(0, i - window), i + 1)
                scores = torch.stack([q[b, h, i] @ k[b, h, j] / width**0.5 for j in seen])
                weights = scores.exp() / scores.exp().sum()
                out[b, h, i] = sum(weight * v[b, h, j] for weight, j in zip(weights, seen, strict=True))
    return out


def heads(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("length", "window"), [(1, 1), (5, 2), (8, 4), (8, 8), (9, 0)])
def test_the_window_shows_a_token_itself_and_those_just_before_it(train, length, window):
    mask = train.window_mask(length, window)
    for query in range(length):
        for key in range(length):
            assert mask[query, key].item() == (query - window <= key <= query)


@pytest.mark.parametrize("window", [None, 3])
def test_attention_agrees_with_a_softmax_in_loops(train, window):
    q, k, v = (heads(2, 3, 11, 8, seed=seed) for seed in range(3))
    mask = None if window is None else train.window_mask(11, window)
    expected = naive_attention(q, k, v, 11 if window is None else window)
    torch.testing.assert_close(train.attend(q, k, v, mask), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_fewer_key_heads_act_as_if_each_were_repeated_for_its_group(train, kv_heads):
    q, k, v = heads(2, 6, 7, 8), heads(2, kv_heads, 7, 8, seed=1), heads(2, kv_heads, 7, 8, seed=2)
    mask = train.window_mask(7, 3)
    shared = [head * kv_heads // 6 for head in range(6)]
    expected = naive_attention(q, k[:, shared], v[:, shared], 3)
    torch.testing.assert_close(train.attend(q, k, v, mask), expected, rtol=1e-4, atol=1e-5)


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
    assert model._mask(0, 16).sum() < model._mask(0, 16).numel() / 2
    assert model._mask(3, 16) is None
    assert model._mask(0, 8) is None


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
