"""Register: record a scored model in MLflow, hold it against the champion, and name it champion or challenger."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files, manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages.summary import Summary

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config
    from multimodal_gemma.registry.register import Candidate, Registration

KIND = "registration"


def run(
    config: Config,
    model: Path,
    evaluation: Path,
    output: Path,
    *,
    dataset: Path | None = None,
    benchmarks: Path | None = None,
    run_id: str = "",
) -> Summary:
    """Register a model.

    Args:
        config: sections registry and evaluation.
        model: the model artifact.
        evaluation: the evaluation artifact of that very model.
        output: folder for registration.json and decision.md.
        dataset: the processed dataset, whose report is kept with the run; None leaves that out.
        benchmarks: what the model was scored on, for the pictures of the comparison; None leaves them out.
        run_id: the pipeline run's id, which ties training and registration to one run of MLflow.

    Returns:
        The version, its alias and the gate's word; cached if the version was there already.

    Raises:
        InputError: an artifact is unfinished or does not belong to the others, or MLflow cannot be reached or refuses.
    """
    candidate = _candidate(model, evaluation, dataset, benchmarks)
    from multimodal_gemma.registry.register import register

    made = register(config, candidate, run_id)
    written = _write(config, candidate, made, output)
    facts = {
        "name": made.name,
        "version": made.version,
        "alias": made.alias,
        "gate": made.decision.word,
        "reason": made.decision.reason,
    }
    return Summary(
        "register",
        output,
        written.digest,
        numbers={"gate_passed": float(made.decision.passed), "version": float(made.version)},
        facts={**facts, "run_id": made.run_id},
        cached=made.found,
    )


def _candidate(model: Path, evaluation: Path, dataset: Path | None, benchmarks: Path | None) -> Candidate:
    """Read the artifacts, and refuse those that do not belong together."""
    from multimodal_gemma.registry.register import Candidate

    model_manifest = manifest.read(model, "model")
    evaluation_manifest = manifest.verify(evaluation, "evaluation")
    metrics = files.read_json(evaluation / "metrics.json", "evaluation")
    if not isinstance(metrics, dict) or not isinstance(metrics.get("metrics"), dict):
        raise InputError(f"register: {evaluation / 'metrics.json'} holds no metrics. Evaluate the model again.")
    if metrics.get("model_digest") != model_manifest.digest:
        raise InputError(
            f"register: {evaluation} scored another model than {model}. Evaluate this model first, or give the model "
            "that it scored."
        )
    dataset_manifest = manifest.read(dataset, "processed-dataset") if dataset is not None else None
    learned_from = model_manifest.inputs.get("dataset")
    if dataset_manifest is not None and learned_from not in (None, dataset_manifest.digest):
        raise InputError(f"register: {model} did not learn from {dataset}. Give the dataset that it was trained on.")
    if benchmarks is not None and manifest.read(benchmarks, "benchmarks").digest != metrics.get("benchmarks_digest"):
        raise InputError(f"register: {model} was not scored on {benchmarks}. Give the benchmarks that it answered.")
    known = (dataset, dataset_manifest, benchmarks)
    return Candidate(model, model_manifest, evaluation, evaluation_manifest, metrics, *known)


def _write(config: Config, candidate: Candidate, made: Registration, output: Path) -> manifest.Manifest:
    value: dict[str, Any] = {
        "name": made.name,
        "version": made.version,
        "alias": made.alias,
        "gate": made.decision.word,
        "run_id": made.run_id,
        "experiment_id": made.experiment_id,
        "rules": [dataclasses.asdict(rule) for rule in made.decision.rules],
    }
    files.write_json(output / "registration.json", value)
    files.write_text(output / "decision.md", made.decision.markdown())
    files.write_text(output / "comparison.html", made.comparison or _not_compared(made))
    section = dataclasses.asdict(config.registry)
    section.pop("tracking_uri")  # a place of this machine, and perhaps a password
    inputs = {"model": candidate.model_manifest.digest, "evaluation": candidate.evaluation_manifest.digest}
    return manifest.write(
        output,
        KIND,
        config={"registry": section},
        inputs=inputs,
        exclude=lambda name: name == "comparison.html",  # a second registration finds its version and compares nothing
    )


def _not_compared(made: Registration) -> str:
    from multimodal_gemma.reporting.page import Page

    why = (
        f"Version {made.version} was registered before; gate/comparison.html of run {made.run_id} in MLflow is what "
        "its decision rests on."
        if made.found
        else f"{made.name} had no other champion that version {made.version} could be held against."
    )
    return Page("Candidate and champion", f"No comparison was made. {why}").html()
