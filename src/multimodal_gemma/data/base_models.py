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


def fetch(source: Source, part: str, folder: Path) -> None:
    """Write the files of a published folder that a part of the model needs.

    Args:
        source: for "vision" and "language" a stock model folder; for "projector" and "adapter" that of a trained
            model, or its adapter folder.
        part: which of the four.
        folder: where to write.

    Raises:
        InputError: the folder does not hold what is needed, or a file of it cannot be had.
    """
    there, name = source.names(), f"model.{part}"
    if part == "projector":
        needed = [file for file in PROJECTORS if file in there][:1]
        if not needed:
            raise InputError(
                f"{name}: {source.uri} holds neither {' nor '.join(PROJECTORS)}. Give a trained model's folder."
            )
    elif part == "adapter":
        inside = "adapter/" if f"adapter/{ADAPTER[0]}" in there else ""
        needed = [f"{inside}{file}" for file in ADAPTER]
        if lacking := [file for file in needed if file not in there]:
            raise InputError(f"{name}: {source.uri} holds no {lacking[0]}. Give a trained model's folder.")
    else:
        if "config.json" not in there:
            raise InputError(f"{name}: model folder {source.uri} holds no config.json. Give a stock model folder.")
        needed = [file for file in there if any(fnmatch(file, pattern) for pattern in _NEEDED) and "/" not in file]
        if WEIGHTS in there:
            needed.append(WEIGHTS)
        elif INDEX in there:
            _fetch(source, [INDEX], name, folder)
            needed += _sharded(source, there, name, folder)
        else:
            raise InputError(
                f"{name}: model folder {source.uri} holds no safetensors weights ({WEIGHTS}). "
                "Give a folder that does; other formats are not read."
            )
    _fetch(source, needed, name, folder)


def _sharded(source: Source, there: Sequence[str], name: str, folder: Path) -> list[str]:
    """Return the weight files that an index names."""
    index = files.read_json(folder / INDEX, name)
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise InputError(f"{name}: {INDEX} of {source.uri} names no weights. Fetch the model again.")
    shards = sorted({str(file) for file in placed.values()})
    for file in shards:
        if file not in there or not file.endswith(".safetensors"):
            raise InputError(f"{name}: {source.uri} lacks {file}, which its {INDEX} names. Complete the folder.")
    return shards


def _fetch(source: Source, needed: Sequence[str], name: str, folder: Path) -> None:
    for file in needed:
        try:
            source.fetch(file, folder / Path(file).name)
        except Unavailable as error:
            raise InputError(f"{name}: {file} of {source.uri} cannot be had ({error}). Run again.") from None
