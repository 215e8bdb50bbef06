"""Download the benchmarks' questions and images."""

from kfp.dsl import Dataset, Output

from components.images import component_of


@component_of("pipeline")
def download_benchmarks(plan: str, benchmarks: Output[Dataset]):
    """Download the benchmarks' questions and images, each file pinned and checked."""
    from multimodal_gemma.stages import component

    component.work("download", plan, what="benchmarks", output=benchmarks.path).describe(benchmarks)
