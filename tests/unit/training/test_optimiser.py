"""Two learning rates, their schedule, and what is decayed."""

from __future__ import annotations

import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from multimodal_gemma.model import adapters, assembly
from multimodal_gemma.model.adapters import fuse
from multimodal_gemma.training import schedule
from tests.unit.training import toys


def learning(tmp_path, *overrides):
    config = toys.configuration(*overrides)
    base = toys.write_models(tmp_path, "qwen2")
    processor = toys.build_processor(base / "vision", base / "language")
    vision, language = assembly.load_vision(base / "vision"), assembly.load_language(base / "language")
    llava = assembly.assemble(vision, language, processor, config.model)
    adapters.apply_policies(llava, config.model, seed=0)
    return llava, config.training


def test_the_schedule_is_linear_up_and_linear_down():
    weight = torch.nn.Parameter(torch.zeros(1))
    stock = torch.optim.SGD([weight], lr=1.0)
    expected = get_linear_schedule_with_warmup(stock, 10, 100)
    for step in range(1, 101):
        if step <= 10:
            assert schedule.rate_factor(step, 100, 0.1) == pytest.approx(step / 10)  # the first step already learns
        else:
            assert schedule.rate_factor(step, 100, 0.1) == pytest.approx(expected.get_last_lr()[0])
        stock.step()
        expected.step()


def test_warm_up_may_be_nothing_or_everything():
    assert schedule.rate_factor(1, 10, 0.0) == 1
    assert schedule.rate_factor(10, 10, 1.0) == 1


def test_projector_and_adapters_have_their_own_rates(tmp_path):
    llava, training = learning(tmp_path)
    made = schedule.make_optimiser(llava, training, torch.device("cpu"))
    assert schedule.set_rates(made, training, 0.5) == {"projector": 5e-4, "lora": 1e-4}
    assert {group["part"]: group["lr"] for group in made.param_groups} == {"projector": 5e-4, "lora": 1e-4}
    assert sum(len(group["params"]) for group in made.param_groups) == len(adapters.trained_weights(llava))


def test_norms_and_biases_are_not_decayed(tmp_path):
    overrides = ("model.language_policy=full", "model.vision_policy=full", "training.weight_decay=0.3")
    llava, training = learning(tmp_path, *overrides)
    decay = {
        id(parameter): group["weight_decay"]
        for group in schedule.make_optimiser(llava, training, torch.device("cpu")).param_groups
        for parameter in group["params"]
    }
    for name, parameter in llava.named_parameters():
        expected = 0.0 if "norm" in name or name.endswith("bias") or "class_embedding" in name else 0.3
        assert decay[id(parameter)] == expected, name


def test_a_step_is_seen_by_what_was_computed_from_the_weights(tmp_path):
    """The fused layers keep W + s B A until a weight changes: a step that nobody notices would be lost on them."""
    llava, training = learning(tmp_path)
    made = schedule.make_optimiser(llava, training, torch.device("cpu"))
    schedule.set_rates(made, training, 1.0)
    tokens = torch.arange(6)[None]
    assert fuse(llava) == 14
    llava(input_ids=tokens).logits.sum().backward()
    made.step()
    stepped = llava(input_ids=tokens).logits
    unfused, _ = learning(tmp_path / "again")
    adapters.restore(unfused, adapters.trained_weights(llava))
    torch.testing.assert_close(stepped, unfused(input_ids=tokens).logits, rtol=0, atol=1e-5)
