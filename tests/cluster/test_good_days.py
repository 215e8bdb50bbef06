"""What is promised of a run when nothing goes wrong: all of it, once, and the same as on a laptop."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.machines import MMGEMMA, REFUSED, SMALL, Cluster, Ended, Runs, fresh, until

NAME = f"scenarios-{int(time.time())}"  # of the registered model: nobody else's champion is in the way
WORKFLOWS = "workflows.argoproj.io"
NAMED = (f"registry.name={NAME}", fresh())  # of the first run, whose training nobody has done
TASKS = {
    *("preflight", "download-models", "download-dataset", "download-benchmarks", "preprocess-dataset", "train-model"),
    *("evaluate-model", "register-model", "export-model", "report-run"),
}


@pytest.fixture(scope="module")
def first(runs: Runs) -> Ended:
    """A run of the whole sample."""
    return runs.run(*NAMED)


@pytest.mark.runs(1)
def test_a_run_succeeds_and_every_task_leaves_its_artifact(cluster: Cluster, first: Ended) -> None:
    assert first.code == 0, first.reasons
    assert (first.facts["state"], first.facts["gate"]) == ("SUCCEEDED", "passed")
    assert set(first.states) == TASKS
    assert set(first.states.values()) <= {"succeeded", "reused"}, first.states
    if not cluster.kubectl.found("deployment", "seaweedfs", "kubeflow"):
        return  # another store than the platform's own: how to list it is not known here
    place = f"/buckets/mlpipeline/v2/artifacts/multimodal-gemma-training/{first.facts['run_id']}"
    shell = f'echo "fs.tree {place}" | /usr/bin/weed shell'
    tree = cluster.kubectl("-n", "kubeflow", "exec", "deployment/seaweedfs", "--", "sh", "-c", shell)
    made = {name for name, state in first.states.items() if state == "succeeded"} - {"preflight"}
    assert {name for name in made if name not in tree} == set(), tree
    assert "model.safetensors" in tree


@pytest.mark.runs(2)
def test_the_scores_are_those_of_a_laptop(cluster: Cluster, runs: Runs, first: Ended, tmp_path: Path) -> None:
    there = _scores(cluster.mlflow("model-versions/search", filter=f"name='{NAME}'")["model_versions"][0])
    done = runs.mmgemma(*MMGEMMA, "run", "--preset", "sample", "--runs", str(tmp_path), *NAMED)
    assert done.returncode == 0, done.stderr
    uri = json.loads((tmp_path / "latest" / "summary.json").read_text())["mlflow_uri"]
    code = f"import mlflow; print(mlflow.MlflowClient({uri!r}).get_model_version({NAME!r}, '1').tags['mmgemma.scores'])"
    here = json.loads(runs.mmgemma(sys.executable, "-c", code).stdout.splitlines()[-1])
    compared = [name for name in ("pope_accuracy", "pope_f1", "vqa_accuracy") if name in here]
    assert compared
    # Another kind of CPU rounds differently, and a question or two may fall to the other side.
    assert {name: there[name] for name in compared} == pytest.approx({name: here[name] for name in compared}, abs=0.02)


def _scores(version: dict[str, Any]) -> dict[str, float]:
    (scores,) = [tag["value"] for tag in version["tags"] if tag["key"] == "mmgemma.scores"]
    return dict(json.loads(scores))


@pytest.mark.runs(2)
def test_the_same_run_again_repeats_nothing_that_is_cached(runs: Runs, first: Ended) -> None:
    again = runs.run(*NAMED)
    assert again.code == 0, again.reasons
    cached = TASKS - {"preflight", "register-model", "export-model", "report-run"}
    assert {name: again.states[name] for name in cached} == dict.fromkeys(cached, "reused")


@pytest.mark.runs(2)
def test_a_refused_gate_is_exit_code_3_and_nothing_is_exported(runs: Runs, first: Ended) -> None:
    refused = runs.run(*REFUSED)
    assert (refused.code, refused.facts["gate"]) == (3, "refused"), refused.reasons
    assert refused.states["register-model"] == "succeeded"
    assert refused.states["export-model"] not in ("succeeded", "reused", "failed")
    assert "gate" in refused.facts["message"]


@pytest.mark.runs(2)
def test_a_schedule_that_is_changed_leaves_its_run_going(cluster: Cluster, runs: Runs) -> None:
    schedule, options = f"{NAME}-schedule", runs.options(*SMALL, "data.sample.seed=11")

    def change(action: str, *more: str) -> None:
        done = runs.mmgemma(*runs.command("schedule", action, schedule, *more))
        assert done.returncode == 0, done.stderr

    def begun() -> str | None:
        known = cluster.kfp("recurringruns?page_size=200").get("recurring_runs", [])
        ours = {one["recurring_run_id"] for one in known if one["display_name"] == schedule}
        found = cluster.kfp("runs?page_size=50&sort_by=created_at%20desc").get("runs", [])
        return next((one["run_id"] for one in found if one.get("recurring_run_id") in ours), None)

    def workflow(run: str) -> dict[str, Any]:
        (found,) = cluster.kubectl.listed(WORKFLOWS, "-n", cluster.namespace, "-l", f"pipeline/runid={run}")
        return found

    change("create", "--cron", "0 * * * * *", *options)
    try:
        run = until("the schedule's first run", begun, 10)
        before = workflow(run)["metadata"]["uid"]
        change("create", "--cron", "0 0 0 1 1 *", *options)
        assert workflow(run)["metadata"]["uid"] == before
        ended = runs.follow(run)
        assert ended.code == 0, ended.reasons
    finally:
        change("delete")
