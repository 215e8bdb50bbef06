"""One run a pipeline run, whichever process asks."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import runs, server
from tests.unit.registry.artifacts import ensure_run


def test_train_and_register_meet_in_one_run(config: Config) -> None:
    first = ensure_run(config.registry, "pipeline-7")
    assert ensure_run(config.registry, "pipeline-7") == first
    assert ensure_run(config.registry, "pipeline-8") != first
    with server.connected(config.registry) as client:
        assert client.get_run(first).info.status == "RUNNING"


def test_without_a_pipeline_every_run_is_new(config: Config) -> None:
    assert ensure_run(config.registry, "") != ensure_run(config.registry, "")


def test_a_retried_pipeline_runs_again_in_its_finished_run(config: Config) -> None:
    run = ensure_run(config.registry, "retried")
    with server.connected(config.registry) as client:
        client.set_terminated(run)
        assert ensure_run(config.registry, "retried") == run
        assert client.get_run(run).info.status == "RUNNING"


def test_a_pipeline_that_failed_ends_its_run_as_failed(config: Config) -> None:
    run = ensure_run(config.registry, "broken")
    other = ensure_run(config.registry, "another")
    assert runs.end(config.registry, "broken", "KILLED") == run
    with server.connected(config.registry) as client:
        assert client.get_run(run).info.status == "KILLED"
        assert client.get_run(other).info.status == "RUNNING"
        client.set_terminated(other)
    assert runs.end(config.registry, "another", "FAILED") == ""  # it has ended well
    assert runs.end(config.registry, "never begun", "FAILED") == ""


FIRST_USE = """
import sys
from multimodal_gemma.config.schema import RegistryConfig
from multimodal_gemma.registry import runs, server
registry = RegistryConfig(tracking_uri=sys.argv[1])
with server.connected(registry) as client:
    print(runs.run_in(client, registry, sys.argv[2]))
"""


def test_two_at_once_may_be_the_first_to_use_a_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    begun = [
        subprocess.Popen([sys.executable, "-c", FIRST_USE, uri, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for name in ("one", "another")
    ]
    ended = [(process.communicate(timeout=180), process.returncode) for process in begun]
    assert [code for _, code in ended] == [0, 0], ended
    assert len({out for (out, _), _ in ended}) == 2


@pytest.mark.parametrize("name", ["it's", 'so "called"', "x y/z"])
def test_odd_names_are_found_again(config: Config, name: str) -> None:
    assert ensure_run(config.registry, name) == ensure_run(config.registry, name)


def test_the_platforms_run_is_used_and_no_experiment_is_made(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    injected = ensure_run(config.registry, "")
    monkeypatch.setenv("MLFLOW_RUN_ID", injected)
    config.registry.experiment = "must not appear"
    assert ensure_run(config.registry, "pipeline") == injected
    with server.connected(config.registry) as client:
        assert client.get_experiment_by_name("must not appear") is None
        assert client.get_run(injected).data.tags[runs.PIPELINE_RUN] == "pipeline"


def test_artifacts_lie_beside_the_database_wherever_the_process_is(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ensure_run(config.registry, "elsewhere")
    (tmp_path / "page.txt").write_text("x")
    with server.connected(config.registry) as client:
        client.log_artifact(run, "page.txt")
    beside = server.sqlite_file(config.registry.tracking_uri).parent / "mlartifacts"  # type: ignore[union-attr]
    assert (beside / run / "artifacts" / "page.txt").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.txt"]


def test_a_deleted_experiment_is_named(config: Config) -> None:
    config.registry.experiment = "gone"
    ensure_run(config.registry, "x")
    with server.connected(config.registry) as client:
        client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(InputError, match="experiment 'gone' was deleted"):
        ensure_run(config.registry, "y")


def test_a_parameter_keeps_its_first_value_and_the_difference_is_said(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    run = ensure_run(config.registry, "parameters")
    logging.getLogger("multimodal_gemma").propagate = True
    with server.connected(config.registry) as client:
        runs.parameters(client, run, {"training": {"epochs": 3}, "seed": 1})
        runs.parameters(client, run, {"training": {"epochs": 4}, "seed": 1, "new": [1]})
        held = client.get_run(run).data.params
    assert held == {"training.epochs": "3", "seed": "1", "new": "[1]"}
    assert "keeps its first value of training.epochs" in caplog.text


def test_a_package_inside_a_foreign_checkout_claims_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, timeout=300)
    installed = tmp_path / "site-packages" / "runs.py"
    installed.parent.mkdir()
    installed.write_text("")
    monkeypatch.delenv("MMGEMMA_GIT_COMMIT", raising=False)
    monkeypatch.setattr(runs, "__file__", str(installed))
    assert runs.git_commit() == ""
    monkeypatch.setenv("MMGEMMA_GIT_COMMIT", "a" * 40)
    assert runs.git_commit() == "a" * 40


def test_the_table_of_scores_keeps_its_cells_apart_and_goes_from_the_easiest_to_the_hardest():
    """MLflow's pages draw cells without any space between them: "0.949-0.9800.500" was seen."""
    score = {"accuracy": 0.968, "interval": [0.949, 0.98], "f1": 0.97, "majority_baseline": 0.5, "count": 10}
    pope = dict.fromkeys(("adversarial", "popular", "random"), score)  # as metrics.json, whose keys are sorted
    table, asked = runs.scores_markdown({"names": {"pope": "POPE"}, "pope": pope}).split("\n\n")
    lines = table.split("\n")
    assert lines[1].replace(" ", "") == "|---|---:|---:|---:|---:|"
    assert [line.split()[2] for line in lines[2:]] == ["random", "popular", "adversarial"]
    assert all("0.949-0.980 \N{NO-BREAK SPACE}| 0.500 \N{NO-BREAK SPACE}|" in line for line in lines[2:])
    assert asked == "On POPE."
