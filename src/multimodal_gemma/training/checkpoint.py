"""Checkpoints: a run that was killed continues as if it had not been.

A checkpoint is a folder that is written under a temporary name and renamed when it is whole. Its manifest names the
sha256 of each file, so a damaged one is recognised, and the settings it belongs to: what shapes the mathematics must be
the same when it is continued, what only saves time or memory may change, and the end may be put off.

The leading process saves and finds them, for all. A spot node takes its disk with it: with `Copies` elsewhere, training
continues on an empty one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file
from torch import Tensor

from multimodal_gemma import files, logs, manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.training.schedule import rate_factor

KIND = "checkpoint"
_NAME = re.compile(r"step-(\d{8})")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a training was told, by what a checkpoint of it can be continued with.

    Attributes:
        identity: flat configuration and input digests that shape the mathematics; they must be the same.
        free: what saves time or memory; it may change.
        steps: optimiser steps in all, which epochs and max_steps make; they may grow.
        warmup_fraction: of `steps`.
        patience: validations without a better one before training stops; it may grow.
        code: digest of what trains.
    """

    identity: dict[str, Any]
    free: dict[str, Any] = dataclasses.field(default_factory=dict)
    steps: int = 0
    warmup_fraction: float = 0.0
    patience: int = 0
    code: str = ""

    @property
    def place(self) -> str:
        """Name of the training where others leave theirs, e.g. in a store.

        Who continues in a folder means that training. Who only names a store means to lose nothing of this one: what a
        training to another end, or by other code, has left there is not its beginning.
        """
        return files.digest_of([self.identity, self.steps, self.patience, self.code])[:16]


class Validated(NamedTuple):
    """A step that was validated.

    Attributes:
        loss: nats a supervised token.
        step: the step.
        accuracy: of the yes-or-no answers, balanced; None where the loss decides.
    """

    loss: float
    step: int
    accuracy: float | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Return what a line of curves.jsonl says."""
        return cls(row["validation_loss"], row["step"], row.get("validation_yes_no_accuracy"))

    @property
    def rank(self) -> tuple[float, float, int]:
        """The best one's is the least: whole points of accuracy count, as less is chance, and then the loss."""
        return -round(self.accuracy or 0.0, 2), self.loss, self.step


@dataclasses.dataclass
class State:
    """Where a run stands after a step.

    Attributes:
        step: optimiser steps done; with the seed it says which samples come next.
        best: the checkpoints kept as best, best first.
        best_loss: lowest validation loss so far; None before the first validation.
        stale: validations since the last better one.
        finished: nothing is left to train.
        pending: line of curves.jsonl of a step whose validation was cut off by SIGTERM; it comes first when the run
            continues. None: nothing is owed.
    """

    step: int = 0
    best: list[Validated] = dataclasses.field(default_factory=list)
    best_loss: float | None = None
    stale: int = 0
    finished: bool = False
    pending: dict[str, Any] | None = None


def save(
    folder: Path,
    state: State,
    weights: dict[str, Tensor],
    optimiser: dict[str, Any],
    random_states: list[Any],
    settings: Settings,
) -> None:
    """Write the checkpoint of `state.step`, whole or not at all.

    Args:
        folder: holds all checkpoints of a run.
        state: where the run stands.
        weights: what learns, by name.
        optimiser: its state_dict.
        random_states: one entry a rank, of tensors.
        settings: that it belongs to.

    Raises:
        InputError: the folder cannot be written or the disk is full; the checkpoints before stay.
    """
    final = folder / f"step-{state.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        # Through Python's own files: the libraries' writers turn a full disk into errors of many kinds.
        held = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}
        (temporary / "weights.safetensors").write_bytes(safetensors.torch.save(held))
        for name, value in (("optimiser.pt", optimiser), ("random.pt", random_states)):
            with (temporary / name).open("wb") as stream:
                torch.save(value, stream)
        facts = {**dataclasses.asdict(state), "free": settings.free, "steps": settings.steps}
        manifest.write(temporary, KIND, config=settings.identity, facts=facts)
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


Loaded = tuple[State, dict[str, Tensor], dict[str, Any], list[Any]]  # state, weights, optimiser, random states


def load(folder: Path, step: int) -> Loaded:
    """Read one checkpoint back: state, weights, optimiser, random states.

    Raises:
        InputError: a file is missing or differs from its sha256.
    """
    path = folder / f"step-{step:08d}"
    facts = manifest.verify(path, KIND).facts
    told = {field.name: facts[field.name] for field in dataclasses.fields(State)}
    state = State(**{**told, "best": [Validated(*kept) for kept in facts["best"]]})
    optimiser = torch.load(path / "optimiser.pt", map_location="cpu", weights_only=True)
    random_states = torch.load(path / "random.pt", map_location="cpu", weights_only=True)
    return state, load_file(path / "weights.safetensors"), optimiser, random_states


def load_newest(folder: Path) -> Loaded | None:
    """Read the newest checkpoint that is whole; None where there is no checkpoint at all.

    A damaged one is named in a warning and left out, the best ones included: what it held is trained again.

    Raises:
        InputError: there are checkpoints, and not one is whole.
    """
    found = steps(folder)
    for step in reversed(found):
        try:
            loaded = load(folder, step)
        except InputError as error:
            logs.get("train").warning(f"the checkpoint of step {step:,} is damaged and left out. {error}")
            continue
        state = loaded[0]
        state.best = [kept for kept in state.best if kept.step == step or _whole(folder, kept.step)]
        return loaded
    if found:
        raise InputError(
            f"train: none of the {len(found)} checkpoints in {folder} is whole. Delete that folder to start again."
        )
    return None


def _whole(folder: Path, step: int) -> bool:
    try:
        manifest.verify(folder / f"step-{step:08d}", KIND)
    except InputError as error:
        logs.get("train").warning(f"the checkpoint of step {step:,}, one of the best, is damaged. {error}")
        return False
    return True


def load_weights(folder: Path, step: int) -> dict[str, Tensor]:
    """Read the weights of one checkpoint."""
    return load_file(folder / f"step-{step:08d}" / "weights.safetensors")


def refuse_other(folder: Path, identity: dict[str, Any]) -> None:
    """Check that the checkpoints in `folder` belong to a training of the same mathematics.

    Args:
        folder: holds them.
        identity: see `Settings`.

    Raises:
        InputError: they do not; the sentence names the keys that differ.
    """
    theirs = None
    for step in reversed(steps(folder)):
        with contextlib.suppress(InputError):  # damaged: `load_newest` speaks of it
            theirs = manifest.read(folder / f"step-{step:08d}", KIND).config
            break
    if theirs is None:
        return
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


def carry_on(folder: Path, state: State, settings: Settings) -> None:
    """Say what differs from the training that a checkpoint was saved by, and put its end off where it may be.

    Args:
        folder: holds the checkpoint of `state.step`.
        state: of it; `finished` is taken back where there is something left to train.
        settings: of now.

    Raises:
        InputError: training is to end before the step that it stands at.
    """
    log, facts = logs.get("train"), manifest.read(folder / f"step-{state.step:08d}", KIND).facts
    before = facts["free"]
    for key in sorted(before.keys() | settings.free.keys()):
        if before.get(key) != settings.free.get(key):
            log.info(f"{key} was {before.get(key)} until this checkpoint and is {settings.free.get(key)} from now on")
    if settings.steps < state.step:
        raise InputError(
            f"train: {folder} stands at step {state.step:,}, and training.epochs and training.max_steps make "
            f"{settings.steps:,} steps. Raise them, or choose another output folder."
        )
    if settings.steps != facts["steps"]:
        after = state.step + 1
        was, now = (
            0.0 if after > steps else rate_factor(after, steps, settings.warmup_fraction)
            for steps in (facts["steps"], settings.steps)
        )
        log.info(
            f"training ends at step {settings.steps:,} instead of {facts['steps']:,}: the learning rates of step "
            f"{after:,} are {now:.0%} of their peaks instead of {was:.0%}"
        )
    if state.step < settings.steps and state.stale < settings.patience:
        state.finished = False


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


class Copies(Protocol):
    """Where checkpoints outlive the machine; see `training.store`."""

    def restore(self, folder: Path, /) -> None:
        """Fetch every whole checkpoint into an empty folder; InputError where that cannot be."""

    def mirror(self, folder: Path, keep: set[int], /) -> None:
        """Have the checkpoints of these steps and no others; a failure is said, and training goes on."""


class Keeper:
    """The checkpoints of one training.

    Args:
        folder: holds them.
        settings: that they belong to.
        copies: of them; None: there are none.
        accelerator: says which process leads.
    """

    def __init__(self, folder: Path, settings: Settings, copies: Copies | None, accelerator: Accelerator) -> None:
        self.folder, self.settings, self.copies, self.accelerator = folder, settings, copies, accelerator
        self.leads = bool(accelerator.is_main_process)

    def newest(self) -> Loaded | None:
        """Return the newest whole checkpoint, the same in all processes; None where there is none.

        Raises:
            InputError: checkpoints belong to another training, none is whole, training would end before the newest, or
                the store refuses.
        """
        loaded = None
        if self.leads:
            refuse_other(self.folder, self.settings.identity)
            if self.copies is not None and not steps(self.folder):
                self.copies.restore(self.folder)
            loaded = load_newest(self.folder)
            if loaded is not None:
                carry_on(self.folder, loaded[0], self.settings)
                self._prune(loaded[0])
        shared = [loaded]
        broadcast_object_list(shared)  # the others may have no such folder
        return shared[0]

    def save(self, state: State, weights: dict[str, Tensor], optimiser: dict[str, Any]) -> None:
        """Save where training stands, and delete what is neither last nor best.

        Raises:
            InputError: the folder cannot be written; the checkpoints before stay.
        """
        random_states = gather_object([random_state()])
        if self.leads:
            save(self.folder, state, weights, optimiser, random_states, self.settings)
            self._prune(state)
        self.accelerator.wait_for_everyone()

    def _prune(self, state: State) -> None:
        keep = {state.step, *(kept.step for kept in state.best)}
        prune(self.folder, keep)
        if self.copies is not None:
            self.copies.mirror(self.folder, keep)
        logs.get("train").debug(f"checkpoints kept: {sorted(keep)}")
