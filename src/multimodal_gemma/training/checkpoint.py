"""Checkpoints: a run that was killed continues as if it had not been.

A checkpoint is a folder that is written under a temporary name and renamed when it is whole. Its manifest names the
sha256 of each file, so a damaged one is recognised, and the configuration it belongs to, so it is never continued with
another.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from multimodal_gemma import files, manifest
from multimodal_gemma.errors import InputError

KIND = "checkpoint"
_NAME = re.compile(r"step-(\d{8})")


@dataclasses.dataclass
class State:
    """Where a run stands after a step.

    Attributes:
        step: optimiser steps done; with the seed it says which samples come next.
        best: (validation loss, step) of the checkpoints kept as best, best first.
        best_loss: lowest validation loss so far; None before the first validation.
        stale: validations since the lowest.
        finished: nothing is left to train.
    """

    step: int = 0
    best: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    best_loss: float | None = None
    stale: int = 0
    finished: bool = False


def save(
    folder: Path,
    state: State,
    weights: dict[str, Tensor],
    optimiser: dict[str, Any],
    random_states: list[Any],
    identity: dict[str, Any],
) -> None:
    """Write the checkpoint of `state.step`, whole or not at all.

    Args:
        folder: holds all checkpoints of a run.
        state: where the run stands.
        weights: what learns, by name.
        optimiser: its state_dict.
        random_states: one entry a rank, of tensors.
        identity: flat configuration and input digests; see `refuse_other`.

    Raises:
        InputError: the folder cannot be written or the disk is full; the checkpoints before stay.
    """
    final = folder / f"step-{state.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_file(
            {name: tensor.contiguous().cpu() for name, tensor in weights.items()}, temporary / "weights.safetensors"
        )
        torch.save(optimiser, temporary / "optimiser.pt")
        torch.save(random_states, temporary / "random.pt")
        manifest.write(temporary, KIND, config=identity, facts=dataclasses.asdict(state))
        shutil.rmtree(final, ignore_errors=True)
        temporary.replace(final)
    except OSError as error:
        raise files.unwritable(final, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def steps(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint, in order."""
    names = (_NAME.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in names if match)


def load(folder: Path, step: int) -> tuple[State, dict[str, Tensor], dict[str, Any], list[Any]]:
    """Read one checkpoint back: state, weights, optimiser, random states.

    Raises:
        InputError: a file is missing or differs from its sha256.
    """
    path = folder / f"step-{step:08d}"
    try:
        facts = manifest.verify(path, KIND).facts
    except InputError as error:
        raise InputError(
            f"train: a checkpoint is damaged. {error} Delete {path} to continue from the one before."
        ) from None
    state = State(**{**facts, "best": [(loss, at) for loss, at in facts["best"]]})
    optimiser = torch.load(path / "optimiser.pt", map_location="cpu", weights_only=True)
    random_states = torch.load(path / "random.pt", map_location="cpu", weights_only=True)
    return state, load_file(path / "weights.safetensors"), optimiser, random_states


def load_weights(folder: Path, step: int) -> dict[str, Tensor]:
    """Read the weights of one checkpoint."""
    return load_file(folder / f"step-{step:08d}" / "weights.safetensors")


def refuse_other(folder: Path, identity: dict[str, Any]) -> None:
    """Check that the checkpoints in `folder` belong to this configuration and these inputs.

    Raises:
        InputError: they do not; the sentence names the keys that differ.
    """
    found = steps(folder)
    if not found:
        return
    theirs = manifest.read(folder / f"step-{found[-1]:08d}", KIND).config
    different = [
        f"{key} ({theirs.get(key, 'unset')} there, {identity.get(key, 'unset')} now)"
        for key in sorted(theirs.keys() | identity.keys())
        if theirs.get(key) != identity.get(key)
    ]
    if different:
        raise InputError(
            f"train: {folder} holds checkpoints of another training: {', '.join(different)}. "
            "Choose another output folder, or delete the checkpoints to start again."
        )


def prune(folder: Path, keep: set[int]) -> None:
    """Delete the checkpoints of other steps than `keep`, and what a killed save left."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for step in steps(folder):
        if step not in keep:
            shutil.rmtree(folder / f"step-{step:08d}")


def random_state() -> list[Tensor]:
    """Return this process's random states: the processor's, then each GPU's."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_random_state(states: list[Tensor]) -> None:
    """Set what `random_state` returned; a GPU that was not there before keeps its own."""
    torch.set_rng_state(states[0])
    if torch.cuda.is_available() and len(states) - 1 == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states[1:])
