"""Everything that can be checked before anything is downloaded, and what each cached stage depends on.

One configuration is composed here, once. A stage whose result may be reused gets a plan instead of that
configuration: the keys that shape its result, the identity of what it would download, and the formats and versions that
make it. The plan is its parameter, so a pipeline's cache (on a cluster and on a laptop alike) hits when the result
would be the same, and only then: another learning rate downloads nothing again, another file in the data folder does.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from multimodal_gemma import config as configuration
from multimodal_gemma import files, logs, manifest
from multimodal_gemma.cluster.trainjob.place import divide
from multimodal_gemma.config import Config, hardware
from multimodal_gemma.config.flat import as_overrides
from multimodal_gemma.config.schema import ResourcesConfig
from multimodal_gemma.data import choose
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import gate, runs, server
from multimodal_gemma.stages import train

_log = logs.get("preflight")

# What a cached stage is told: sections of the configuration, less the keys that do not shape its result.
_SPLITTING = {"validation_fraction", "split_seed", "image_position", "max_text_tokens", "contamination"}
_SPLITTING |= {"image_fit", "pixels"}
_CHOOSING = {"columns", "max_faulty_fraction", *choose.KEYS}
_FETCHING = {"conversations", "images", "image_roots", "sample", "allowed_hosts", "require_commits", "locked"}
_FETCHING |= {"conversations_sha256", "images_sha256", "max_file_bytes", "shard_bytes", "download_threads"}
_TOLD: dict[str, dict[str, set[str]]] = {
    "models": {
        "model": {
            *("vision_feature_layer", "vision_policy", "projector_policy", "language_policy"),
            *("language_quantization", "lora"),
        },
        "data": {"conversations", "images", "sample", *_SPLITTING, *_CHOOSING},
    },
    "dataset": {"data": _SPLITTING},
    "benchmarks": {"benchmarks": set(), "data": {"conversations", "images", *_SPLITTING, *_CHOOSING}},
    "preprocess": {"data": _FETCHING | _CHOOSING},
}
_MAKERS = ("pillow", "tokenizers", "transformers")  # libraries whose next version may make other pixels or tokens
# What shapes the work that a later run may take over whole: sections, and code. The rest (another floor of the gate,
# another place to export to) trains nothing again.
_TRAINING = ("preset", "model", "training", "nodes", "data")
_WORK = {
    "train": (_TRAINING, train.CODE),
    "evaluate": ((*_TRAINING, "evaluation", "benchmarks"), (*train.CODE, "evaluation", "stages/evaluate.py")),
}


@dataclasses.dataclass(frozen=True)
class Plans:
    """What the preflight hands to the stages, in the order of the component's outputs.

    Attributes:
        plan: configuration and run, for every stage that is not cached; JSON, as the six below.
        train: plan of train-model.
        evaluate: plan of evaluate-model.
        models: plan of download-models.
        dataset: plan of download-dataset.
        benchmarks: plan of download-benchmarks.
        preprocess: plan of preprocess-dataset.
        accelerator: resource name of the accelerator, for the pods of train-model and evaluate-model.
        train_count: accelerators of train-model's pod, as text: the backend reads no numbers here.
        train_cpu: cores of it.
        train_memory: memory of it.
        train_nodes: labels that its node must have.
        train_taints: taints that it accepts.
        evaluate_count: likewise of evaluate-model's pod, as are the four below.
        evaluate_cpu: cores.
        evaluate_memory: memory.
        evaluate_nodes: labels.
        evaluate_taints: taints.
    """

    plan: str
    train: str
    evaluate: str
    models: str
    dataset: str
    benchmarks: str
    preprocess: str
    accelerator: str
    train_count: str
    train_cpu: str
    train_memory: str
    train_nodes: dict[str, str]
    train_taints: list[dict[str, str]]
    evaluate_count: str
    evaluate_cpu: str
    evaluate_memory: str
    evaluate_nodes: dict[str, str]
    evaluate_taints: list[dict[str, str]]


def run(asked: Mapping[str, Any]) -> Plans:
    """Compose and check the configuration, look at MLflow and the cluster, and plan the stages.

    Args:
        asked: the component's inputs: `preset`, `overrides`, parameters that are configuration keys (see `composed`),
            `needed`, the cached stages that the pipeline has (the plan of any other is ""), `run_id` and `run_name` of
            the pipeline run, and the names of the Secrets. All but `preset` may be left out.

    Raises:
        InputError: a preset, key or value is wrong, MLflow does not answer, a source cannot be had, or the cluster
            cannot run it.
    """
    needed, run_id = asked.get("needed", tuple(_TOLD)), asked.get("run_id", "")
    config = hardware.resolve(composed(asked))
    gate.check(config.registry)
    server.check(config.registry)  # now, and not after hours of training
    config, pod = divide(config, trainer=_has_trainer(config))
    _look_at_cluster(asked, config, trains="preprocess" in needed)
    plans: dict[str, Any] = {stage: _cached_plan(stage, config) if stage in needed else "" for stage in _TOLD}
    plan: dict[str, Any] = {"config": configuration.differences(config), "run_id": run_id}
    if run_id and "preprocess" in needed:
        plan["mlflow"] = runs.open_run(config.registry, run_id, called(asked))
    count = len(asked.get("overrides", ()))
    _log.info(f"preset {config.preset} with {count} overrides is valid; its sources and MLflow answer")
    return Plans(
        plan=json.dumps(plan, sort_keys=True),
        train=_work_plan("train", plan),
        evaluate=_work_plan("evaluate", plan),
        **plans,
        accelerator=config.resources.accelerator,
        **_pod("train", pod),
        **_pod("evaluate", config.resources),
    )


def composed(asked: Mapping[str, Any]) -> Config:
    """Compose the configuration of a pipeline run.

    Args:
        asked: parameters of the pipeline by name; an MLflow that the platform names (MLFLOW_TRACKING_URI) wins over the
            parameter, whose default is a guess, and an override over both.

    Raises:
        InputError: a preset, key or value is wrong.
    """
    overrides = list(asked.get("overrides") or ())
    for override in overrides:
        if not isinstance(override, str):
            raise InputError(f"config: {override!r} is no override. Write each as a text section.key=value.")
    settings = dict(asked)
    named, given = os.environ.get("MLFLOW_TRACKING_URI"), settings.get("registry_tracking_uri")
    if named and given and named != given:
        _log.info(f"MLflow is {server.shown(named)}, as MLFLOW_TRACKING_URI says, and not {server.shown(given)}")
        del settings["registry_tracking_uri"]
    return configuration.compose(str(asked.get("preset") or "sample"), [*as_overrides(settings), *overrides])


def called(asked: Mapping[str, Any]) -> str:
    """Return what people call a pipeline run: its name; on a laptop, whose runner knows none, its id."""
    named = asked.get("run_name") if os.environ.get("KUBERNETES_SERVICE_HOST") else ""
    return str(named or asked.get("run_id", ""))


def _pod(task: str, asked: ResourcesConfig) -> dict[str, Any]:
    values = {"count": str(asked.accelerator_count or 0), "cpu": asked.cpu, "memory": asked.memory}
    places = {"nodes": dict(asked.node_selector), "taints": list(asked.tolerations)}
    return {f"{task}_{name}": value for name, value in (values | places).items()}


def _has_trainer(config: Config) -> bool:
    """Whether a training on spot nodes can be a TrainJob's; it says so where it has to be the task's own."""
    from multimodal_gemma.cluster.kube import client

    if not (config.resources.spot and client.in_cluster()):
        return False
    from multimodal_gemma.cluster.trainjob import job

    there = job.available(job.here(), config.nodes.runtime)
    if not there:
        _log.info("no Kubeflow Trainer here: a spot node that goes costs what was learnt since the last checkpoint")
    return there


def _look_at_cluster(asked: Mapping[str, Any], config: Config, *, trains: bool) -> None:
    from multimodal_gemma.cluster.kube import client

    if not client.in_cluster():
        _log.info("this is no pod of a cluster: no cluster is looked at")
        return
    from multimodal_gemma.cluster.preflight import findings, look, needs

    if trains:
        hardware.require(config)
    wanted = needs.of_run(asked, config, client.current_namespace(), inside=True, trains=trains)
    findings.require(look.look(client.connect, wanted))


def made_by(stage: str) -> dict[str, Any]:
    """Return the numbers of the formats that a cached stage writes, and the versions of what it makes them with.

    Not a digest of the code: a new image whose results would be the same finds those that are there.
    """
    from multimodal_gemma.data import collect, pixels, sets, tokens
    from multimodal_gemma.stages import preprocess

    if stage == "models":
        return {"formats": [manifest.SCHEMA_VERSION]}
    if stage != "preprocess":
        return {"formats": [manifest.SCHEMA_VERSION, collect.FORMAT, sets.FORMAT]}
    versions = {name: metadata.version(name) for name in _MAKERS}
    return {"formats": [preprocess.FORMAT, pixels.FORMAT, tokens.FORMAT], "versions": versions}


def shaping(stage: str, config: Config) -> dict[str, dict[str, Any]]:
    """Return what of a configuration shapes the result of a cached stage, by section and key."""
    everything = dataclasses.asdict(config)
    return {
        section: {key: value for key, value in everything[section].items() if key not in ignored}
        for section, ignored in _TOLD[stage].items()
    }


def _work_plan(stage: str, plan: Mapping[str, Any]) -> str:
    """Return the plan of a stage whose result a later run may take over: without that run's own names.

    In a pod the task knows its run by the pod's label; elsewhere nothing is taken over, and the plan names the run.
    """
    sections, code = _WORK[stage]
    kept = {name: value for name, value in plan["config"].items() if name in sections}
    registry = plan["config"].get("registry", {})
    if logged := {key: registry[key] for key in ("tracking_uri", "experiment") if key in registry}:
        kept["registry"] = logged
    named = {} if "KFP_POD_NAME" in os.environ else {key: plan[key] for key in ("run_id", "mlflow") if key in plan}
    return json.dumps({"config": kept, "code": files.code_digest(code), **named}, sort_keys=True)


def _cached_plan(stage: str, config: Config) -> str:
    told, differing = shaping(stage, config), configuration.differences(config)
    # What stands at its default is left out, as every step of a run carries its plan; the digest covers it all.
    kept = {name: {key: value for key, value in differing.get(name, {}).items() if key in told[name]} for name in told}
    plan: dict[str, Any] = {"config": kept, "told": files.digest_of(told), "made_by": made_by(stage)}
    if stage != "preprocess":  # which takes everything from artifacts
        from multimodal_gemma.data.downloads import KINDS

        plan["sources"] = KINDS[stage](config).fingerprint()
    if stage == "models" and any(
        place.startswith("models:/") for place in (config.model.adapter, config.model.projector)
    ):
        kept["registry"] = {"tracking_uri": config.registry.tracking_uri}
    return json.dumps(plan, sort_keys=True)
