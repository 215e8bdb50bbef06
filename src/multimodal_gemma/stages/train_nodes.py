"""Train on several nodes: data goes to a store, a TrainJob trains, the model comes back.

What the nodes read lies under `nodes.work_uri`, by digest, so nothing is sent twice; what belongs to one training lies
in a folder named like its TrainJob. The stage before and the stage after see folders, as if the training had been here.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_gemma import config as configuration
from multimodal_gemma import logs, manifest
from multimodal_gemma.data import delivery
from multimodal_gemma.data.sources.base import Unavailable
from multimodal_gemma.data.sources.buckets import S3Source
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.config import Config

REQUEST = "request.json"
MODEL = "model"  # below a training's place in the store
_SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Request:
    """What the processes of a TrainJob are asked to do.

    Attributes:
        config: the whole configuration, as JSON.
        dataset: `s3://` place of the processed dataset.
        models: `s3://` place of the base models.
        run_id: the pipeline run.
        schema_version: of this structure.
    """

    config: str
    dataset: str
    models: str
    run_id: str
    schema_version: int = _SCHEMA_VERSION


def run(config: Config, dataset: Path, models: Path, output: Path, identity: str, *, run_id: str) -> None:
    """Have a TrainJob train, and fetch its model into `output`.

    Args:
        config: of a training that is delegated, with `nodes.work_uri`.
        dataset: the processed dataset.
        models: the base models.
        output: gets the model.
        identity: `checkpoint.Settings.place`; with the run it names the TrainJob, so that a retry finds it again.
        run_id: the pipeline run; "" for none.

    Raises:
        InputError: there is no place to exchange data in, no cluster to train on, or the training failed.
        SystemExit: this process was asked to end; the TrainJob is deleted.
    """
    from multimodal_gemma.cluster.trainjob import job, place, spec

    log, work = logs.get("train"), place.require_work(config)
    name = spec.job_name(run_id, identity)
    where = f"{work}/jobs/{name}"
    if delivery.fetch(f"{where}/{MODEL}", output):
        log.info(f"{where} holds this very model: fetched")
        return
    namespace = job.here()
    asked = job.build(namespace, name, where, config.training.nodes, config.nodes, run_id=run_id)
    sent = {part: _send(part, folder, work) for part, folder in (("dataset", dataset), ("models", models))}
    uri = config.training.checkpoint_uri or f"{where}/checkpoints"
    theirs = dataclasses.replace(config, training=dataclasses.replace(config.training, checkpoint_uri=uri))
    _put(where, Request(configuration.to_json(theirs), sent["dataset"], sent["models"], run_id))
    job.run(namespace, asked)
    if not delivery.fetch(f"{where}/{MODEL}", output):
        raise InputError(f"train: the TrainJob {name} is complete, but there is no whole model in {where}. Run again.")


def read_request(place: str) -> Request:
    """Return what was asked for.

    Raises:
        InputError: it cannot be read.
    """
    try:
        found = json.loads(S3Source(place).read(REQUEST, 1 << 20))
        request = Request(**found)
    except (Unavailable, ValueError, TypeError) as error:
        raise InputError(f"train: {place}/{REQUEST} cannot be read ({error}). Submit the training again.") from None
    if request.schema_version != _SCHEMA_VERSION:
        raise InputError(
            f"train: {place}/{REQUEST} has schema version {request.schema_version}, and {_SCHEMA_VERSION} is known "
            "here. Let nodes run the image of the task that submits."
        )
    return request


def _send(part: str, folder: Path, work: str) -> str:
    uri = f"{work}/artifacts/{manifest.read(folder).digest}"
    written = delivery.deliver(folder, uri)
    logs.get("train").info(f"{part}: {f'{written:,} objects sent to' if written else 'all there in'} {uri}")
    return uri


def _put(place: str, request: Request) -> None:
    with delivery.reaching("train", place):
        delivery.put_json(S3Source(place), REQUEST, dataclasses.asdict(request))
