"""Score a model on POPE and VQA v2."""

from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Markdown, Metrics, Model, Output

from components.images import component_of


@component_of("trainer")
def evaluate_model(
    config: str,
    model: Input[Model],
    benchmarks: Input[Dataset],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    pope_random: Output[ClassificationMetrics],
    pope_popular: Output[ClassificationMetrics],
    pope_adversarial: Output[ClassificationMetrics],
    report: Output[HTML],
    scores: Output[Markdown],
    dataset: Input[Dataset] = None,
):
    """Ask a model every question of the benchmarks and score its answers as the official scorers do."""
    from pathlib import Path

    from multimodal_gemma import config as configuration
    from multimodal_gemma.stages import component, evaluate

    with component.guarded():
        settings = configuration.from_json(config)
        data = Path(dataset.path) if dataset is not None else None
        summary = evaluate.run(settings, Path(model.path), Path(benchmarks.path), Path(evaluation.path), dataset=data)
    summary.log_to(metrics)
    summary.describe(evaluation)
    matrices = {"random": pope_random, "popular": pope_popular, "adversarial": pope_adversarial}
    component.log_confusion(evaluation.path, matrices)
    component.publish(evaluation.path, "report.html", report.path)
    component.write(component.scores_markdown(evaluation.path), scores.path)
