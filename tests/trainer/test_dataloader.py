"""Batches: whole, in an order that a seed fixes."""

import itertools

import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")


def first(prepare, count, *, batch_size=4, seed=1, split="train"):
    loader = prepare.make_dataloader(split, batch_size, 64, seed, "cpu")
    return list(itertools.islice(loader, count))


def test_the_same_seed_gives_the_same_batches_again(prepare):
    for (x, y, epoch), (x2, y2, epoch2) in zip(first(prepare, 5), first(prepare, 5), strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
        assert epoch == epoch2 == 1


def test_another_seed_gives_another_order(prepare):
    assert not torch.equal(first(prepare, 1, seed=1)[0][0], first(prepare, 1, seed=2)[0][0])


def test_the_order_does_not_depend_on_the_batch_size(prepare):
    small = torch.cat([x for x, _, _ in first(prepare, 8, batch_size=2)])
    large = torch.cat([x for x, _, _ in first(prepare, 2, batch_size=8)])
    assert torch.equal(small, large)


def test_targets_are_inputs_one_token_on(prepare):
    x, y, _ = first(prepare, 1)[0]
    assert x.shape == y.shape == (4, 64)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert not torch.equal(x, y)


def test_an_epoch_reads_each_window_once_and_the_next_differs(prepare):
    order = [*itertools.islice(prepare.windows(6401, 64, seed=3), 260)]
    epochs = {number: [start for start, epoch in order if epoch == number] for number in (1, 2)}
    assert len(epochs[1]) in {99, 100}
    for starts in epochs.values():
        gaps = {b - a for a, b in itertools.pairwise(sorted(starts))}
        assert gaps == {64}
        assert min(starts) < 64
        assert max(starts) + 65 <= 6401
    assert epochs[1] != epochs[2]


def test_a_text_of_one_window_can_be_read(prepare):
    assert [*itertools.islice(prepare.windows(65, 64, seed=0), 2)] == [(0, 1), (0, 2)]
