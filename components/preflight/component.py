"""Check everything that was asked for before anything is downloaded."""

from typing import NamedTuple

from components.images import component_of


@component_of("pipeline")
def preflight(
    preset: str,
    overrides: list,
    data_conversations: str,
    data_images: str,
    benchmarks_pope: str,
    benchmarks_vqa: str,
    benchmarks_images: str,
    model_vision: str,
    model_language: str,
    training_epochs: int,
    training_batch_size: int,
    training_projector_lr: float,
    training_lora_lr: float,
    registry_tracking_uri: str,
    registry_name: str,
    resources_accelerator: str,
    resources_accelerator_count: str,
    resources_cpu: str,
    resources_memory: str,
    resources_node_selector: dict,
    resources_tolerations: list,
    secret_hub: str,
    secret_store: str,
    secret_registry: str,
    image: str,
    needed: list,
) -> NamedTuple(
    "Plans",
    [
        *[("config", str), ("models", str), ("dataset", str), ("benchmarks", str), ("preprocess", str)],
        *[("train_accelerator_count", str), ("train_cpu", str), ("train_memory", str)],
        *[("train_node_selector", dict), ("train_tolerations", list)],
    ],
):
    """Check configuration and cluster, and state what each cached stage depends on."""
    asked = {**locals()}
    from multimodal_gemma.stages import preflight as stage
    from multimodal_gemma.stages.component import guarded

    placed = [name for name in asked if name.startswith(("resources_", "secret_", "image"))]
    placement = {name: asked.pop(name) for name in placed}
    with guarded():
        plans = stage.run(
            asked.pop("preset"), asked.pop("overrides"), asked, needed=asked.pop("needed"), placement=placement
        )
    return (plans.config, plans.models, plans.dataset, plans.benchmarks, plans.preprocess, *plans.place)
