"""Train projector and adapters on a processed dataset."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components.images import component_of


@component_of("trainer")
def train_model(
    config: str,
    run_id: str,
    dataset: Input[Dataset],
    models: Input[Model],
    model: Output[Model],
    metrics: Output[Metrics],
    curves: Output[HTML],
):
    """Train projector and adapters, and merge them into a stock Llava model."""
    from pathlib import Path

    from multimodal_gemma import config as configuration
    from multimodal_gemma.stages import train
    from multimodal_gemma.stages.component import guarded, publish

    with guarded():
        settings = configuration.from_json(config)
        summary = train.run(settings, Path(dataset.path), Path(models.path), Path(model.path), run_id=run_id)
    summary.log_to(metrics)
    summary.describe(model)
    publish(model.path, "curves.html", curves.path)
