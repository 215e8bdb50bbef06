"""A stock model folder, wrapped as a model that MLflow can load and serve.

The package is the folder as it is, one code file, a signature, an example and pinned requirements. Nothing is pickled.
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import logs, manifest
from multimodal_gemma.data.sources.base import place
from multimodal_gemma.manifest import Manifest
from multimodal_gemma.registry import versions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

_REQUIRED = ("torch", "transformers", "pillow")
_MAX_NEW_TOKENS = 64


def ensure_logged(client: MlflowClient, folder: Path, model: Manifest, run_id: str, identity: str) -> str:
    """Return the id of the logged model with this identity in the run, logging the manifest's files if it is not there.

    The process's MLflow must be the client's.

    Raises:
        InputError: a file of the model is missing or damaged.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    found = client.search_logged_models([experiment], filter_string=f"tags.`{versions.IDENTITY}` = '{identity}'")
    own = sorted((entry for entry in found if entry.source_run_id == run_id), key=lambda one: one.creation_timestamp)
    oldest = {str(entry.status): entry for entry in reversed(own)}
    if ready := oldest.get("READY"):
        return str(ready.model_id)
    manifest.verify(folder, "model")
    logs.get("registry").info(f"logging the model ({sum(one['bytes'] for one in model.files.values()) / 1e6:,.0f} MB)")
    # One that an attempt before has left pending is filled. A new one is made here and not by `log`, which would put it
    # into whichever experiment the process has at the moment.
    entry = oldest.get("PENDING") or client.create_logged_model(
        experiment,
        name="model",
        source_run_id=run_id,
        tags={versions.IDENTITY: identity, versions.MODEL_DIGEST: model.digest},
        params=dict(run.data.params),
    )
    with _staged(folder, model) as staged, _quiet():
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            model_id=entry.model_id,
            run_id=run_id,
            python_model=str(Path(__file__).with_name("model.py")),
            artifacts={"model": str(staged)},
            signature=signature(),
            input_example=example(),
            pip_requirements=requirements(),
            metadata={versions.MODEL_DIGEST: model.digest},
        )
    return str(entry.model_id)


def signature() -> ModelSignature:
    """Return what goes in and out: columns image (base64) and question, one text out, the length as a parameter."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image"), ColSpec(DataType.string, "question")]),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema([ParamSpec("max_new_tokens", DataType.long, _MAX_NEW_TOKENS)]),
    )


def example() -> tuple[Any, dict[str, int]]:
    """Return a request that the model can answer: a plain red square and a question, in few tokens."""
    import pandas
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(stream, "PNG")
    text = base64.b64encode(stream.getvalue()).decode()
    return pandas.DataFrame({"image": [text], "question": ["What colour is this?"]}), {"max_new_tokens": 8}


def requirements() -> list[str]:
    """Return what the model needs, pinned to what is installed; a build (+cpu, +cu130) counts as its version."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in _REQUIRED]


@contextmanager
def _staged(folder: Path, model: Manifest) -> Iterator[Path]:
    """Yield a folder with the artifact's own files alone: the checkpoints beside them are left out.

    MLflow follows no symbolic links out of a folder, so these are hard links, or copies on another file system.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for name in [*model.files, manifest.NAME]:
            place(folder / name, Path(scratch) / "model" / name)
        yield Path(scratch) / "model"


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow explains on each model what models are; only its warnings are worth a line."""
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
