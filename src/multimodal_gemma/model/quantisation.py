"""The frozen language model in 4 bits: QLoRA (Dettmers et al., 2023), by bitsandbytes.

Each linear layer of the language model keeps NF4 codes, 64 weights to a scale, and its adapters stay in full precision.
What is trained is then trained on the rounded weights. So the model that is written has these very weights, in full
precision, with the adapters folded in: it says what was validated. The adapters on the unrounded base would be another
model, which nobody has measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import ModelConfig

_BLOCK = 64  # weights that share a scale, as QLoRA has it; the scales themselves are quantised once more


def require_possible(model: ModelConfig) -> None:
    """Check that the language model can be kept in 4 bits.

    Raises:
        InputError: it learns as a whole, or bitsandbytes is not installed.
    """
    if model.language_quantization == "none":
        return
    if model.language_policy == "full":
        raise InputError(
            "config: model.language_quantization=nf4 does not fit model.language_policy=full: weights in 4 bits do not "
            "learn. Set model.language_policy=lora, or model.language_quantization=none."
        )
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise InputError(
            "config: model.language_quantization=nf4 needs bitsandbytes, which is not installed. Run pip install "
            "'multimodal-gemma[nf4]', or set model.language_quantization=none."
        ) from None


def quantise(llava: LlavaForConditionalGeneration, compute_dtype: torch.dtype) -> None:
    """Replace the language model's linear layers by 4-bit ones, in place; embeddings and head stay as they are.

    Args:
        llava: the joined model, without adapters, on the processor; moving it moves the codes.
        compute_dtype: what weights are unpacked to for a product.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    language = llava.model.language_model
    error = weight_bytes = 0.0
    layers = _linear(language)
    for name, layer in layers:
        packed = Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=compute_dtype,
            quant_type="nf4",
            device="meta",
        )
        codes = Params4bit(layer.weight.detach(), requires_grad=False, blocksize=_BLOCK, quant_type="nf4")
        packed.weight = codes.to("cpu")
        packed.bias = layer.bias
        # Else bitsandbytes repacks the weights of some processors at the first evaluation, and rounds otherwise then.
        packed.support_avx512bf16_for_cpu = False
        weight = layer.weight.detach()
        error += float((_rounded(weight) - weight).pow(2).sum() / weight.pow(2).sum())
        weight_bytes += packed.weight.nbytes
        language.set_submodule(name, packed.eval())
    llava.is_loaded_in_4bit = True  # by which PEFT chooses its layer
    logs.get("train").info(
        f"{len(layers)} layers of the language model are kept in 4 bits, {weight_bytes / 1e6:,.1f} MB; rounding moves "
        f"their weights by {(error / len(layers)) ** 0.5:.1%} of their size"
    )


def round_weights(llava: LlavaForConditionalGeneration) -> None:
    """Give the language model's linear layers the values that their 4-bit codes stand for, in full precision."""
    for _, layer in _linear(llava.model.language_model):
        layer.weight.data = _rounded(layer.weight.detach())


def _linear(language: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in language.named_modules() if isinstance(module, nn.Linear)]


def _rounded(weight: Tensor) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(weight, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4")
    values: Tensor = dequantize_4bit(codes, state)
    return values
