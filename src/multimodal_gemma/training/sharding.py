"""Weights cut over processes, for language models that one GPU does not hold: FSDP, by accelerate.

Each process keeps a part of every weight, of its gradient and of the optimiser's state; a layer is gathered when it is
computed. Gathering is collective: all processes go through the same number of forward passes, and each pass touches all
that learns. Checkpoints hold whole weights, so that one process can continue what several began.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor

from multimodal_gemma.errors import InputError
from multimodal_gemma.model.forward import Batch, SupervisedLoss

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

    from multimodal_gemma.config.schema import Config

Item = TypeVar("Item")


def require_possible(config: Config, device: str) -> None:
    """Check that nothing was asked for that cut weights exclude.

    Args:
        config: sections `model` and `training`.
        device: "cuda" or "cpu".

    Raises:
        InputError: something was.
    """
    training = config.training
    if training.sharding == "none":
        return
    excluded = {
        "model.language_quantization=nf4": (config.model.language_quantization == "nf4", "none"),
        "training.share_images=on": (training.share_images == "on", "auto"),
        "training.compile=on": (training.compile == "on", "auto"),
        "training.batch_tokens=auto": (training.batch_tokens == "auto" and device == "cuda", "16384"),
    }
    for setting, (asked, instead) in excluded.items():
        if asked:
            raise InputError(
                f"config: {setting} does not fit training.sharding=fsdp. Set {setting.partition('=')[0]}={instead}, or "
                "training.sharding=none."
            )


def plugin() -> FullyShardedDataParallelPlugin:
    """Return accelerate's settings: FSDP2, a unit for each layer of the language model (see `prepare`)."""
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )


def activate(accelerator: Accelerator, settings: FullyShardedDataParallelPlugin) -> None:
    """Have several processes on processors share weights too; accelerate does it by itself on GPUs alone."""
    if accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = settings


def active(accelerator: Accelerator) -> bool:
    """Tell whether weights are cut over processes; one process alone keeps them whole."""
    # Not by distributed_type: on processors accelerate sets it back.
    return bool(accelerator.num_processes > 1 and getattr(accelerator.state, "fsdp_plugin", None) is not None)


def prepare(accelerator: Accelerator, loss: SupervisedLoss) -> None:
    """Say which layers are units; a frozen encoder, which runs by itself, stays whole in every process."""
    settings = accelerator.state.fsdp_plugin
    llava = loss.llava
    settings.transformer_cls_names_to_wrap = [type(llava.model.language_model.layers[0]).__name__]
    if loss.encoder is None:
        settings.ignored_modules = [llava.model.vision_tower]


class WholeLoss(SupervisedLoss):
    """The loss of a batch, to which all that learns contributes, if only zero: gradients are summed unit by unit."""

    def embed(self, batch: Batch, pictures: Tensor | None) -> Tensor:
        """See `SupervisedLoss.embed`; words alone are read as if a picture of no weight came with them.

        Not added to the loss instead: units are summed in the order in which gradients reach their inputs, and that is
        the same in all processes only if the first layer's input has a gradient in all of them.
        """
        embeds = super().embed(batch, pictures)
        if pictures is not None:
            return embeds
        vision, device = self.llava.config.vision_config, embeds.device
        if self.encoder is None:
            blank = torch.zeros((1, 1, vision.hidden_size), device=device)
        else:
            blank = torch.zeros((1, vision.image_size, vision.image_size, 3), dtype=torch.uint8, device=device)
        return embeds + 0.0 * self._project(blank).sum().to(embeds.dtype)


def forget_pictures(llava: LlavaForConditionalGeneration) -> None:
    """Drop the zero gradients of a step without any picture: what did not take part is not decayed either."""
    for part in (llava.model.multi_modal_projector, llava.model.vision_tower):
        for weight in part.parameters():
            weight.grad = None


def evened(items: Sequence[Item], spare: Item, accelerator: Accelerator) -> list[tuple[Item, float]]:
    """Return micro-batches with their weight, 1; processes that have fewer than another repeat one with weight 0.

    Args:
        items: this process's micro-batches.
        spare: what is repeated.
        accelerator: knows the other processes.
    """
    count = torch.tensor([len(items)], device=accelerator.device)
    most = int(accelerator.gather(count).max()) if active(accelerator) else len(items)
    return [(item, 1.0) for item in items] + [(spare, 0.0)] * (most - len(items))


def whole(value: Any) -> Any:
    """Return tensors gathered from all processes, inside dicts and lists too; all processes must ask."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return a whole tensor cut as a parameter is."""
    if not hasattr(parameter, "full_tensor") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def cut_state(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimiser's whole state_dict cut as its parameters are."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    held = {
        number: {
            name: like(parameters[number], value) if isinstance(value, Tensor) else value for name, value in of.items()
        }
        for number, of in state["state"].items()
    }
    return {**state, "state": held}
