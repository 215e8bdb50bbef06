"""How much goes into a stream: what a GPU would answer is played, the decisions are worked by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from multimodal_gemma.errors import InputError
from multimodal_gemma.training import device
from tests.unit.training import toys


def chosen(monkeypatch, holds: int, *, longest: int = 100, **training) -> tuple[int, list[int]]:
    """The budget that is found where a GPU holds so many conversations at once, and what was tried."""
    tried: list[int] = []

    def fits(_loss, count, *_):
        tried.append(count)
        return count <= holds

    monkeypatch.setattr(device, "_fits", fits)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    split = SimpleNamespace(lengths=np.array([7, longest, 20]))
    given = toys.configuration("training.batch_size=40", "training.batch_tokens=auto").training
    for name, value in training.items():
        setattr(given, name, value)
    here = SimpleNamespace(device=SimpleNamespace(type="cuda"), gather=lambda tensor: tensor)
    with monkeypatch.context() as patch:
        patch.setattr(device.torch, "tensor", lambda values, **_: np.array(values))
        found = device.choose_budget(given, here, None, "varlen", SimpleNamespace(split=lambda _: split))
    return found, tried


def test_a_whole_step_is_tried_first_and_is_enough(monkeypatch):
    assert chosen(monkeypatch, 99) == (4000, [40])


def test_less_is_tried_until_it_fits(monkeypatch):
    assert chosen(monkeypatch, 12) == (1000, [40, 20, 10])


def test_a_conversation_that_fits_nowhere_is_said(monkeypatch):
    with pytest.raises(InputError, match=r"not even one conversation of 100 positions fits .*gradient_checkpointing"):
        chosen(monkeypatch, 0)


def test_long_conversations_in_large_steps_stop_somewhere(monkeypatch):
    found, _ = chosen(monkeypatch, 10**9, longest=1000, batch_size=10_000)
    assert found <= device.LARGEST


def test_a_number_is_taken_as_it_is(monkeypatch):
    assert chosen(monkeypatch, 0, batch_tokens=512) == (512, [])


def test_on_a_processor_streams_are_smaller_where_the_model_is_wide():
    """Their widest activation stays below what the C library keeps between two uses, and so does all that they take."""
    here, split = SimpleNamespace(device=torch.device("cpu")), SimpleNamespace(lengths=np.array([700, 30]))
    given = toys.configuration("training.batch_tokens=auto").training
    for width, positions in ((256, 4096), (2048, 2048), (1 << 20, 700)):
        text = SimpleNamespace(intermediate_size=width)
        loss = SimpleNamespace(llava=SimpleNamespace(config=SimpleNamespace(text_config=text)))
        found = device.choose_budget(given, here, loss, "sdpa", SimpleNamespace(split=lambda _: split))
        assert found == positions


def test_a_conversation_longer_than_the_budget_is_named_with_what_to_set():
    split = SimpleNamespace(lengths=np.array([50, 900, 20]), ids=("a", "long one", "b"))
    dataset, given = SimpleNamespace(split=lambda _: split), toys.configuration().training
    given.batch_tokens = 900
    assert device.choose_budget(given, None, None, "sdpa", dataset) == 900
    given.batch_tokens = 899
    with pytest.raises(InputError, match=r"long one takes 900 positions.*Set training.batch_tokens=900"):
        device.choose_budget(given, None, None, "sdpa", dataset)
