"""The merged weights under the names and in the precision that servers read, and in eight bits by torchao.

transformers saves a Llava's encoder as `vision_tower.*`, vLLM reads `vision_tower.vision_model.*`, and transformers
reads both. So the longer name is shipped, and one folder serves everywhere.

In eight bits only the language model's matrices are rounded, each row by a scale of its own; what is computed stays in
floating point. Embeddings, head, encoder and projector are kept as they are: they are a small part of the work of an
answer, and the scores hang on them.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    import torch

_TOWER, _SERVED_TOWER = "vision_tower.", "vision_tower.vision_model."
INT8 = "int8"
# Under the names of a loaded model and under those of its file.
_KEPT = ("lm_head", "model.vision_tower", "model.multi_modal_projector", "vision_tower", "multi_modal_projector")
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


def require_torchao() -> None:
    """Check that what makes 8-bit weights is there, before anything is computed.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("torchao") is None:
        raise InputError(
            "export: export.formats asks for int8, which torchao makes, and it is not installed. "
            "Install it: pip install 'multimodal-gemma[int8]'."
        )


def write_int8(model: Path, output: Path) -> None:
    """Write a stock model folder whose language model's linear layers are int8.

    Args:
        model: stock folder in the precision that the other weights keep.
        output: the folder that is made.

    """
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForImageTextToText, TorchAoConfig

    from multimodal_gemma.model.folders import quiet

    rounding = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=list(_KEPT))
    with quiet():
        rounded = AutoModelForImageTextToText.from_pretrained(model, dtype="auto", quantization_config=rounding)
        rounded.save_pretrained(output)
    for path in output.glob("*.safetensors"):
        _sort_header(path)
    for path in model.iterdir():  # the processor, the chat template and how to generate
        if path.suffix in (".json", ".jinja", ".model") and not path.name.startswith(("config.", "model.")):
            shutil.copyfile(path, output / path.name)
    for path in output.iterdir():
        path.chmod(0o644)


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


def _sort_header(path: Path) -> None:
    """Put what a safetensors file says about itself in order: it is written in another one each time."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    said = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))}
    tensors = dict(sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0])))
    text = json.dumps({**said, **tensors}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with files.atomic_path(path) as temporary, path.open("rb") as old, temporary.open("wb") as new:
        old.seek(8 + length)
        new.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(old, new, 1 << 20)
