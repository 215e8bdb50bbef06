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
    from pathlib import Path

    from multimodal_gemma.stages import preflight, preprocess
    from multimodal_gemma.stages.component import guarded, publish

    with guarded():
        config = preflight.planned(plan)
        summary = preprocess.run(config, Path(raw.path), Path(models.path), Path(benchmarks.path), Path(dataset.path))
    summary.describe(dataset)
    publish(dataset.path, "report.html", report.path)
