"""Download the benchmarks' questions and images."""

from kfp.dsl import Dataset, Output

from components.images import component_of


@component_of("pipeline")
def download_benchmarks(plan: str, benchmarks: Output[Dataset]):
    """Download the benchmarks' questions and images, each file pinned and checked."""
    from pathlib import Path

    from multimodal_gemma.stages import download, preflight
    from multimodal_gemma.stages.component import guarded

    with guarded():
        summary = download.run(preflight.planned(plan), "benchmarks", Path(benchmarks.path))
    summary.describe(benchmarks)
