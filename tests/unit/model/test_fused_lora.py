"""The fused path of an adapted layer is PEFT's, at one product: outputs, gradients, and what happens after a step."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from multimodal_gemma.model.adapters import fuse


def adapted(*, dropout: float = 0.0, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20, bias=bias), nn.GELU(), nn.Linear(20, 8, bias=bias)).to(dtype)
    settings = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["0", "2"])
    model = get_peft_model(model, settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    return model


def step(model: nn.Module, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    inputs = inputs.clone().requires_grad_()
    model(inputs).pow(2).mean().backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {**found, "inputs": inputs.grad}


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_pefts_also_after_the_weights_changed(bias):
    inputs = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(1))
    stock, fused = adapted(bias=bias), adapted(bias=bias)
    assert fuse(fused) == 2
    for _ in range(3):
        expected, found = step(stock, inputs), step(fused, inputs)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
        for model in (stock, fused):
            learnt = [weight for weight in model.parameters() if weight.requires_grad]
            optimiser = torch.optim.SGD(learnt, lr=1e-3)
            optimiser.step()
            optimiser.zero_grad()
    torch.testing.assert_close(fused(inputs), stock(inputs), rtol=1e-4, atol=1e-4)


def test_a_layer_with_dropout_or_in_half_precision_keeps_pefts_path():
    assert fuse(adapted(dropout=0.1)) == 0
    assert fuse(adapted(dtype=torch.bfloat16)) == 0


def test_weights_keep_their_names_and_switched_off_adapters_stay_off():
    stock, fused = adapted(), adapted()
    fuse(fused)
    inputs = torch.randn(2, 12)
    assert stock.state_dict().keys() == fused.state_dict().keys()
    with stock.disable_adapter(), fused.disable_adapter():
        torch.testing.assert_close(fused(inputs), stock(inputs))
    torch.testing.assert_close(fused.merge_and_unload()(inputs), stock(inputs), rtol=1e-5, atol=1e-5)
