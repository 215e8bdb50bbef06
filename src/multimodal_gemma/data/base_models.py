"""The few files of a published model folder that training needs.

A repository on a hub holds the same weights several times, in formats of several frameworks, some of which run code
when they are read. Taken are the configuration, the tokenizer or image processor, and weights in safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from multimodal_gemma import files
from multimodal_gemma.data.sources.base import Source, Unavailable
from multimodal_gemma.errors import InputError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PROJECTORS = ("projector.safetensors", "adapter/projector.safetensors", WEIGHTS)  # where a trained model keeps its own
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "projector.safetensors")
_NEEDED = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.spm",
    "*.model",
    "chat_template*",
)


def fetch_model(source: Source, part: str, folder: Path) -> None:
    """Write the stock folder of a base model.

    Args:
        source: the published folder.
        part: "vision" or "language", for messages.
        folder: where to write.

    Raises:
        InputError: the folder holds no configuration or no weights in safetensors, or a file of it cannot be had.
    """
    there = source.names()
    if "config.json" not in there:
        raise InputError(f"model.{part}: model folder {source.uri} holds no config.json. Give a stock model folder.")
    needed = [name for name in there if any(fnmatch(name, pattern) for pattern in _NEEDED) and "/" not in name]
    if WEIGHTS in there:
        weights = [WEIGHTS]
    elif INDEX in there:
        weights = [INDEX, *_sharded(source, there, part, folder)]
    else:
        raise InputError(
            f"model.{part}: model folder {source.uri} holds no safetensors weights ({WEIGHTS}). "
            "Give a folder that does; other formats are not read."
        )
    _fetch(source, [*needed, *weights], part, folder)


def fetch_projector(source: Source, folder: Path) -> None:
    """Write the file that holds the projector of a trained model.

    Args:
        source: folder of a trained model.
        folder: where to write.

    Raises:
        InputError: there is none.
    """
    there = source.names()
    found = next((name for name in PROJECTORS if name in there), None)
    if found is None:
        raise InputError(
            f"model.projector: {source.uri} holds neither {' nor '.join(PROJECTORS)}. Give a trained model's folder."
        )
    _fetch(source, [found], "projector", folder)


def fetch_adapter(source: Source, folder: Path) -> None:
    """Write the files that hold the adapters and the projector of a trained model.

    Args:
        source: folder of a trained model, or its adapter folder.
        folder: where to write.

    Raises:
        InputError: one of them is not there.
    """
    there = source.names()
    inside = "adapter/" if f"adapter/{ADAPTER[0]}" in there else ""
    missing = [name for name in ADAPTER if f"{inside}{name}" not in there]
    if missing:
        raise InputError(f"model.adapter: {source.uri} holds no {inside}{missing[0]}. Give a trained model's folder.")
    _fetch(source, [f"{inside}{name}" for name in ADAPTER], "adapter", folder)


def _sharded(source: Source, there: Sequence[str], part: str, folder: Path) -> list[str]:
    """Return the weight files that an index names."""
    _fetch(source, [INDEX], part, folder)
    index = files.read_json(folder / INDEX, f"model.{part}")
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise InputError(f"model.{part}: {INDEX} of {source.uri} names no weights. Fetch the model again.")
    shards = sorted({str(name) for name in placed.values()})
    for name in shards:
        if name not in there or not name.endswith(".safetensors"):
            raise InputError(f"model.{part}: {source.uri} lacks {name}, which its {INDEX} names. Complete the folder.")
    return shards


def _fetch(source: Source, names: Sequence[str], part: str, folder: Path) -> None:
    for name in names:
        try:
            source.fetch(name, folder / Path(name).name)
        except Unavailable as error:
            raise InputError(f"model.{part}: {name} of {source.uri} cannot be had ({error}). Run again.") from None
