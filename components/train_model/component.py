"""Train projector and adapters on a processed dataset."""

from kfp.dsl import HTML, Dataset, Input, Model, Output

from components.images import component_of


@component_of("trainer")
def train_model(
    plan: str,
    dataset: Input[Dataset],
    models: Input[Model],
    model: Output[Model],
    curves: Output[HTML],
):
    """Train projector and adapters, and merge them into a stock Llava model."""
    from multimodal_gemma.stages import component

    component.work("train", plan, dataset=dataset.path, models=models.path, output=model.path).describe(model)
    component.publish(model.path, "curves.html", curves.path)
