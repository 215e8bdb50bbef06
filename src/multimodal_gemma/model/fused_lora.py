"""Low-rank adapters at the price of the layer they sit on.

PEFT computes an adapted layer as W x + s B (A x): besides W's product two small ones, forward, and four backward, with
a pass over the activations for each. Without dropout the same function is (W + s B A) x, one product, and its gradient
flows back through that sum in one product too; A and B get theirs from rank-r products, so W's own gradient, which
nobody needs, is never computed. The sum is formed once an optimiser step.

Exact up to rounding in float32. In bf16 the sum would round the adapters away while they are small, so PEFT's own path
stays there.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional

_ADAPTER = "default"  # PEFT's name for the one adapter that there is


def fuse(model: nn.Module) -> int:
    """Give every adapted layer of a float32 model the fused path, in place.

    The tree of modules and the names of weights stay PEFT's. A layer with dropout, or in another dtype, keeps its path.

    Args:
        model: holds PEFT's layers, on its device.

    Returns:
        How many layers were fused.
    """
    found = 0
    for module in model.modules():
        if isinstance(module, LoraLinear) and _fits(module):
            module.forward = functools.partial(_Sum(module), module.forward)
            found += 1
    return found


def _fits(layer: LoraLinear) -> bool:
    weights = (layer.base_layer.weight, layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight)
    return (
        list(layer.active_adapters) == [_ADAPTER]
        and type(layer.base_layer) is nn.Linear
        and isinstance(layer.lora_dropout[_ADAPTER], nn.Identity)
        and not layer.use_dora.get(_ADAPTER, False)
        and not layer.base_layer.weight.requires_grad
        and all(weight.dtype == torch.float32 for weight in weights)
    )


class _Sum:
    """The sum of one layer's weight and its adapter, formed anew when one of them has changed."""

    def __init__(self, layer: LoraLinear) -> None:
        self._layer = layer
        self._made_of: tuple[int, ...] = ()
        self._sum = torch.empty(0)

    def __call__(self, stock: Any, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self._layer
        if layer.disable_adapters or layer.merged or torch.is_autocast_enabled(inputs.device.type) or args or kwargs:
            result: Tensor = stock(inputs, *args, **kwargs)
            return result
        weight, bias = layer.base_layer.weight, layer.base_layer.bias
        down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight  # (r, in), (out, r)
        scale = layer.scaling[_ADAPTER]
        versions = (weight._version, down._version, up._version, weight.data_ptr())
        if versions != self._made_of:
            with torch.no_grad():
                self._sum = torch.addmm(weight, up, down, alpha=scale)  # (out, in)
            self._made_of = versions
        outputs: Tensor = _Adapted.apply(inputs, self._sum, down, up, scale)
        return outputs if bias is None else outputs + bias


class _Adapted(torch.autograd.Function):
    """y = (W + s B A) x, with gradients for x, A and B."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, total: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(inputs, total, down, up)
        ctx.scale = scale
        return functional.linear(inputs, total)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, total, down, up = ctx.saved_tensors
        flat, out = inputs.flatten(0, -2), gradient.flatten(0, -2)  # (n, in), (n, out)
        behind = gradient @ total if ctx.needs_input_grad[0] else None
        for_down = for_up = None
        if ctx.needs_input_grad[2]:
            for_down = ((out @ up) * ctx.scale).T @ flat  # (r, in)
        if ctx.needs_input_grad[3]:
            for_up = out.T @ ((flat @ down.T) * ctx.scale)  # (out, r)
        return behind, None, for_down, for_up, None
