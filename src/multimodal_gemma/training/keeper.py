"""Who saves and finds checkpoints: the leading process, in a folder and perhaps in an object store as well.

A spot node takes its disk with it. With `training.checkpoint_uri` each checkpoint is copied to a store as soon as it is
whole, and a training that starts on an empty disk fetches the newest one from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from multimodal_gemma import files, logs
from multimodal_gemma.training import checkpoint
from multimodal_gemma.training.store import CheckpointStore

if TYPE_CHECKING:
    from torch import Tensor


class Keeper:
    """The checkpoints of one training.

    Args:
        folder: holds them.
        identity: flat configuration and input digests that they belong to.
        uri: `s3://bucket/prefix` that gets copies; "" for none.
        accelerator: says which process leads.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], uri: str, accelerator: Accelerator) -> None:
        self.folder, self.identity, self.accelerator = folder, identity, accelerator
        self.leads = bool(accelerator.is_main_process)
        # Trainings may share a prefix: each has a folder of its own in it.
        place = f"{uri.rstrip('/')}/{files.digest_of(identity)[:16]}"
        self.store = CheckpointStore(place) if uri and self.leads else None

    def newest(self) -> checkpoint.Loaded | None:
        """Return the newest whole checkpoint, the same in all processes, and this process's memory of none other.

        Raises:
            InputError: checkpoints belong to another training, none is whole, or the store refuses.
        """
        loaded = None
        if self.leads:
            checkpoint.refuse_other(self.folder, self.identity)
            if self.store is not None and not checkpoint.steps(self.folder):
                self.store.restore(self.folder)
            loaded = checkpoint.load_newest(self.folder)
            if loaded is not None:
                self._prune(loaded[0])
        shared = [loaded]
        broadcast_object_list(shared)  # the others may have no such folder
        return shared[0]

    def save(self, state: checkpoint.State, weights: dict[str, Tensor], optimiser: dict[str, Any]) -> None:
        """Save where training stands, and delete what is neither last nor best.

        Raises:
            InputError: the folder cannot be written; the checkpoints before stay.
        """
        random_states = gather_object([checkpoint.random_state()])
        if self.leads:
            checkpoint.save(self.folder, state, weights, optimiser, random_states, self.identity)
            self._prune(state)
        self.accelerator.wait_for_everyone()

    def _prune(self, state: checkpoint.State) -> None:
        keep = {state.step, *(step for _, step in state.best)}
        checkpoint.prune(self.folder, keep)
        if self.store is not None:
            self.store.mirror(self.folder, keep)
        logs.get("train").debug(f"checkpoints kept: {sorted(keep)}")
