"""Turn conversations and images into a tokenized, memory-mapped dataset."""

from kfp.dsl import HTML, Dataset, Input, Model, Output

from components.images import component_of


@component_of("pipeline")
def preprocess_dataset(
    plan: str,
    raw: Input[Dataset],
    models: Input[Model],
    benchmarks: Input[Dataset],
    dataset: Output[Dataset],
    report: Output[HTML],
):
    """Tokenize every conversation, resize every image once, and split by image."""
    from multimodal_gemma.stages import component

    inputs = {"raw": raw.path, "models": models.path, "benchmarks": benchmarks.path}
    component.work("preprocess", plan, output=dataset.path, **inputs).describe(dataset)
    component.publish(dataset.path, "report.html", report.path)
