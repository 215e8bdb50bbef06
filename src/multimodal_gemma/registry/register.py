"""From a trained and scored model to a version in the registry, with the gate's decision on it.

Everything is found before it is made: a second registration of the same model with the same scores finds its version
and repeats nothing, and one that was killed continues where it stopped. Nothing becomes champion before its decision is
written down.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files, logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation import questions
from multimodal_gemma.manifest import Manifest
from multimodal_gemma.registry import comparison, gate, packaging, runs, server, versions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from multimodal_gemma.config.schema import Config

COMPARISON = "comparison.html"  # beside decision.md, where there was a champion to be held against
_DECISIONS = 5  # made anew where the champion changed while it was made
_PAUSES = (1.0, 2.0, 4.0)  # seconds before a registration that met another one of the same run starts over
_CURVES = ("curves.jsonl", "curves.html", "run_config.json")
_EVALUATION_PAGES = ("metrics.json", "predictions.jsonl", "captions.jsonl", "report.html")
_DATASET_PAGES = ("report.html", "statistics.json")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is to be registered.

    Attributes:
        model: folder of the model artifact.
        model_manifest: its manifest.
        evaluation: folder of the evaluation artifact.
        evaluation_manifest: its manifest.
        metrics: its metrics.json.
        dataset: folder of the processed dataset, if it is at hand.
        dataset_manifest: its manifest.
        benchmarks: what it was scored on, if it is at hand; for the pictures of a comparison.
    """

    model: Path
    model_manifest: Manifest
    evaluation: Path
    evaluation_manifest: Manifest
    metrics: Mapping[str, Any]
    dataset: Path | None = None
    dataset_manifest: Manifest | None = None
    benchmarks: Path | None = None

    @property
    def identity(self) -> str:
        """What makes its version one of a kind: this model, scored like this."""
        return files.digest_of([self.model_manifest.digest, self.evaluation_manifest.digest])

    @property
    def benchmarks_digest(self) -> str:
        """Manifest digest of what it was scored on."""
        return str(self.metrics.get("benchmarks_digest") or self.evaluation_manifest.digest)

    @property
    def dataset_digest(self) -> str:
        """Manifest digest of the dataset it learned from; "" if the model does not say."""
        return self.dataset_manifest.digest if self.dataset_manifest else self.model_manifest.inputs.get("dataset", "")


@dataclasses.dataclass(frozen=True)
class Registration:
    """A version in the registry.

    Attributes:
        name: the registered model.
        version: its number, as text.
        alias: "champion", "challenger", "previous-champion", or "" if newer versions took its alias.
        decision: the gate's.
        run_id: the run of MLflow.
        experiment_id: that run's experiment.
        found: it was registered before, and nothing was done.
        comparison: the candidate beside the champion, an HTML page; "" if there was no champion, or nothing was done.
    """

    name: str
    version: str
    alias: str
    decision: gate.Decision
    run_id: str
    experiment_id: str
    found: bool
    comparison: str = ""


def register(config: Config, candidate: Candidate, pipeline_run: str = "") -> Registration:
    """Record a model in MLflow, decide on it, and name it champion or challenger.

    Args:
        config: sections registry and evaluation (confidence of the paired interval).
        candidate: the model with its scores.
        pipeline_run: the pipeline run's id; "" ties the run to the candidate itself.

    Raises:
        InputError: MLflow cannot be reached or refuses, or the gate cannot be asked that, see `gate.check`.
    """
    registry = config.registry
    versions.check_name(registry.name)
    gate.check(registry)
    with server.connected(registry) as client:
        for pause in _PAUSES:
            with server.tolerating_collisions():
                return _find_or_make(client, config, candidate, pipeline_run)
            time.sleep(pause * random.uniform(0.5, 1.5))  # two that collide at once should not do so again
        return _find_or_make(client, config, candidate, pipeline_run)


def _find_or_make(client: MlflowClient, config: Config, candidate: Candidate, pipeline_run: str) -> Registration:
    registry = config.registry
    version = versions.find(client, registry.name, candidate.identity)
    if version is not None:
        # The training that led here again has begun a run of its own; the version's is the one that goes on.
        runs.end_in(client, registry, pipeline_run, "FINISHED")
        if _is_settled(client, version, config):
            made = _registration(client, version, decision_of(version.tags[versions.DECISION]), found=True)
            known = f"{made.name} version {made.version} was registered before ({made.alias or 'no alias'})"
            logs.get("register").info(f"{known}: gate {made.decision.word}")
            return made
        run_id = version.run_id
    else:
        run_id = runs.run_in(client, registry, pipeline_run or f"register-{candidate.identity[:12]}")
    status = "FAILED"
    try:
        made = _make(client, config, candidate, version, run_id)
        status = "FINISHED"
    finally:
        _end(client, run_id, status)
    return made


def _make(
    client: MlflowClient, config: Config, candidate: Candidate, version: ModelVersion | None, run_id: str
) -> Registration:
    name = config.registry.name
    scored = _record(client, candidate, run_id)
    if version is None:
        model_id = packaging.ensure_logged(
            client, candidate.model, candidate.model_manifest, run_id, candidate.identity
        )
        version = versions.create(client, name, model_id, run_id, _version_tags(client, candidate, run_id))
    runs.metrics(
        client, run_id, candidate.metrics["metrics"], model_id=version.tags[versions.LOGGED_MODEL], dataset=scored
    )
    number = str(version.version)
    for _ in range(_DECISIONS):
        former = versions.aliases(client, name).get(versions.CHAMPION)
        decision, page = _decide(client, config, candidate, number, former)
        _write_down(client, run_id, name, number, decision, page)
        if not decision.passed:
            if versions.aliases(client, name).get(versions.CHAMPION) != number:
                client.set_registered_model_alias(name, versions.CHALLENGER, number)
            break
        if versions.crown(client, name, number, over=former):
            break
        logs.get("register").info("%s got another champion meanwhile; version %s is held against it", name, number)
    else:
        raise InputError(
            f"registry: the champion of {name} changed {_DECISIONS} times while version {number} was held against it. "
            "Register it again when the others have ended; nothing is repeated."
        )
    _describe(client, candidate, version, decision)
    # Last: whoever finds this tag need not do anything of the above again.
    client.set_model_version_tag(name, number, versions.SETTLED, _terms(config))
    made = _registration(client, version, decision, found=False, comparison=page)
    logs.get("register").info(f"{name} version {number} is {made.alias}: gate {decision.word} ({decision.reason})")
    return made


def _record(client: MlflowClient, candidate: Candidate, run_id: str) -> tuple[str, str]:
    """Write down what the run is; return the evaluation dataset as MLflow names it."""
    settings = candidate.model / "run_config.json"
    if settings.is_file():
        runs.parameters(client, run_id, files.read_json(settings, "model"))
    runs.tags(client, run_id, runs.lineage(candidate.model_manifest, candidate.dataset_digest))
    if learnt_from := candidate.dataset_digest:
        data = candidate.dataset_manifest
        facts, counts = (data.facts, data.counts) if data else ({}, {})
        runs.dataset(client, run_id, "processed-dataset", learnt_from, "training", counts, facts)
    counts = candidate.evaluation_manifest.counts
    scored = runs.dataset(client, run_id, "benchmarks", candidate.benchmarks_digest, "evaluation", counts)
    runs.folder_files(client, run_id, candidate.evaluation, _EVALUATION_PAGES, "evaluation")
    runs.predictions(client, run_id, questions.read_rows(candidate.evaluation))
    runs.folder_files(client, run_id, candidate.model, _CURVES, "training")
    if candidate.dataset is not None:
        runs.folder_files(client, run_id, candidate.dataset, _DATASET_PAGES, "dataset")
    return scored


def _decide(
    client: MlflowClient, config: Config, candidate: Candidate, number: str, former: str | None
) -> tuple[gate.Decision, str]:
    """Return the decision, and the comparison with the champion `former` for people ("" without one)."""
    registry = config.registry
    if former == number:
        # A registration that was killed after it crowned this version: the decision that did it stands.
        held = client.get_model_version(registry.name, number).tags.get(versions.DECISION)
        if held:
            return decision_of(held), ""
    champion = comparison.against(client, config, candidate, former) if former is not None else None
    status = str(candidate.metrics.get("contamination", {}).get("status", "unknown"))
    decision = gate.decide(registry, candidate.metrics["metrics"], contamination=status, champion=champion)
    return decision, champion.page if champion is not None else ""


def _write_down(client: MlflowClient, run_id: str, name: str, number: str, decision: gate.Decision, page: str) -> None:
    written = {
        "gate": decision.word,
        "gate_reason": decision.reason[:5000],
        versions.DECISION: json.dumps([dataclasses.asdict(rule) for rule in decision.rules]),
    }
    for key, value in written.items():
        client.set_model_version_tag(name, number, key, value)
    runs.tags(client, run_id, {"gate": decision.word, "gate_reason": decision.reason[:5000]})
    runs.metrics(client, run_id, {"gate_passed": float(decision.passed)})
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "decision.md").write_text(decision.markdown(), encoding="utf-8")
        if page:
            (Path(scratch) / COMPARISON).write_text(page, encoding="utf-8")
        client.log_artifacts(run_id, scratch, "gate")


def _describe(client: MlflowClient, candidate: Candidate, version: ModelVersion, decision: gate.Decision) -> None:
    """Write for people: on the version and its run what it scored and why the gate said what it said."""
    name, number, run_id = version.name, str(version.version), version.run_id
    called = client.get_run(run_id).info.run_name
    text = "\n\n".join(
        [
            f"**Gate {decision.word}**: {decision.reason}.",
            runs.scores_markdown(candidate.metrics),
            f"Run {called} (`{run_id}`) holds `evaluation/report.html`, `training/curves.html`, `gate/decision.md` "
            f"and, where there was a champion, `gate/{COMPARISON}`; `{runs.TABLE}` compares runs by question.",
        ]
    )
    client.update_model_version(name, number, description=text)
    runs.tags(client, run_id, {"mlflow.note.content": f"Version {number} of {name}.\n\n{text}"})
    client.update_registered_model(
        name,
        description="Small vision-language models that answer questions about pictures. The alias `champion` is the "
        f"one to use: `mmgemma ask PICTURE QUESTION --model models:/{name}@champion`. `previous-champion` is kept for "
        "`mmgemma rollback`; `challenger` is the latest that did not pass the gate.",
    )


def _version_tags(client: MlflowClient, candidate: Candidate, run_id: str) -> dict[str, str]:
    tags = {
        runs.PIPELINE_RUN: client.get_run(run_id).data.tags.get(runs.PIPELINE_RUN, ""),
        versions.IDENTITY: candidate.identity,
        versions.MODEL_DIGEST: candidate.model_manifest.digest,
        versions.EVALUATION_DIGEST: candidate.evaluation_manifest.digest,
        "mmgemma.dataset_digest": candidate.dataset_digest,
        versions.BENCHMARKS: candidate.benchmarks_digest,
        versions.SCORES: json.dumps(gate.finite(candidate.metrics["metrics"]), sort_keys=True),
        versions.PREDICTIONS: files.sha256_file(candidate.evaluation / "predictions.jsonl"),
    }
    for kind, section in (("pope", candidate.metrics.get("pope_mean")), ("vqa", candidate.metrics.get("vqa"))):
        if section:
            tags[f"{kind}_accuracy"] = f"{section['accuracy']:.3f} ({candidate.metrics['names'][kind]})"
    return {key: value for key, value in tags.items() if value}


def _terms(config: Config) -> str:
    """Return what a decision was made under; under other terms it is made anew."""
    asked = dataclasses.asdict(config.registry)
    terms = {name: asked[name] for name in ("floors", "compared", "margins", "required", "rule")}
    return files.digest_of([terms, config.evaluation.confidence])


def _is_settled(client: MlflowClient, version: ModelVersion, config: Config) -> bool:
    held = version.tags.get(versions.SETTLED)
    if held == _terms(config):
        return True
    # Other terms may let a challenger through, but never take the title from whoever holds or held it.
    return held is not None and versions.aliases(client, version.name).get(versions.CHAMPION) == str(version.version)


def _registration(
    client: MlflowClient, version: ModelVersion, decision: gate.Decision, *, found: bool, comparison: str = ""
) -> Registration:
    name, number, run_id = version.name, str(version.version), version.run_id
    alias = versions.alias_of(versions.aliases(client, name), number)
    experiment = str(client.get_run(run_id).info.experiment_id)
    return Registration(name, number, alias, decision, run_id, experiment, found, comparison)


def decision_of(text: str) -> gate.Decision:
    """Return the decision that a version's tag holds."""
    rules = [gate.Rule(**rule) for rule in json.loads(text)]
    return gate.Decision(all(rule.passed for rule in rules), rules)


def _end(client: MlflowClient, run_id: str, status: str) -> None:
    """End our own run; an injected one is ended by the platform that made it."""
    from mlflow.exceptions import MlflowException

    if runs.injected_run():
        return
    # A failure is on its way up already: that its run cannot be marked as failed would only hide the reason.
    with contextlib.suppress(*([MlflowException] if status == "FAILED" else [])):
        client.set_terminated(run_id, status)
