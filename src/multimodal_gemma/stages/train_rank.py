"""One process of a training on several nodes, started by torchrun on each (see `train_node`).

The first process of a node fetches what was asked for, once a node; then all train together, and the first of all puts
the model where `train_nodes` looks for it. A node that is lost costs what was learnt since the last checkpoint: all
begin again, on whatever machines they get, from the copy in the store.
"""

from __future__ import annotations

import os
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

from multimodal_gemma import config as configuration
from multimodal_gemma import logs
from multimodal_gemma.data import delivery
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import train, train_nodes
from multimodal_gemma.stages.component import guarded
from multimodal_gemma.training.failures import Watch

_FETCH_HOURS = 12  # for which the fastest node waits for the slowest


def run(place: str, folder: Path) -> None:
    """Fetch, train, and put the model back.

    Args:
        place: of the training in the store.
        folder: this node's own.

    Raises:
        InputError: something is not there, or the training cannot go on.
        SystemExit: SIGTERM came; a checkpoint is saved.
    """
    request = train_nodes.read_request(place)
    dataset, models, output = (folder / name for name in ("dataset", "models", "model"))
    if os.environ["LOCAL_RANK"] == "0":
        for uri, target in ((request.dataset, dataset), (request.models, models)):
            if not delivery.fetch(uri, target):
                raise InputError(f"train: {uri} is not complete. Submit the training again.")
    everyone = _meet()  # and kept: its server may be this process's
    config = configuration.from_json(request.config)
    train.run(config, dataset, models, output, run_id=request.run_id)
    if os.environ["RANK"] == "0":
        delivery.deliver(output, f"{place}/{train_nodes.MODEL}", without=lambda name: name.startswith(train.FOLDERS))
        logs.get("train").info(f"the model is in {place}")
    del everyone


def _meet() -> object:
    """Wait until every process of every node has its data; return the store they met in."""
    from torch.distributed import PrefixStore, rendezvous

    patience = timedelta(hours=_FETCH_HOURS)
    store, _, processes = next(rendezvous("env://", timeout=patience))
    meeting = PrefixStore("fetched", store)
    if meeting.add("processes", 1) == processes:
        meeting.set("all", "1")
    meeting.wait(["all"], patience)
    return store


if __name__ == "__main__":
    with guarded(), Watch():
        run(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else Path(tempfile.gettempdir()) / "mmgemma"))
