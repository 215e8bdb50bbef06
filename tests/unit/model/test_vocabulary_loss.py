"""The loss without logits is the cross-entropy of the logits, value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from multimodal_gemma.model import vocabulary_loss as module
from multimodal_gemma.model.vocabulary_loss import vocabulary_loss


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(module, "_WORDS", 64)


def problem(vocabulary: int, rows: int = 7, width: int = 16, scale: float = 1.0):
    generator = torch.Generator().manual_seed(vocabulary)
    hidden = torch.randn(rows, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator) * scale
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    return hidden.requires_grad_(), weight, targets


def both(hidden, weight, targets):
    stock = functional.cross_entropy(functional.linear(hidden, weight).float(), targets, reduction="sum")
    (expected,) = torch.autograd.grad(stock, hidden)
    ours = vocabulary_loss(hidden, weight, targets)
    (found,) = torch.autograd.grad(ours, hidden)
    return ours, stock, found, expected


@pytest.mark.parametrize("vocabulary", [1, 63, 64, 65, 1000])
def test_loss_and_gradient_are_those_of_cross_entropy(vocabulary):
    ours, stock, found, expected = both(*problem(vocabulary))
    torch.testing.assert_close(ours, stock, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_logits_beyond_the_range_of_exp_neither_overflow_nor_vanish():
    hidden, weight, targets = problem(300, scale=60.0)
    with torch.no_grad():
        assert (hidden @ weight.T).abs().max() > 500  # exp overflows float32 from 89 on
    ours, stock, found, expected = both(hidden, weight, targets)
    torch.testing.assert_close(ours, stock, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("rising", [True, False], ids=["largest word last", "largest word first"])
def test_the_running_maximum_may_move_with_each_piece_or_never(rising):
    hidden, weight, targets = problem(256)
    steps = torch.arange(256.0) / 4
    weight[:, 0] = steps if rising else steps.flip(0)
    hidden = hidden.detach().index_fill(1, torch.tensor([0]), 1.0).requires_grad_()
    ours, stock, found, expected = both(hidden, weight, targets)
    torch.testing.assert_close(ours, stock, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_a_gradient_from_behind_scales_it():
    hidden, weight, targets = problem(100)
    (whole,) = torch.autograd.grad(vocabulary_loss(hidden, weight, targets), hidden)
    (seventh,) = torch.autograd.grad(vocabulary_loss(hidden, weight, targets) / 7, hidden)
    torch.testing.assert_close(seventh, whole / 7)


def test_bf16_rounds_as_the_stock_head_does():
    hidden, weight, targets = problem(1000, rows=64, width=64, scale=0.1)
    exact, _, exact_gradient, _ = both(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        ours, stock, found, expected = both(hidden, weight.bfloat16(), targets)
    assert found.dtype == torch.float32  # as the states are
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, stock, rtol=1e-3, atol=0)
    # Not further from the truth than the stock computation, which rounds each logit and its gradient too.
    assert (found - exact_gradient).norm() <= 1.1 * (expected - exact_gradient).norm()
    assert abs(ours - exact) <= 1e-3 * exact


def test_without_gradients_none_is_computed(monkeypatch):
    hidden, weight, targets = problem(100)
    computed = []
    accumulate = torch.Tensor.addmm_
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda mean, *args: computed.append(1) or accumulate(mean, *args))
    loss = vocabulary_loss(hidden.detach(), weight, targets)
    assert not computed
    torch.testing.assert_close(loss, vocabulary_loss(hidden, weight, targets))
    assert len(computed) == 2  # pieces


def test_no_supervised_token_is_no_loss():
    hidden, weight, targets = problem(100, rows=0)
    loss = vocabulary_loss(hidden, weight, targets)
    loss.backward()
    assert loss == 0
    assert hidden.grad.shape == (0, 16)


def test_a_nan_in_the_states_is_a_nan_in_the_loss():
    hidden, weight, targets = problem(100)
    with torch.no_grad():
        hidden[3, 2] = torch.nan
    assert torch.isnan(vocabulary_loss(hidden, weight, targets))


def test_nothing_of_the_vocabularys_size_is_kept():
    hidden, weight, targets = problem(1000)
    kept: list[torch.Size] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        vocabulary_loss(hidden, weight, targets)
    assert kept == [hidden.shape]


@pytest.mark.parametrize("cap", [None, 3.0], ids=["plain", "capped"])
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 19])
def test_a_head_that_learns_or_caps_its_logits_has_their_gradients_too(monkeypatch, rows, cap):
    """By the formula of Gemma 2 for the cap; in pieces of 8 rows."""
    monkeypatch.setattr(module, "_ROWS_ON_CPU", 8)
    hidden, weight, targets = problem(300, rows=rows, scale=0.5)
    weight.requires_grad_()
    logits = hidden @ weight.T
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    stock = functional.cross_entropy(logits, targets, reduction="sum")
    expected = torch.autograd.grad(stock / 3, (hidden, weight))
    ours = vocabulary_loss(hidden, weight, targets, cap)
    found = torch.autograd.grad(ours / 3, (hidden, weight))
    torch.testing.assert_close(ours, stock, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_a_gpu_compiles_is_what_is_computed_without(monkeypatch):
    """One graph for all numbers of rows; the two ways round alike."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    step = torch.compile(module._softmax, backend=counter, dynamic=True, fullgraph=True)
    for rows in (5, 8, 11):
        hidden, weight, targets = problem(300, rows=rows)
        logits = (hidden @ weight.T).detach()
        torch.testing.assert_close(step(logits, targets, None), module._softmax(logits, targets, None))
    assert counter.frame_count == 1


def test_pieces_of_rows_and_of_words_agree_in_bf16():
    hidden, weight, targets = problem(1000, rows=64, width=64, scale=0.1)
    by_words, by_rows = (
        compute(hidden.detach().bfloat16(), weight.bfloat16(), targets, (True, False), **more)
        for compute, more in ((module._by_words, {}), (module._by_rows, {"cap": None}))
    )
    torch.testing.assert_close(by_rows[0], by_words[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(by_rows[1], by_words[1], rtol=0, atol=2e-2)
