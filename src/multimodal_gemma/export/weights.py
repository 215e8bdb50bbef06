"""The merged weights under the names and in the precision that servers read.

transformers saves a Llava's encoder as `vision_tower.*`, vLLM reads `vision_tower.vision_model.*`, and transformers
reads both. So the longer name is shipped, and one folder serves everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    import torch

_TOWER, _SERVED_TOWER = "vision_tower.", "vision_tower.vision_model."
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def served_name(name: str) -> str:
    """Return the name under which a saved tensor is shipped."""
    if name.startswith(_TOWER) and not name.startswith(_SERVED_TOWER):
        return _SERVED_TOWER + name.removeprefix(_TOWER)
    return name


def convert(source: Path, destination: Path, dtype: str) -> int:
    """Write the weights of a model folder under served names and in another precision, shard by shard.

    Args:
        source: stock model folder with model.safetensors, or with shards and their index.
        destination: folder for the same files.
        dtype: of every floating tensor, e.g. "bfloat16".

    Returns:
        How many parameters were written.

    Raises:
        InputError: the folder holds no weights, or a shard that its index names is missing.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    wanted: torch.dtype = getattr(torch, dtype)
    parameters = total = 0
    where: dict[str, str] = {}
    for shard in _shards(source):
        tensors = {}
        with safe_open(source / shard, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118  # a safetensors file is no mapping
                tensor = stored.get_tensor(name)
                tensors[served_name(name)] = tensor.to(wanted).contiguous() if tensor.is_floating_point() else tensor
        with files.atomic_path(destination / shard) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, shard))
        parameters += sum(tensor.numel() for tensor in tensors.values())
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if (source / _INDEX).is_file():
        files.write_json(destination / _INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    return parameters


def config(source: Path, dtype: str) -> dict[str, Any]:
    """Return config.json of a model folder, stating the precision that is shipped."""
    value = files.read_json(source / "config.json", "export")
    value["dtype"] = dtype
    for part in ("text_config", "vision_config"):
        if "dtype" in value.get(part, {}):
            value[part]["dtype"] = dtype
    value["text_config"] = _rope_of_4(value.get("text_config", {}))
    return dict(value)


def _rope_of_4(text: dict[str, Any]) -> dict[str, Any]:
    """Add the rotary settings under the names that transformers 4.57 reads; 5 reads its own, and ignores these."""
    stated = text.get("rope_parameters") or {}
    whole = stated.get("full_attention", stated)
    if "rope_theta" not in whole:
        return text
    scaling = {key: value for key, value in whole.items() if key != "rope_theta"}
    added = {"rope_theta": whole["rope_theta"]}
    if scaling.get("rope_type", "default") != "default":
        added["rope_scaling"] = scaling
    if "sliding_attention" in stated:
        added["rope_local_base_freq"] = stated["sliding_attention"]["rope_theta"]
    return {**added, **text}


def is_weights(name: str) -> bool:
    """Return whether a file of a model folder holds weights or says where they are."""
    return name.endswith(".safetensors") or name == _INDEX


def _shards(source: Path) -> list[str]:
    if (source / _INDEX).is_file():
        index = files.read_json(source / _INDEX, "export")
        names = sorted(set(index["weight_map"].values()))
    else:
        names = [_SINGLE]
    for name in names:
        if not (source / name).is_file():
            raise InputError(
                f"export: {source} lacks its weights {name}. Train the model again, or give its whole folder."
            )
    return names
