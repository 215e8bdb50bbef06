"""Check everything that was asked for before anything is downloaded."""

from typing import NamedTuple

from components.images import component_of


@component_of("pipeline")
def preflight(
    preset: str,
    hardware: str,
    overrides: list,
    registry_tracking_uri: str,
    secret_hub: str,
    secret_store: str,
    secret_registry: str,
    needed: list,
    run_id: str,
    run_name: str,
    data_conversations: str = "",
    data_images: str = "",
    contamination: str = "",
) -> NamedTuple(
    "Plans",
    [
        *[
            ("plan", str),
            ("train", str),
            ("evaluate", str),
            ("models", str),
            ("dataset", str),
            ("benchmarks", str),
            ("preprocess", str),
        ],
        *[("accelerator", str), ("train_count", str), ("train_cpu", str), ("train_memory", str)],
        *[("train_nodes", dict), ("train_taints", list), ("evaluate_count", str), ("evaluate_cpu", str)],
        *[("evaluate_memory", str), ("evaluate_nodes", dict), ("evaluate_taints", list)],
    ],
):
    """Check configuration and cluster, and state what each cached stage depends on."""
    asked = {**locals()}
    from multimodal_gemma.stages import component

    return component.check(asked)
