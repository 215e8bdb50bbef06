"""Registration on a real database: found before made, decided before crowned, whole after any interruption."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multimodal_gemma import cli, manifest
from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import packaging, runs, server, versions
from multimodal_gemma.registry.resolve import resolve_model
from multimodal_gemma.stages import register as stage
from multimodal_gemma.stages.summary import Summary
from tests.servers.kfp_api import KfpServer
from tests.unit.registry import artifacts
from tests.unit.registry.artifacts import ensure_run

Scored = Callable[..., Path]


@pytest.fixture
def submit(config: Config, model: Path, tmp_path: Path) -> Callable[..., Summary]:
    def run(evaluation: Path, pipeline_run: str = "") -> Summary:
        return stage.run(config, model, evaluation, tmp_path / f"out-{evaluation.name}", run_id=pipeline_run)

    return run


def held(config: Config) -> dict[str, str]:
    with server.connected(config.registry) as client:
        return versions.aliases(client, config.registry.name)


def numbers(config: Config) -> list[int]:
    with server.connected(config.registry) as client:
        found = client.search_model_versions(f"name = '{config.registry.name}'")
        return sorted(int(version.version) for version in found)


def test_the_first_fit_model_is_champion(config: Config, submit: Any, scored: Scored) -> None:
    made = submit(scored(0.8))
    assert made.facts["alias"] == "champion"
    assert made.facts["gate"] == "passed"
    assert held(config) == {"champion": "1"}


def test_the_title_changes_hands_and_the_former_champion_is_kept(config: Config, submit: Any, scored: Scored) -> None:
    submit(scored(0.5))
    made = submit(scored(0.9))
    assert held(config) == {"champion": "2", "previous-champion": "1"}
    assert made.facts["alias"] == "champion"


def test_a_worse_model_stays_challenger_with_its_reason(config: Config, submit: Any, scored: Scored) -> None:
    submit(scored(0.9))
    made = submit(scored(0.3))
    assert made.facts["alias"] == "challenger"
    assert made.facts["gate"] == "failed"
    assert held(config) == {"champion": "1", "challenger": "2"}
    with server.connected(config.registry) as client:
        tags = client.get_model_version(config.registry.name, "2").tags
        run = client.get_run(made.facts["run_id"])
    assert tags["gate"] == "failed"
    assert "worse beyond the paired interval" in tags["gate_reason"]
    assert run.data.metrics["gate_passed"] == 0
    assert "**failed**" in (made.folder / "decision.md").read_text()


def test_noise_costs_nobody_the_title(config: Config, submit: Any, scored: Scored) -> None:
    submit(scored(0.80, seed=1))
    made = submit(scored(0.78, seed=2))  # other questions wrong, on 20 images: far inside the interval
    assert made.facts["gate"] == "passed"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_infinite_scores_do_not_become_champion_through_the_database(
    config: Config, submit: Any, scored: Scored, value: float
) -> None:
    made = submit(scored(0.9, loss=value))
    assert made.facts["gate"] == "failed"
    assert "champion" not in held(config)
    with server.connected(config.registry) as client:
        assert "loss" not in client.get_run(made.facts["run_id"]).data.metrics


def test_contaminated_scores_win_nothing(config: Config, submit: Any, scored: Scored) -> None:
    assert submit(scored(0.99, contamination="contaminated")).facts["gate"] == "failed"
    assert submit(scored(0.98, contamination="allowed")).facts["gate"] == "failed"
    assert "champion" not in held(config)


def test_a_deleted_champion_leaves_the_title_free(config: Config, submit: Any, scored: Scored) -> None:
    submit(scored(0.9))
    with server.connected(config.registry) as client:
        client.delete_model_version(config.registry.name, "1")
    made = submit(scored(0.3))
    assert made.facts["alias"] == "champion"
    assert held(config) == {"champion": made.facts["version"]}


def test_a_champion_whose_artifacts_are_gone_is_not_beaten_silently(
    config: Config, submit: Any, scored: Scored
) -> None:
    first = submit(scored(0.5))
    with server.connected(config.registry) as client:
        place = client.get_run(first.facts["run_id"]).info.artifact_uri
    from mlflow.utils.file_utils import local_file_uri_to_path

    shutil.rmtree(Path(local_file_uri_to_path(place)) / "evaluation")
    made = submit(scored(0.9))
    assert made.facts["gate"] == "failed"
    assert "predictions of version 1" in made.facts["reason"]
    assert "are gone" in made.facts["reason"]


def test_a_champion_of_other_questions_is_not_beaten_silently(
    config: Config, submit: Any, scored: Scored, model: Path, tmp_path: Path
) -> None:
    submit(scored(0.5))
    other = artifacts.evaluation_folder(tmp_path / "other", model, artifacts.answers(0.9))
    rows = [json.loads(line) for line in (other / "predictions.jsonl").read_text().splitlines()]
    rows = [{**row, "question": f"another {row['question']}"} for row in rows]
    (other / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest.write(other, "evaluation", config={})
    made = submit(other)
    assert made.facts["gate"] == "failed"
    assert "0 of the 180 questions of pope_accuracy" in made.facts["reason"]


def test_paired_interval_is_that_of_the_formula(config: Config, submit: Any, scored: Scored) -> None:
    # The mean of per-image mean differences and Student's t over images, worked out from scratch.
    ours, theirs = artifacts.answers(0.6, seed=3), artifacts.answers(0.8, seed=4)
    submit(scored(0.8, seed=4))
    made = submit(scored(0.6, seed=3))
    means = (ours - theirs).reshape(artifacts.IMAGES, artifacts.QUESTIONS_AN_IMAGE).mean(axis=1)
    error = means.std(ddof=1) / np.sqrt(artifacts.IMAGES)
    low, high = means.mean() - 2.093 * error, means.mean() + 2.093 * error  # t(0.975, 19)
    rules = json.loads((made.folder / "registration.json").read_text())["rules"]
    reason = next(rule["reason"] for rule in rules if rule["name"] == "champion in vqa_accuracy")
    stated = [float(text.strip("[],")) for text in reason.split(": ")[1].split(" to ")[0].split()]
    assert stated == pytest.approx([means.mean(), low, high], abs=2e-4)


def test_a_second_registration_repeats_nothing(config: Config, submit: Any, scored: Scored) -> None:
    first = submit(scored(0.8), "pipeline-1")
    shutil.rmtree(first.folder)
    again = submit(scored(0.8), "another-run")
    assert again.cached
    assert again.digest == first.digest
    assert again.facts == first.facts
    assert numbers(config) == [1]


@pytest.mark.parametrize("step", ["ensure_logged", "create", "crown", "_write_down"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_registration_continues(
    config: Config, submit: Any, scored: Scored, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    from multimodal_gemma.registry import register as module

    submit(scored(0.5))
    place = {"ensure_logged": packaging, "create": versions, "crown": versions}.get(step, module)
    real = getattr(place, step)

    def dies(*arguments: Any, **named: Any) -> None:
        if when == "after":
            real(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, step, dies)
        with pytest.raises(KeyboardInterrupt):
            submit(scored(0.9), "pipeline")
    made = submit(scored(0.9), "pipeline")
    assert made.facts["alias"] == "champion"
    assert numbers(config) == [1, 2]
    assert held(config) == {"champion": "2", "previous-champion": "1"}
    with server.connected(config.registry) as client:
        run = client.get_run(made.facts["run_id"])
        assert run.info.status == "FINISHED"
        assert len(run.outputs.model_outputs) == 1


def test_a_better_champion_that_came_between_decision_and_crown_keeps_the_title(
    config: Config, submit: Any, scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    from multimodal_gemma.registry import register as module

    submit(scored(0.5))
    real, better = module._write_down, scored(0.95)
    worse = scored(0.7)

    def overtaken(*arguments: Any) -> None:
        real(*arguments)
        monkeypatch.setattr(module, "_write_down", real)
        submit(better)  # decides and crowns while the first is about to

    monkeypatch.setattr(module, "_write_down", overtaken)
    made = submit(worse)
    assert made.facts["gate"] == "failed"
    assert "worse beyond the paired interval" in made.facts["reason"]
    assert held(config) == {"champion": "3", "challenger": "2", "previous-champion": "1"}
    with server.connected(config.registry) as client:
        assert client.get_model_version(config.registry.name, "2").tags["gate"] == "failed"


def test_a_training_that_leads_to_a_known_version_ends_its_own_run(config: Config, submit: Any, scored: Scored) -> None:
    submit(scored(0.8), "first")
    second = ensure_run(config.registry, "second")  # as its training does
    again = submit(scored(0.8), "second")
    assert again.cached
    with server.connected(config.registry) as client:
        assert client.get_run(second).info.status == "FINISHED"
        assert client.get_run(again.facts["run_id"]).info.status == "FINISHED"
    config.registry.floors = {"pope_accuracy": 0.1}  # decided anew, in the version's own run
    third = ensure_run(config.registry, "third")
    submit(scored(0.8), "third")
    with server.connected(config.registry) as client:
        assert client.get_run(third).info.status == "FINISHED"


def test_an_attempt_that_was_killed_leaves_no_pending_model(
    config: Config, submit: Any, scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.models import Model

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Model, "log", dies)  # the logged model is made, its files are not there yet
        with pytest.raises(KeyboardInterrupt):
            submit(scored(0.9), "pipeline")
    submit(scored(0.9), "pipeline")
    with server.connected(config.registry) as client:
        experiment = client.get_experiment_by_name(config.registry.experiment).experiment_id
        assert [str(model.status) for model in client.search_logged_models([experiment])] == ["READY"]


def test_better_asks_for_more_than_an_equal(config: Config, submit: Any, scored: Scored) -> None:
    config.registry.rule = "better"
    assert submit(scored(0.6)).facts["gate"] == "passed"  # the first
    equal = submit(scored(0.62, seed=0))
    assert equal.facts["gate"] == "failed"
    assert "as registry.rule=better asks" in equal.facts["reason"]
    assert submit(scored(0.95)).facts["gate"] == "passed"


def test_an_artifact_store_that_refuses_is_one_sentence(
    config: Config, submit: Any, scored: Scored, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.write_text("a file where the folder should be")
    with server.connected(config.registry) as client:
        client.create_experiment("refusing", artifact_location=store.as_uri())
    config.registry.experiment = "refusing"
    with pytest.raises(InputError, match="the artifact store of MLflow at .* does not take"):
        submit(scored(0.8))


def test_other_floors_are_asked_of_the_same_version(config: Config, submit: Any, scored: Scored) -> None:
    config.registry.floors = {"pope_accuracy": 0.95}
    assert submit(scored(0.9)).facts["alias"] == "challenger"
    config.registry.floors = None
    assert submit(scored(0.9)).facts["alias"] == "champion"
    assert numbers(config) == [1]
    assert held(config) == {"champion": "1"}


def test_a_row_of_losses_within_the_noise_ends_at_the_margin(config: Config, submit: Any, scored: Scored) -> None:
    """Each is paired with the champion before it, none is measurably worse, and the third would be 0.10 below."""
    config.registry.margins = {"pope_accuracy": 0.08}
    said = [submit(scored(accuracy, seed=seed)) for seed, accuracy in enumerate((0.80, 0.75, 0.70))]
    assert [made.facts["gate"] for made in said] == ["passed", "passed", "failed"]
    assert "more than 0.08 below the best champion so far: 0.7000 to 0.8000 of version 1" in said[2].facts["reason"]
    assert "worse beyond" not in said[2].facts["reason"]
    # A person may accept the new level; from then on it is what counts.
    versions.promote(config.registry, "3")
    assert submit(scored(0.65, seed=5)).facts["gate"] == "passed"


def test_two_registrations_at_once_make_one_version(
    config: Config, submit: Any, scored: Scored, monkeypatch: Any
) -> None:
    # Both look for the version before either has made it: the younger one gives way.
    submit(scored(0.8))
    real, calls = versions.find, []

    def blind_at_first(*arguments: Any) -> Any:
        calls.append(1)
        return None if len(calls) == 1 else real(*arguments)

    monkeypatch.setattr(versions, "find", blind_at_first)
    made = submit(scored(0.8))
    assert made.facts["version"] == "1"
    assert numbers(config) == [1]
    assert held(config) == {"champion": "1"}


def test_the_run_remembers_where_it_came_from(
    config: Config, submit: Any, scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMGEMMA_IMAGE", "registry/trainer@sha256:1")
    monkeypatch.setenv("MMGEMMA_PIPELINE_DIGEST", "c" * 64)
    monkeypatch.setenv("MMGEMMA_GIT_COMMIT", "a" * 40)
    made = submit(scored(0.8), "kfp-run-1")
    with server.connected(config.registry) as client:
        run = client.get_run(made.facts["run_id"])
        pages = {
            entry.path
            for place in ("evaluation", "training", "gate")
            for entry in client.list_artifacts(run.info.run_id, place)
        }
        version = client.get_model_version(config.registry.name, "1")
        logged = client.get_logged_model(version.tags[versions.LOGGED_MODEL])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.lora.rank"] == "4"
    assert not any("secret" in value for value in run.data.params.values())
    assert run.data.tags[runs.PIPELINE_RUN] == "kfp-run-1"
    assert run.data.tags["mmgemma.git_commit"] == "a" * 40
    assert run.data.tags["mmgemma.image"] == "registry/trainer@sha256:1"
    assert run.data.tags["mmgemma.pipeline_digest"] == "c" * 64
    assert run.data.tags["mmgemma.dataset_digest"] == "d" * 64
    datasets = {entry.tags[0].value: entry.dataset.digest for entry in run.inputs.dataset_inputs}
    assert datasets == {"training": "d" * 36, "evaluation": "e" * 36}
    assert run.data.metrics["pope_accuracy"] == pytest.approx(0.8)
    assert {"pope_accuracy": 0.8}.items() <= {metric.key: metric.value for metric in logged.metrics}.items()
    assert {"evaluation/report.html", "evaluation/metrics.json", "evaluation/predictions.jsonl"} <= pages
    assert {"training/curves.html", "gate/decision.md"} <= pages


def test_an_injected_run_is_left_to_its_owner(
    config: Config, submit: Any, scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KFP's plugin makes a run for the pipeline and in it one for each task, of which each task is told its own."""
    parent = ensure_run(config.registry, "")
    with server.connected(config.registry) as client:
        experiment = client.get_run(parent).info.experiment_id
        nested = [client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id for _ in range(2)]
    monkeypatch.setenv("MLFLOW_RUN_ID", nested[0])
    assert ensure_run(config.registry, "kfp") == parent  # as training does
    monkeypatch.setenv("MLFLOW_RUN_ID", nested[1])
    assert submit(scored(0.8), "kfp").facts["run_id"] == parent
    with server.connected(config.registry) as client:
        assert [client.get_run(run).info.status for run in (parent, *nested)] == ["RUNNING"] * 3
        assert client.get_run(parent).data.metrics["pope_accuracy"] == pytest.approx(0.8)


def test_checkpoints_are_not_shipped_and_the_model_comes_back_whole(
    config: Config, submit: Any, scored: Scored, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMGEMMA_CACHE", str(tmp_path / "cache"))
    submit(scored(0.8))
    name = config.registry.name
    found = resolve_model(f"models:/{name}@champion", config)
    assert resolve_model(f"models:/{name}/1", config) == found == resolve_model(f"models:/{name}/latest", config)
    sent = {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    came = {path.relative_to(found).as_posix(): path.read_bytes() for path in found.rglob("*") if path.is_file()}
    assert came == {name: data for name, data in sent.items() if not name.startswith("checkpoints/")}


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "a@b", ".."])
def test_names_that_the_registry_refuses(config: Config, submit: Any, scored: Scored, name: str) -> None:
    config.registry.name = name
    with pytest.raises(InputError, match="registry"):
        submit(scored(0.8))


def test_what_cannot_be_paired_is_refused_before_anything_is_recorded(
    config: Config, submit: Any, scored: Scored
) -> None:
    config.registry.compared = ["pope_random_f1"]
    with pytest.raises(InputError, match="registry.compared names 'pope_random_f1'"):
        submit(scored(0.8))
    assert numbers(config) == []


def test_candidate_and_champion_can_be_looked_at_side_by_side(
    config: Config, submit: Any, scored: Scored, tmp_path: Path
) -> None:
    first = submit(scored(0.5))
    second = submit(scored(0.9))
    with server.connected(config.registry) as client:
        assert [entry.path for entry in client.list_artifacts(first.facts["run_id"], "gate")] == ["gate/decision.md"]
        assert "had no other champion" in (first.folder / "comparison.html").read_text()
        page = Path(
            client.download_artifacts(second.facts["run_id"], "gate/comparison.html", str(tmp_path))
        ).read_text()
    assert (second.folder / "comparison.html").read_text() == page  # where the pipelines' UI takes it from
    ours, theirs = artifacts.answers(0.9), artifacts.answers(0.5)
    for said in ("90.0%", "50.0%", "+40.0", f"{(ours > theirs).sum()}", "beside version 1 on 240 questions", "Won"):
        assert said in page
    assert "<script" not in page


def test_kfps_run_mlflows_run_and_the_version_name_each_other(
    config: Config, submit: Any, scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stands before one of the three finds the other two: by the name that people gave, and by the ids."""
    from multimodal_gemma.stages import preflight

    with KfpServer() as kfp:
        monkeypatch.setenv("KFP_HOST", kfp.url)
        assert cli.main(["submit", "--detach", "--run-name", "monday-evening"]) == 0
        ((identity, there),) = kfp.runs.items()
    assert there["display_name"] == "monday-evening"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # what the server's placeholders become in a pod
    asked = {"run_id": identity, "run_name": there["display_name"]}
    runs.open_run(config.registry, identity, preflight.called(asked))
    made = submit(scored(0.8), identity)
    with server.connected(config.registry) as client:
        version = client.get_model_version(config.registry.name, made.facts["version"])
        run = client.get_run(version.run_id)
    assert run.info.run_id == made.facts["run_id"]
    assert run.info.run_name == "monday-evening"
    assert run.data.tags[runs.PIPELINE_RUN] == version.tags[runs.PIPELINE_RUN] == identity
    assert f"Run monday-evening (`{run.info.run_id}`)" in version.description
    assert f"Version {version.version} of {config.registry.name}." in run.data.tags["mlflow.note.content"]
