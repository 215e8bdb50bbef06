"""Score a registered model again: on other benchmarks, or after a change of the scorers.

The graph (report-run always runs last, with the final status):

    preflight --> fetch-registered-model --> evaluate-model --> record-evaluation
              --> download-benchmarks ------^
"""

from kfp import dsl

from components.download_benchmarks.component import download_benchmarks
from components.evaluate_model.component import evaluate_model
from components.fetch_registered_model.component import fetch_registered_model
from components.record_evaluation.component import record_evaluation
from pipelines import form, frame
from pipelines.resources import accelerated, busy, light, with_hub_token, with_object_store, with_registry

DAY = 24 * 3600  # seconds


@form.pipeline(
    form.REEVALUATION,
    name="multimodal-gemma-reevaluation",
    display_name="Score a registered model again",
    pipeline_config=dsl.PipelineConfig(
        ttl_seconds_after_success=7 * DAY, ttl_seconds_after_failure=14 * DAY, active_deadline_seconds=2 * DAY
    ),
)
def reevaluation(model, **asked):
    """Fetch a registered model, score it on benchmarks, and record the scores beside those it was registered with."""
    hub, store, registry = (asked[f"secret_{kind}"] for kind in ("hub", "store", "registry"))
    with frame.planned(asked, "fetch-evaluate-record", ["benchmarks"]) as plans:
        fetched = fetch_registered_model(plan=plans["plan"], location=model)
        fetched.set_caching_options(False)
        with_object_store(with_registry(busy(fetched, memory="8Gi", hours=2), registry), store)

        benchmarks = download_benchmarks(plan=plans["benchmarks"])
        benchmarks.set_caching_options(True)
        with_object_store(with_hub_token(busy(benchmarks, memory="8Gi", hours=6), hub), store)

        evaluated = evaluate_model(
            plan=plans["plan"], model=fetched.outputs["model"], benchmarks=benchmarks.outputs["benchmarks"]
        )
        evaluated.set_caching_options(False)
        accelerated(evaluated, plans, hours=12)

        recorded = record_evaluation(
            plan=plans["plan"],
            name=fetched.outputs["name"],
            model=fetched.outputs["model"],
            evaluation=evaluated.outputs["evaluation"],
        )
        recorded.set_caching_options(False)
        with_object_store(with_registry(light(recorded), registry), store)
