"""The projector between encoder and language model: it starts from nothing, or from an earlier training."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from multimodal_gemma.errors import InputError

_PROJECTOR_FILES = ("projector.safetensors", "adapter/projector.safetensors", "model.safetensors")


def fresh_projector(config: LlavaConfig, seed: int) -> LlavaMultiModalProjector:
    """Return a projector of Xavier-uniform weights (Glorot and Bengio, 2010) and zero biases."""
    projector = LlavaMultiModalProjector(config)
    generator = torch.Generator().manual_seed(seed)
    for layer in (projector.linear_1, projector.linear_2):
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
    return projector


def start_projector(projector: LlavaMultiModalProjector, folder: Path) -> None:
    """Give a projector the weights of a trained one.

    Args:
        projector: gets the weights, in float32.
        folder: a trained model, its adapter folder, or any stock Llava folder whose weights are one file.

    Raises:
        InputError: there is no projector, or it joins models of other widths.
    """
    found = next((folder / name for name in _PROJECTOR_FILES if (folder / name).is_file()), None)
    if found is None:
        raise InputError(
            f"model.projector: {folder} holds neither {' nor '.join(_PROJECTOR_FILES)}. Give a trained model's folder."
        )
    weights = {}
    with safe_open(found, "pt") as stream:
        for key in stream.keys():  # noqa: SIM118 - no mapping
            before, mark, name = key.rpartition("multi_modal_projector.")
            if mark or found.name == "projector.safetensors":
                weights[name if mark else before + key] = stream.get_tensor(key)
    own = projector.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name, tensor in own.items():
        if shapes.get(name) != tuple(tensor.shape):
            raise InputError(
                f"model.projector: {found} has {name} of shape {shapes.get(name, 'none')}, this encoder and language "
                f"model need {tuple(tensor.shape)}. Give a projector trained between models of the same widths."
            )
    projector.load_state_dict({name: weights[name].to(torch.float32) for name in own})
