"""Fetch a registered model for another evaluation."""

from typing import NamedTuple

from kfp.dsl import Model, Output

from components.images import component_of


@component_of("pipeline")
def fetch_registered_model(plan: str, location: str, model: Output[Model]) -> NamedTuple(
    "Fetched", [("name", str), ("digest", str)]
):
    """Fetch a registered model, and check that it is what was registered."""
    from multimodal_gemma.stages import component

    summary = component.work("fetch", plan, location=location, output=model.path)
    summary.describe(model)
    return (summary.facts["name"], summary.digest)
