"""Fetch: a registered model out of the registry, as the artifact that training once made.

The folder keeps its manifest and so its digest: scores of the fetched model are scores of the registered one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from multimodal_gemma import files, logs, manifest
from multimodal_gemma.config import Config
from multimodal_gemma.stages.summary import Summary


def run(config: Config, location: str, output: Path) -> Summary:
    """Fetch a registered model.

    Args:
        config: names MLflow.
        location: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/NAME/latest`.
        output: folder for the model artifact.

    Returns:
        The model's digest and location.

    Raises:
        InputError: there is no such version, or its files are not what was registered.
    """
    from multimodal_gemma.registry import resolve

    reference = resolve.parse(location)
    folder = resolve.resolve_model(location, config)
    wanted = manifest.read(folder, "model")
    facts = {"name": reference.name, "location": location}
    if (output / manifest.NAME).is_file() and manifest.read(output, "model").digest == wanted.digest:
        return Summary("fetch", output, wanted.digest, facts=facts, cached=True)
    try:
        shutil.copytree(folder, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns(manifest.NAME))
        shutil.copyfile(folder / manifest.NAME, output / manifest.NAME)  # last: now it is finished
    except OSError as error:
        raise files.unwritable(output, error) from error
    found = manifest.verify(output, "model")
    logs.get("fetch").info(f"{location} is model {found.digest[:12]}, {len(found.files)} files")
    return Summary("fetch", output, found.digest, facts=facts)
