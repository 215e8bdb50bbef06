"""Fetch a registered model for another evaluation."""

from typing import NamedTuple

from kfp.dsl import Model, Output

from components.images import component_of


@component_of("pipeline")
def fetch_registered_model(config: str, location: str, model: Output[Model]) -> NamedTuple(
    "Fetched", [("name", str), ("digest", str)]
):
    """Fetch a registered model, and check that it is what was registered."""
    from pathlib import Path

    from multimodal_gemma import config as configuration
    from multimodal_gemma.stages import fetch
    from multimodal_gemma.stages.component import guarded

    with guarded():
        summary = fetch.run(configuration.from_json(config), location, Path(model.path))
    summary.describe(model)
    return (summary.facts["name"], summary.digest)
