"""Everything that can be checked before anything is downloaded, and what each cached stage depends on.

One configuration is composed here, once. A stage whose result may be reused gets a plan instead of that
configuration: the keys that shape its result, the identity of what it would download, and the digest of the code that
makes it. The plan is its parameter, so a pipeline's cache (on a cluster and on a laptop alike) hits when the result
would be the same, and only then: another learning rate downloads nothing again, another file in the data folder does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import multimodal_gemma
from multimodal_gemma import config as configuration
from multimodal_gemma import files, logs
from multimodal_gemma.cluster.trainjob.place import divide
from multimodal_gemma.config import Config
from multimodal_gemma.config.flat import as_overrides
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import server

_log = logs.get("preflight")

# What a cached stage is told: sections of the configuration, less the keys that do not shape its result.
_SPLITTING = {"validation_fraction", "split_seed", "image_position", "max_text_tokens", "contamination"}
_FETCHING = {"conversations", "images", "image_roots", "sample", "allowed_hosts", "require_commits"}
_FETCHING |= {"conversations_sha256", "images_sha256", "max_file_bytes", "shard_bytes"}
_TOLD: dict[str, dict[str, set[str]]] = {
    "models": {
        "model": {
            *("vision_feature_layer", "vision_policy", "projector_policy", "language_policy"),
            *("language_quantization", "lora"),
        },
        "data": {"conversations", "images", "sample", *_SPLITTING},
    },
    "dataset": {"data": _SPLITTING},
    "benchmarks": {"benchmarks": set(), "data": {"conversations", "images", *_SPLITTING}},
    "preprocess": {"data": _FETCHING},
}
# Code that makes the cached artifacts, relative to the package.
_DOWNLOAD_CODE = ("data", "sample", "files.py", "manifest.py", "stages/download.py")
_CODE = {
    "models": _DOWNLOAD_CODE,
    "dataset": _DOWNLOAD_CODE,
    "benchmarks": _DOWNLOAD_CODE,
    "preprocess": ("data", "model", "files.py", "manifest.py", "stages/preprocess.py"),
}


@dataclasses.dataclass(frozen=True)
class Plans:
    """What the preflight hands to the stages, each as JSON.

    Attributes:
        config: the whole configuration.
        models: plan of download-models.
        dataset: plan of download-dataset.
        benchmarks: plan of download-benchmarks.
        preprocess: plan of preprocess-dataset.
        place: what train-model's pod asks of the cluster, see `cluster.trainjob.place.divide`; no JSON.
    """

    config: str
    models: str
    dataset: str
    benchmarks: str
    preprocess: str
    place: tuple[Any, ...] = ()


def run(
    preset: str,
    overrides: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    *,
    needed: Sequence[str] = tuple(_TOLD),
    placement: Mapping[str, Any] | None = None,
) -> Plans:
    """Compose and check the configuration, and plan the cached stages.

    Args:
        preset: one of `config.presets()`.
        overrides: `section.key=value` strings; they win over `settings`.
        settings: values of single parameters, named section_key (e.g. training_epochs); "" and 0 leave the preset's
            value.
        needed: the cached stages that the pipeline has; the plan of any other is "".
        placement: parameters resources_* and secret_* of a run on a cluster; in a pod that may speak to
            the Kubernetes API, the cluster is looked at too.

    Raises:
        InputError: a preset, key or value is wrong, MLflow does not answer, a source cannot be had, or the cluster
            cannot run it.
    """
    for override in overrides:
        if not isinstance(override, str):
            raise InputError(f"config: {override!r} is no override. Write each as a text section.key=value.")
    config = configuration.compose(preset, [*as_overrides(settings or {}), *overrides])
    server.check(config.registry)  # now, and not after hours of training
    config, place = divide(config, placement or {})
    if placement:
        _look_at_cluster(placement, config)
    plans = {stage: _plan(stage, config) if stage in needed else "" for stage in _TOLD}
    _log.info(f"preset {preset} with {len(overrides)} overrides is valid; its sources and MLflow answer")
    return Plans(config=configuration.to_json(config), place=place, **plans)


def _look_at_cluster(placement: Mapping[str, Any], config: Config) -> None:
    from multimodal_gemma.cluster.kube import client

    if not client.in_cluster():
        _log.info("this is no pod of a cluster: no cluster is looked at")
        return
    from multimodal_gemma.cluster.preflight import findings, look, needs

    asked = needs.of_run(placement, config, client.current_namespace(), inside=True)
    findings.require(look.look(client.connect, asked))


def planned(plan: str) -> Config:
    """Return the configuration of a plan; keys that do not shape the stage's result stand at their defaults."""
    return configuration.from_json(json.dumps(json.loads(plan)["config"]))


def code_digest(parts: Sequence[str]) -> str:
    """Return the sha256 over the package's files under `parts`, by name and content.

    Args:
        parts: files and folders relative to the package.
    """
    package = Path(multimodal_gemma.__file__).parent
    paths = sorted(path for part in parts for path in [package / part, *(package / part).rglob("*")] if path.is_file())
    return files.digest_of(
        [
            [path.relative_to(package).as_posix(), files.sha256_file(path)]
            for path in paths
            if "__pycache__" not in path.parts
        ]
    )


def _plan(stage: str, config: Config) -> str:
    everything = dataclasses.asdict(config)
    told = {
        section: {key: value for key, value in everything[section].items() if key not in ignored}
        for section, ignored in _TOLD[stage].items()
    }
    plan: dict[str, Any] = {"config": told, "code": code_digest(_CODE[stage])}
    if stage != "preprocess":  # which takes everything from artifacts
        from multimodal_gemma.data.downloads import KINDS

        plan["sources"] = KINDS[stage](config).fingerprint()
    return json.dumps(plan, sort_keys=True)
