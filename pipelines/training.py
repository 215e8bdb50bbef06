"""From conversations and images to a registered, exported model.

The graph (report-run always runs last, with the final status):

    preflight --> download-models --------.
              --> download-dataset --> preprocess-dataset --> train-model --> evaluate-model --> register-model
              --> download-benchmarks ----^-------------------------------------^                 |
                                                                       export-model <-- [gate passed]
"""

from kfp import dsl

from components.download_benchmarks.component import download_benchmarks
from components.download_dataset.component import download_dataset
from components.download_models.component import download_models
from components.evaluate_model.component import evaluate_model
from components.export_model.component import export_model
from components.images import image_of
from components.preflight.component import preflight
from components.preprocess_dataset.component import preprocess_dataset
from components.register_model.component import register_model
from components.report_run.component import report_run
from components.train_model.component import train_model
from pipelines.resources import accelerated, busy, light, retried, with_hub_token, with_object_store, with_registry

WEEK = 7 * 24 * 3600  # seconds


@dsl.pipeline(name="train-evaluate-register")
def stages(
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
):
    """The graph: a pipeline of its own, as the compiler passes resource parameters only into nested pipelines."""
    gpu = {
        "accelerator": resources_accelerator,
        "count": resources_accelerator_count,
        "cpu": resources_cpu,
        "memory": resources_memory,
        "node_selector": resources_node_selector,
        "tolerations": resources_tolerations,
    }

    checked = preflight(
        preset=preset,
        overrides=overrides,
        data_conversations=data_conversations,
        data_images=data_images,
        benchmarks_pope=benchmarks_pope,
        benchmarks_vqa=benchmarks_vqa,
        benchmarks_images=benchmarks_images,
        model_vision=model_vision,
        model_language=model_language,
        training_epochs=training_epochs,
        training_batch_size=training_batch_size,
        training_projector_lr=training_projector_lr,
        training_lora_lr=training_lora_lr,
        registry_tracking_uri=registry_tracking_uri,
        registry_name=registry_name,
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
        needed=["models", "dataset", "benchmarks", "preprocess"],
    )
    checked.set_caching_options(False)
    with_object_store(with_hub_token(retried(light(checked)), secret_hub), secret_store)
    plans = checked.outputs

    models = download_models(plan=plans["models"])
    dataset = download_dataset(plan=plans["dataset"])
    benchmarks = download_benchmarks(plan=plans["benchmarks"])
    for download, hours in ((models, 2), (dataset, 24), (benchmarks, 6)):
        download.set_caching_options(True)
        with_object_store(with_hub_token(retried(busy(download, memory="8Gi", hours=hours)), secret_hub), secret_store)

    processed = preprocess_dataset(
        plan=plans["preprocess"],
        raw=dataset.outputs["dataset"],
        models=models.outputs["models"],
        benchmarks=benchmarks.outputs["benchmarks"],
    )
    processed.set_caching_options(True)
    retried(busy(processed, memory="16Gi", hours=12), times=1)

    trained = train_model(
        config=plans["config"],
        run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        dataset=processed.outputs["dataset"],
        models=models.outputs["models"],
    )
    trained.set_caching_options(False)
    own = {name: plans[f"train_{name}"] for name in ("cpu", "memory", "node_selector", "tolerations")}
    place = {
        "accelerator": resources_accelerator,
        "count": plans["train_accelerator_count"],
        **own,
    }  # little, if others train
    with_registry(retried(accelerated(trained, hours=48, **place), times=2, wait="60s"), secret_registry)
    with_object_store(trained, secret_store)  # training.checkpoint_uri: what a reclaimed node had learnt

    evaluated = evaluate_model(
        config=plans["config"],
        model=trained.outputs["model"],
        benchmarks=benchmarks.outputs["benchmarks"],
        dataset=processed.outputs["dataset"],
    )
    evaluated.set_caching_options(False)
    retried(accelerated(evaluated, hours=12, **gpu), times=2, wait="60s")

    registered = register_model(
        config=plans["config"],
        run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        dataset=processed.outputs["dataset"],
        model=trained.outputs["model"],
        evaluation=evaluated.outputs["evaluation"],
    )
    registered.set_caching_options(False)
    registered.set_env_variable("MMGEMMA_IMAGE", image_of("trainer"))  # what the model was made with
    with_object_store(with_registry(retried(busy(registered, memory="8Gi", hours=2)), secret_registry), secret_store)

    # kfp.local can only resolve a condition on an output that is called Output.
    with dsl.If(registered.outputs["Output"] == "passed", name="gate-passed"):
        exported = export_model(
            config=plans["config"],
            model=trained.outputs["model"],
            evaluation=evaluated.outputs["evaluation"],
            registration=registered.outputs["registration"],
            benchmarks=benchmarks.outputs["benchmarks"],
        )
        exported.set_caching_options(False)
        with_object_store(with_hub_token(retried(busy(exported, memory="16Gi", hours=4)), secret_hub), secret_store)


@dsl.pipeline(
    name="multimodal-gemma-training",
    display_name="Train a vision-language model",
    pipeline_config=dsl.PipelineConfig(
        ttl_seconds_after_success=WEEK, ttl_seconds_after_failure=2 * WEEK, active_deadline_seconds=WEEK
    ),
)
def training(
    preset: str = "sample",
    overrides: list = [],  # noqa: B006
    data_conversations: str = "",
    data_images: str = "",
    benchmarks_pope: str = "",
    benchmarks_vqa: str = "",
    benchmarks_images: str = "",
    model_vision: str = "",
    model_language: str = "",
    training_epochs: int = 0,
    training_batch_size: int = 0,
    training_projector_lr: float = 0.0,
    training_lora_lr: float = 0.0,
    registry_tracking_uri: str = "",
    registry_name: str = "",
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
    """Train, evaluate, register and export a vision-language model. The defaults run the offline sample on a CPU.

    Args:
        preset: Where to start: sample (minutes on a CPU), llava-150k (the recipe, one GPU) or llava-1.5.
        overrides: Configuration keys as a list of texts, e.g. ["training.max_steps=500"]. They win over all else.
        data_conversations: LLaVA JSON, e.g. hf://datasets/ORG/NAME@REVISION/file.json or s3://. Empty: the preset's.
        data_images: Folder or prefix that image names are appended to, e.g. s3://. Empty: the preset's.
        benchmarks_pope: Folder of the three POPE files. Empty: the preset's.
        benchmarks_vqa: Folder with VQA v2 questions and annotations. Empty: the preset's.
        benchmarks_images: Where the benchmarks' images are. Empty: the preset's.
        model_vision: CLIP or SigLIP, e.g. hf://openai/clip-vit-large-patch14@REVISION. Empty: the preset's.
        model_language: Causal model, e.g. hf://google/gemma-3-270m@REVISION. Empty: the preset's.
        training_epochs: Passes over the training split. 0: the preset's.
        training_batch_size: Conversations an optimiser step. 0: the preset's.
        training_projector_lr: Learning rate of the projector, e.g. 0.001. 0: the preset's.
        training_lora_lr: Learning rate of the adapters, e.g. 0.0002. 0: the preset's.
        registry_tracking_uri: MLflow server, e.g. http://mlflow.mlflow:5000. Empty: the one that the platform injects.
        registry_name: Name of the registered model. Empty: the preset's.
        resources_accelerator: Resource name of the accelerator for training and evaluation, e.g. nvidia.com/gpu.
        resources_accelerator_count: Accelerators a pod, as text, e.g. "1". "0" runs on a CPU.
        resources_cpu: Cores for training and evaluation, e.g. "8".
        resources_memory: Memory for training and evaluation, e.g. "32Gi".
        resources_node_selector: Node labels, e.g. {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}.
        resources_tolerations: Taints to accept, e.g. [{"key": "nvidia.com/gpu", "operator": "Exists"}].
        secret_hub: Name of the Secret whose key "token" opens gated models. It may be absent.
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
            preset=preset,
            overrides=overrides,
            data_conversations=data_conversations,
            data_images=data_images,
            benchmarks_pope=benchmarks_pope,
            benchmarks_vqa=benchmarks_vqa,
            benchmarks_images=benchmarks_images,
            model_vision=model_vision,
            model_language=model_language,
            training_epochs=training_epochs,
            training_batch_size=training_batch_size,
            training_projector_lr=training_projector_lr,
            training_lora_lr=training_lora_lr,
            registry_tracking_uri=registry_tracking_uri,
            registry_name=registry_name,
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
