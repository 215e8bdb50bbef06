"""Score a model on POPE and VQA v2."""

from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components.images import component_of


@component_of("trainer")
def evaluate_model(
    plan: str,
    model: Input[Model],
    benchmarks: Input[Dataset],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    pope_random: Output[ClassificationMetrics],
    pope_popular: Output[ClassificationMetrics],
    pope_adversarial: Output[ClassificationMetrics],
    report: Output[HTML],
    dataset: Input[Dataset] = None,
):
    """Ask a model every question of the benchmarks and score its answers as the official scorers do."""
    from multimodal_gemma.stages import component

    data = dataset.path if dataset is not None else None
    inputs = {"model": model.path, "benchmarks": benchmarks.path, "dataset": data}
    summary = component.headline(component.work("evaluate", plan, output=evaluation.path, **inputs))
    summary.log_to(metrics)
    summary.describe(evaluation)
    matrices = {"random": pope_random, "popular": pope_popular, "adversarial": pope_adversarial}
    component.log_confusion(evaluation.path, matrices)
    component.publish(evaluation.path, "report.html", report.path)
