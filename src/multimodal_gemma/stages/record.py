"""Record: new scores of a registered model, beside those it was registered with.

The scores become a run of their own in MLflow, tied to the logged model; every version that holds this model gets a
tag that names the run. Neither alias nor gate changes: whether a version should be champion is decided when it is
registered or by `mmgemma promote`.
"""

from __future__ import annotations

from pathlib import Path

from multimodal_gemma import files, logs, manifest
from multimodal_gemma.config import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages.summary import Summary

KIND = "record"
LAST_EVALUATION = "mmgemma.last_evaluation"  # tag of a version: the run that scored it last
_PAGES = ("metrics.json", "predictions.jsonl", "captions.jsonl", "report.html")


def run(config: Config, name: str, model: Path, evaluation: Path, output: Path, *, run_id: str = "") -> Summary:
    """Record an evaluation of a registered model.

    Args:
        config: names MLflow and the experiment.
        name: the registered model.
        model: the model artifact, as fetched.
        evaluation: an evaluation artifact of that very model.
        output: folder for record.json.
        run_id: the pipeline run's id.

    Returns:
        The MLflow run and the versions that were tagged.

    Raises:
        InputError: the evaluation is of another model, the registry has no version of it, or MLflow refuses.
    """
    from multimodal_gemma.registry import runs, server, versions

    digest = manifest.read(model, "model").digest
    scored = manifest.read(evaluation, "evaluation")
    metrics = files.read_json(evaluation / "metrics.json", "evaluation")
    if metrics["model_digest"] != digest:
        raise InputError(f"record: {evaluation} scored another model than {model}. Evaluate this model first.")
    with server.connected(config.registry) as client:
        found = [
            version
            for version in client.search_model_versions(f"name = {server.quoted(name)}")
            if version.tags.get(versions.MODEL_DIGEST) == digest
        ]
        if not found:
            raise InputError(
                f"record: {name} has no version with model {digest[:12]} any more. Register the model first."
            )
        run = runs.run_in(client, config.registry, run_id)
        tags = {
            "mmgemma.model_digest": digest,
            "mmgemma.evaluation_digest": scored.digest,
            "mmgemma.purpose": "evaluation",
        }
        runs.tags(client, run, tags)
        answered = metrics.get("benchmarks_digest") or scored.digest
        measured_on = runs.dataset(client, run, "benchmarks", answered, "evaluation", scored.counts)
        logged = found[0].tags[versions.LOGGED_MODEL]
        runs.metrics(client, run, metrics["metrics"], model_id=logged, dataset=measured_on)
        runs.folder_files(client, run, evaluation, _PAGES, "evaluation")
        for version in found:
            client.set_model_version_tag(name, version.version, LAST_EVALUATION, run)
        if not runs.injected_run():  # the platform ends the run that it made
            client.set_terminated(run)
    numbers = sorted(int(version.version) for version in found)
    files.write_json(output / "record.json", {"name": name, "versions": numbers, "run_id": run})
    inputs = {"model": digest, "evaluation": scored.digest}
    written = manifest.write(output, KIND, config={}, inputs=inputs)
    logs.get("record").info(f"scores of {name} version {', '.join(map(str, numbers))} are in run {run}")
    return Summary("record", output, written.digest, facts={"name": name, "run_id": run})
