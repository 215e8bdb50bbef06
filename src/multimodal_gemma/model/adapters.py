"""Which part of the joined model learns, and how what it learnt is kept and merged.

Low-rank adapters (Hu et al., 2021) sit on the language model alone: a list of layer names would also catch the vision
encoder's q_proj, so a regular expression names them. The projector is saved beside them, for one is useless without
the other.

Without dropout they need not cost more than the layer that they sit on (`fuse`). PEFT computes an adapted layer as
W x + s B (A x): besides W's product two small ones, forward, and four backward, with a pass over the activations for
each. The same function is (W + s B A) x, one product, and its gradient flows back through that sum in one product too;
A and B get theirs from rank-r products, so W's own gradient, which nobody needs, is never computed. The sum is formed
once an optimiser step. Exact up to rounding in float32; in bf16 the sum would round the adapters away while they are
small, so PEFT's own path stays there.
"""

from __future__ import annotations

import functools
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from multimodal_gemma import files
from multimodal_gemma.errors import InputError
from multimodal_gemma.model import folders
from multimodal_gemma.model.folders import quiet

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import ModelConfig

_ADAPTER = "default"  # PEFT's name for the one adapter that there is


def apply_policies(llava: LlavaForConditionalGeneration, model: ModelConfig, *, seed: int) -> PeftModel | None:
    """Say which weights learn, and add adapters to the language model where the policy is LoRA.

    Args:
        llava: the joined model; adapters are put into it in place.
        model: policies and adapter settings.
        seed: of the adapters' initial weights.

    Returns:
        The PEFT view of `llava` where there are adapters, else None.

    Raises:
        InputError: nothing would learn, or no layer has a target's name.
    """
    llava.requires_grad_(False)
    peft_model = None
    if model.language_policy == "lora":
        peft_model = _add_lora(llava, model, seed)
    elif model.language_policy == "full":
        llava.model.language_model.requires_grad_(True)
        llava.lm_head.requires_grad_(True)
    llava.model.multi_modal_projector.requires_grad_(model.projector_policy == "trained")
    llava.model.vision_tower.requires_grad_(model.vision_policy == "full")
    if not any(parameter.requires_grad for parameter in llava.parameters()):
        raise InputError(
            "config: model.vision_policy, model.projector_policy and model.language_policy are all frozen: nothing "
            "would learn. Set one of them otherwise."
        )
    return peft_model


def lora_pattern(targets: list[str]) -> str:
    """Return the regular expression that names `targets` in the language model and nowhere else."""
    return rf".*language_model\..*\.({'|'.join(re.escape(target) for target in targets)})"


def _add_lora(llava: LlavaForConditionalGeneration, model: ModelConfig, seed: int) -> PeftModel:
    linear = {
        name.rpartition(".")[2]
        for name, module in llava.model.language_model.named_modules()
        if isinstance(module, nn.Linear)
    }
    unknown = sorted(set(model.lora.targets) - linear)
    if unknown or not model.lora.targets:
        raise InputError(
            f"config: model.lora.targets={model.lora.targets} does not fit this language model"
            + (f": it has no layer {unknown[0]!r}" if unknown else "")
            + f". Its linear layers: {', '.join(sorted(linear))}."
        )
    settings = LoraConfig(
        r=model.lora.rank,
        lora_alpha=model.lora.alpha,
        lora_dropout=model.lora.dropout,
        target_modules=lora_pattern(model.lora.targets),
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by an old name
        torch.manual_seed(seed)
        peft_model = get_peft_model(llava, settings)
    assert isinstance(peft_model, PeftModel)
    peft_model.peft_config["default"].base_model_name_or_path = folders.source_name(model.language)
    return peft_model.eval()  # new layers start in training mode, with dropout


def start_adapter(peft_model: PeftModel, folder: Path, model: ModelConfig) -> None:
    """Give fresh adapters the weights of trained ones.

    Args:
        peft_model: gets them.
        folder: what `save_adapter` wrote.
        model: the configuration's section that `peft_model` was made by.

    Raises:
        InputError: the adapters are of another rank, scale or language model, or sit on other layers.
    """
    theirs = files.read_json(folder / "adapter_config.json", "model.adapter")
    alpha = theirs.get("lora_alpha")
    if (theirs.get("r"), alpha) != (model.lora.rank, model.lora.alpha):
        raise InputError(
            f"model.adapter: its rank is {theirs.get('r')} and its alpha {alpha}, this run asks for {model.lora.rank} "
            f"and {model.lora.alpha}. Set model.lora.rank={theirs.get('r')} and model.lora.alpha={alpha}."
        )
    bases = [str(theirs.get("base_model_name_or_path")), folders.source_name(model.language)]
    # A repository of a hub has an owner; a mirror or a folder may hold either model: then the shapes decide.
    if all(base.count("/") == 1 for base in bases) and bases[0] != bases[1]:
        raise InputError(
            f"model.adapter: it was trained on {bases[0]}, and model.language is {bases[1]}. Give an adapter of that "
            "model, or train it there."
        )
    weights = load_file(folder / "adapter_model.safetensors")
    own = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    if different := _differences(weights, own):
        raise InputError(
            f"model.adapter: {len(different)} of its weights do not fit this language model and model.lora.targets, "
            f"first {different[0]}. Give an adapter of the same model and layers."
        )
    set_peft_model_state_dict(peft_model, weights)


def part_of(name: str) -> str:
    """Return which learning rate a parameter of the joined model has: "lora", "projector", "language" or "vision"."""
    if "lora_" in name:
        return "lora"
    if "multi_modal_projector." in name:
        return "projector"
    return "vision" if "vision_tower." in name else "language"


def trained_weights(llava: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """Return what learns, by name: views, not copies."""
    return {name: weight.detach() for name, weight in llava.named_parameters() if weight.requires_grad}


@torch.no_grad()
def restore(llava: LlavaForConditionalGeneration, weights: dict[str, Tensor]) -> None:
    """Write `trained_weights` of an equally configured model back.

    Raises:
        InputError: names or shapes differ.
    """
    own = trained_weights(llava)
    if different := _differences(weights, own):
        raise InputError(
            f"train: the saved weights do not fit this model: {len(different)} differ, first {different[0]}. "
            "Delete the checkpoints and train again."
        )
    for name, weight in own.items():
        weight.copy_(weights[name])


def _differences(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> list[str]:
    """Say which weights are missing on one side or have another shape."""
    one, two = ({name: tuple(weight.shape) for name, weight in of.items()} for of in (theirs, ours))
    return [
        f"{name} ({one.get(name, 'none')} there, {two.get(name, 'none')} here)"
        for name in sorted(one.keys() | two.keys())
        if one.get(name) != two.get(name)
    ]


def save_adapter(llava: LlavaForConditionalGeneration, peft_model: PeftModel | None, folder: Path) -> None:
    """Write the adapters as PEFT does, and the projector as projector.safetensors beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    if peft_model is not None:
        peft_model.save_pretrained(folder, save_embedding_layers=False)  # else PEFT asks a hub whether the table grew
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        (folder / "adapter_model.safetensors").chmod(0o644)
    projector = llava.model.multi_modal_projector.state_dict()
    with files.atomic_path(folder / "projector.safetensors") as temporary:
        save_file({name: tensor.contiguous() for name, tensor in projector.items()}, temporary)


def merge(llava: LlavaForConditionalGeneration, peft_model: PeftModel | None) -> LlavaForConditionalGeneration:
    """Fold the adapters into the language model's own weights; the result is a stock model again."""
    if peft_model is not None:
        merged = peft_model.merge_and_unload()
        assert isinstance(merged, LlavaForConditionalGeneration)
        return merged
    return llava


def save_merged(llava: LlavaForConditionalGeneration, processor_folder: Path, folder: Path) -> None:
    """Write a stock model folder: merged weights, configuration and the processor's files as they were.

    Args:
        llava: a merged model.
        processor_folder: a saved LlavaProcessor.
        folder: what AutoModelForImageTextToText and AutoProcessor then load.
    """
    with quiet():
        llava.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)  # transformers makes them readable by the owner alone
    for path in sorted(processor_folder.iterdir()):
        if path.is_file():
            with files.atomic_path(folder / path.name) as temporary:
                temporary.write_bytes(path.read_bytes())


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
