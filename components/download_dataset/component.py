"""Download conversations and their images."""

from kfp.dsl import Dataset, Output

from components.images import component_of


@component_of("pipeline")
def download_dataset(plan: str, dataset: Output[Dataset]):
    """Download conversations and their images, each file pinned and checked."""
    from multimodal_gemma.stages import component

    component.work("download", plan, what="dataset", output=dataset.path).describe(dataset)
