"""MuonAdamW against torch's AdamW and a singular value decomposition."""

import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")


def stack(n, rows, columns):
    return torch.randn(n, rows, columns, generator=torch.Generator().manual_seed(rows * columns))


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 16), (2, 16, 64), (2, 128, 32)])
@pytest.mark.parametrize("bf16", [False, True])
def test_orthogonalize_comes_near_the_polar_factor(train, monkeypatch, shape, bf16):
    monkeypatch.setattr(train, "AUTOCAST", bf16)
    matrices = stack(*shape)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    got = train.orthogonalize(matrices, 5).float()
    # Five steps bring each singular value above a thousandth of the norm to within 15 % of one, and turn
    # nothing: the factors of the result are those of the input.
    singular = (u.mT @ got @ vh.mT).diagonal(dim1=-2, dim2=-1)
    usable = s / s.norm(dim=-1, keepdim=True) > (5e-3 if bf16 else 1e-3)
    assert usable.float().mean() > 0.9
    assert (singular[usable] - 1).abs().max() < (0.2 if bf16 else 0.15)
    rest = u.mT @ got @ vh.mT - torch.diag_embed(singular)
    assert rest.abs().max() < (0.1 if bf16 else 1e-3)


def test_orthogonalize_does_not_see_the_scale_of_its_input(train, monkeypatch):
    monkeypatch.setattr(train, "AUTOCAST", False)
    matrices = stack(2, 24, 48)
    torch.testing.assert_close(
        train.orthogonalize(matrices * 1e3, 5), train.orthogonalize(matrices, 5), rtol=1e-3, atol=1e-3
    )


def test_adamw_steps_agree_with_torch(train):
    start = stack(1, 7, 5)[0]
    mine, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    hyper = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizer = train.MuonAdamW([{"kind": "adamw", "params": [mine], **hyper}])
    reference = torch.optim.AdamW([theirs], **hyper)
    for step in range(20):
        mine.grad = stack(1, 7, 5)[0] * (step - 7) + step
        theirs.grad = mine.grad.clone()
        optimizer.step()
        reference.step()
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def muon_step(train, start, grad, **changes):
    p = torch.nn.Parameter(start.clone())
    group = {"lr": 0.02, "momentum": 0.9, "beta2": 0.95, "ns_steps": 5, "weight_decay": 0.0}
    optimizer = train.MuonAdamW([{"kind": "muon", "params": [p], **group, **changes}])
    p.grad = grad
    optimizer.step()
    return p.detach()


@pytest.mark.parametrize(("rows", "columns"), [(16, 64), (64, 16), (32, 32)])
def test_a_muon_step_has_the_norm_of_the_polar_factor_and_even_rows(train, rows, columns):
    start, grad = torch.zeros(rows, columns), stack(1, rows, columns)[0]
    moved = -muon_step(train, start, grad) / (0.02 * max(1.0, rows / columns) ** 0.5)
    assert moved.norm().item() == pytest.approx(min(rows, columns) ** 0.5, rel=0.06)
    assert (moved * grad).sum() > 0
    norms = moved.norm(dim=1 if rows >= columns else 0)
    assert norms.max() / norms.min() < 1.001


def test_decay_touches_only_weights_that_the_update_shrinks_too(train):
    start, grad = stack(1, 16, 24)[0], stack(1, 24, 16)[0].mT
    plain = muon_step(train, start, grad)
    extra = muon_step(train, start, grad, weight_decay=0.5) - plain
    agree = (start - plain) * start >= 0
    torch.testing.assert_close(extra, torch.where(agree, -0.02 * 0.5 * start, 0.0), rtol=1e-3, atol=1e-6)
    assert 0.2 < agree.float().mean() < 0.8


def test_momentum_carries_a_gradient_on(train):
    p = torch.nn.Parameter(torch.zeros(8, 8))
    group = {"kind": "muon", "lr": 0.1, "momentum": 0.9, "beta2": 0.95, "ns_steps": 5, "weight_decay": 0.0}
    optimizer = train.MuonAdamW([{"params": [p], **group}])
    p.grad = stack(1, 8, 8)[0]
    optimizer.step()
    after_one = p.detach().clone()
    p.grad = torch.zeros(8, 8)
    optimizer.step()
    assert torch.nn.functional.cosine_similarity(after_one.flatten(), (p - after_one).flatten(), dim=0) > 0.99


def test_matrices_of_one_group_do_not_mix(train):
    start, grads = stack(2, 8, 12), stack(2, 12, 8).mT
    together = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    group = {"kind": "muon", "lr": 0.02, "momentum": 0.9, "beta2": 0.95, "ns_steps": 5, "weight_decay": 0.1}
    optimizer = train.MuonAdamW([{"params": together, **group}])
    for p, grad in zip(together, grads, strict=True):
        p.grad = grad
    optimizer.step()
    for p, matrix, grad in zip(together, start, grads, strict=True):
        torch.testing.assert_close(p.detach(), muon_step(train, matrix, grad, weight_decay=0.1))


def test_a_parameter_in_no_group_stops_the_run_and_is_named(train):
    model = train.GPT(train.build_model_config(2))
    model.transformer.h[0].attn.temperature = torch.nn.Parameter(torch.ones(3))
    model.bigram = torch.nn.Embedding(4, 4)
    with pytest.raises(ValueError, match=r"h\.0\.attn\.temperature.*|bigram\.weight") as refused:
        model.setup_optimizer()
    assert "bigram.weight" in str(refused.value)
    assert "attn.temperature" in str(refused.value)


def test_each_parameter_is_in_one_group_and_knows_its_first_rate(train):
    model = train.GPT(train.build_model_config(4))
    optimizer = model.setup_optimizer()
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert all(group["initial_lr"] == group["lr"] > 0 for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        assert group["kind"] == "adamw" or len({p.shape for p in group["params"]}) == 1
