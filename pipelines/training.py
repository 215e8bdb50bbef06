"""From conversations and images to a registered, exported model.

The graph (report-run always runs last, with the final status):

    preflight --> download-models --------.
              --> download-dataset --> preprocess-dataset --> train-model --> evaluate-model --> register-model
              --> download-benchmarks ----^-------------------------------------^                 |
                                                                   export-model <-- only if its gate passed
"""

from kfp import dsl

from components.download_benchmarks.component import download_benchmarks
from components.download_dataset.component import download_dataset
from components.download_models.component import download_models
from components.evaluate_model.component import evaluate_model
from components.export_model.component import export_model
from components.images import image_of
from components.preprocess_dataset.component import preprocess_dataset
from components.register_model.component import register_model
from components.train_model.component import train_model
from pipelines import form, frame
from pipelines.resources import accelerated, busy, reusable, with_hub_token, with_object_store, with_registry

WEEK = 7 * 24 * 3600  # seconds
ONLY_IF = {"export-model": ("register-model", "passed")}  # a task, whose output it waits for, and with which value


@form.pipeline(
    form.TRAINING,
    name="multimodal-gemma-training",
    display_name="Train a vision-language model",
    pipeline_config=dsl.PipelineConfig(
        ttl_seconds_after_success=WEEK, ttl_seconds_after_failure=2 * WEEK, active_deadline_seconds=WEEK
    ),
)
def training(**asked):
    """Train, evaluate, register and export a vision-language model. The defaults run the offline sample on a CPU."""
    hub, store, registry = (asked[f"secret_{kind}"] for kind in ("hub", "store", "registry"))
    needed = ("models", "dataset", "benchmarks", "preprocess")
    with frame.planned(asked, "train-evaluate-register", needed) as plans:
        models = download_models(plan=plans["models"])
        dataset = download_dataset(plan=plans["dataset"])
        benchmarks = download_benchmarks(plan=plans["benchmarks"])
        for download, hours in ((models, 2), (dataset, 24), (benchmarks, 6)):
            download.set_caching_options(True)
            with_object_store(with_hub_token(busy(download, memory="8Gi", hours=hours), hub), store)
        with_registry(models, registry)  # model.adapter may be a registered model

        processed = preprocess_dataset(
            plan=plans["preprocess"],
            raw=dataset.outputs["dataset"],
            models=models.outputs["models"],
            benchmarks=benchmarks.outputs["benchmarks"],
        )
        processed.set_caching_options(True)
        with_object_store(busy(processed, memory="16Gi", hours=12), store)  # the store: data.work_uri

        trained = train_model(
            plan=plans["train"], dataset=processed.outputs["dataset"], models=models.outputs["models"]
        )
        accelerated(reusable(trained), plans, hours=48)
        with_object_store(with_registry(trained, registry), store)  # the store: training.checkpoint_uri

        evaluated = evaluate_model(
            plan=plans["evaluate"],
            model=trained.outputs["model"],
            benchmarks=benchmarks.outputs["benchmarks"],
            dataset=processed.outputs["dataset"],
        )
        accelerated(reusable(evaluated), plans, hours=12)
        with_registry(evaluated, registry)  # its log begins with the run's page

        registered = register_model(
            plan=plans["plan"],
            dataset=processed.outputs["dataset"],
            model=trained.outputs["model"],
            evaluation=evaluated.outputs["evaluation"],
            benchmarks=benchmarks.outputs["benchmarks"],
        )
        registered.set_caching_options(False)
        registered.set_env_variable("MMGEMMA_IMAGE", image_of("trainer"))  # what the model was made with
        with_object_store(with_registry(busy(registered, memory="8Gi", hours=2), registry), store)

        exported = export_model(
            plan=plans["plan"],
            model=trained.outputs["model"],
            evaluation=evaluated.outputs["evaluation"],
            registration=registered.outputs["registration"],
            benchmarks=benchmarks.outputs["benchmarks"],
        )
        exported.set_caching_options(False)
        with_object_store(with_hub_token(busy(exported, memory="16Gi", hours=4), hub), store)


form.only_if(training, ONLY_IF)
