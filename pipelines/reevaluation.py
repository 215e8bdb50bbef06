"""Score a registered model again: on other benchmarks, or after a change of the scorers.

The graph (report-run always runs last, with the final status):

    preflight --> fetch-registered-model --> evaluate-model --> record-evaluation
              --> download-benchmarks ------^
"""

from kfp import dsl

from components.download_benchmarks.component import download_benchmarks
from components.evaluate_model.component import evaluate_model
from components.fetch_registered_model.component import fetch_registered_model
from components.images import image_of
from components.preflight.component import preflight
from components.record_evaluation.component import record_evaluation
from components.report_run.component import report_run
from pipelines.resources import accelerated, busy, light, retried, with_hub_token, with_object_store, with_registry

DAY = 24 * 3600  # seconds


@dsl.pipeline(name="fetch-evaluate-record")
def stages(
    model: str,
    preset: str,
    overrides: list,
    benchmarks_pope: str,
    benchmarks_vqa: str,
    benchmarks_images: str,
    registry_tracking_uri: str,
    resources_accelerator: str,
    resources_accelerator_count: str,
    resources_cpu: str,
    resources_memory: str,
    resources_node_selector: dict,
    resources_tolerations: list,
    secret_hub: str,
    secret_store: str,
    secret_registry: str,
):
    """The graph: a pipeline of its own, as the compiler passes resource parameters only into nested pipelines."""
    checked = preflight(
        preset=preset,
        overrides=overrides,
        data_conversations="",
        data_images="",
        benchmarks_pope=benchmarks_pope,
        benchmarks_vqa=benchmarks_vqa,
        benchmarks_images=benchmarks_images,
        model_vision="",
        model_language="",
        training_epochs=0,
        training_batch_size=0,
        training_projector_lr=0.0,
        training_lora_lr=0.0,
        registry_tracking_uri=registry_tracking_uri,
        registry_name="",
        resources_accelerator=resources_accelerator,
        resources_accelerator_count=resources_accelerator_count,
        resources_cpu=resources_cpu,
        resources_memory=resources_memory,
        resources_node_selector=resources_node_selector,
        resources_tolerations=resources_tolerations,
        secret_hub=secret_hub,
        secret_store=secret_store,
        secret_registry=secret_registry,
        image=image_of("trainer"),
        needed=["benchmarks"],
    )
    checked.set_caching_options(False)
    with_object_store(with_hub_token(retried(light(checked)), secret_hub), secret_store)

    fetched = fetch_registered_model(config=checked.outputs["config"], location=model)
    fetched.set_caching_options(False)
    with_object_store(with_registry(retried(busy(fetched, memory="8Gi", hours=2)), secret_registry), secret_store)

    benchmarks = download_benchmarks(plan=checked.outputs["benchmarks"])
    benchmarks.set_caching_options(True)
    with_object_store(with_hub_token(retried(busy(benchmarks, memory="8Gi", hours=6)), secret_hub), secret_store)

    evaluated = evaluate_model(
        config=checked.outputs["config"],
        model=fetched.outputs["model"],
        benchmarks=benchmarks.outputs["benchmarks"],
    )
    evaluated.set_caching_options(False)
    accelerated(
        evaluated,
        accelerator=resources_accelerator,
        count=resources_accelerator_count,
        cpu=resources_cpu,
        memory=resources_memory,
        node_selector=resources_node_selector,
        tolerations=resources_tolerations,
        hours=12,
    )
    retried(evaluated, times=2, wait="60s")

    recorded = record_evaluation(
        config=checked.outputs["config"],
        run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        name=fetched.outputs["name"],
        model=fetched.outputs["model"],
        evaluation=evaluated.outputs["evaluation"],
    )
    recorded.set_caching_options(False)
    with_object_store(with_registry(retried(light(recorded)), secret_registry), secret_store)


@dsl.pipeline(
    name="multimodal-gemma-reevaluation",
    display_name="Score a registered model again",
    pipeline_config=dsl.PipelineConfig(
        ttl_seconds_after_success=7 * DAY, ttl_seconds_after_failure=14 * DAY, active_deadline_seconds=2 * DAY
    ),
)
def reevaluation(
    model: str = "models:/multimodal-gemma@champion",
    preset: str = "sample",
    overrides: list = [],  # noqa: B006
    benchmarks_pope: str = "",
    benchmarks_vqa: str = "",
    benchmarks_images: str = "",
    registry_tracking_uri: str = "",
    resources_accelerator: str = "nvidia.com/gpu",
    resources_accelerator_count: str = "0",
    resources_cpu: str = "2",
    resources_memory: str = "8Gi",
    resources_node_selector: dict = {},  # noqa: B006
    resources_tolerations: list = [],  # noqa: B006
    secret_hub: str = "huggingface",
    secret_store: str = "object-store",
    secret_registry: str = "mlflow",
):
    """Fetch a registered model, score it on benchmarks, and record the scores beside those it was registered with.

    Args:
        model: The registered model: models:/NAME@ALIAS, models:/NAME/VERSION or models:/NAME/latest.
        preset: Where the benchmarks and evaluation settings come from: sample, llava-150k or llava-1.5.
        overrides: Configuration keys as a list of texts, e.g. ["benchmarks.vqa_questions=1000"]. They win.
        benchmarks_pope: Folder of the three POPE files. Empty: the preset's.
        benchmarks_vqa: Folder with VQA v2 questions and annotations. Empty: the preset's.
        benchmarks_images: Where the benchmarks' images are. Empty: the preset's.
        registry_tracking_uri: MLflow server, e.g. http://mlflow.mlflow:5000. Empty: the one that the platform injects.
        resources_accelerator: Resource name of the accelerator for the evaluation, e.g. nvidia.com/gpu.
        resources_accelerator_count: Accelerators a pod, as text, e.g. "1". "0" runs on a CPU.
        resources_cpu: Cores for the evaluation, e.g. "8".
        resources_memory: Memory for the evaluation, e.g. "32Gi".
        resources_node_selector: Labels of the node, e.g. {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}.
        resources_tolerations: Taints to accept, e.g. [{"key": "nvidia.com/gpu", "operator": "Exists"}].
        secret_hub: Name of the Secret whose key "token" opens gated benchmarks. It may be absent.
        secret_store: Name of the Secret whose keys "accesskey", "secretkey", "endpoint" open s3://. It may be absent.
        secret_registry: Name of the Secret whose keys "username" and "password" open MLflow. It may be absent.
    """
    ended = report_run(
        preset=preset,
        overrides=overrides,
        run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        registry_tracking_uri=registry_tracking_uri,
    )
    ended.set_caching_options(False)
    with_registry(retried(light(ended)), secret_registry)
    with dsl.ExitHandler(ended, name="guarded-run"):
        stages(
            model=model,
            preset=preset,
            overrides=overrides,
            benchmarks_pope=benchmarks_pope,
            benchmarks_vqa=benchmarks_vqa,
            benchmarks_images=benchmarks_images,
            registry_tracking_uri=registry_tracking_uri,
            resources_accelerator=resources_accelerator,
            resources_accelerator_count=resources_accelerator_count,
            resources_cpu=resources_cpu,
            resources_memory=resources_memory,
            resources_node_selector=resources_node_selector,
            resources_tolerations=resources_tolerations,
            secret_hub=secret_hub,
            secret_store=secret_store,
            secret_registry=secret_registry,
        )
