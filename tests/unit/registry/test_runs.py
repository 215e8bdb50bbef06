"""One run a pipeline run, whichever process asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import runs, server


def test_train_and_register_meet_in_one_run(config: Config) -> None:
    first = runs.ensure_run(config.registry, "pipeline-7")
    assert runs.ensure_run(config.registry, "pipeline-7") == first
    assert runs.ensure_run(config.registry, "pipeline-8") != first
    with server.connected(config.registry) as client:
        assert client.get_run(first).info.status == "RUNNING"


def test_without_a_pipeline_every_run_is_new(config: Config) -> None:
    assert runs.ensure_run(config.registry, "") != runs.ensure_run(config.registry, "")


def test_a_retried_pipeline_runs_again_in_its_finished_run(config: Config) -> None:
    run = runs.ensure_run(config.registry, "retried")
    with server.connected(config.registry) as client:
        client.set_terminated(run)
        assert runs.ensure_run(config.registry, "retried") == run
        assert client.get_run(run).info.status == "RUNNING"


def test_a_pipeline_that_failed_ends_its_run_as_failed(config: Config) -> None:
    run = runs.ensure_run(config.registry, "broken")
    other = runs.ensure_run(config.registry, "another")
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
from multimodal_gemma.registry import runs
print(runs.ensure_run(RegistryConfig(tracking_uri=sys.argv[1]), sys.argv[2]))
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
    assert runs.ensure_run(config.registry, name) == runs.ensure_run(config.registry, name)


def test_the_platforms_run_is_used_and_no_experiment_is_made(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    injected = runs.ensure_run(config.registry, "")
    monkeypatch.setenv("MLFLOW_RUN_ID", injected)
    config.registry.experiment = "must not appear"
    assert runs.ensure_run(config.registry, "pipeline") == injected
    with server.connected(config.registry) as client:
        assert client.get_experiment_by_name("must not appear") is None
        assert client.get_run(injected).data.tags[runs.PIPELINE_RUN] == "pipeline"


def test_artifacts_lie_beside_the_database_wherever_the_process_is(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run = runs.ensure_run(config.registry, "elsewhere")
    (tmp_path / "page.txt").write_text("x")
    with server.connected(config.registry) as client:
        client.log_artifact(run, "page.txt")
    beside = server.sqlite_file(config.registry.tracking_uri).parent / "mlartifacts"  # type: ignore[union-attr]
    assert (beside / run / "artifacts" / "page.txt").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.txt"]


def test_a_deleted_experiment_is_named(config: Config) -> None:
    config.registry.experiment = "gone"
    runs.ensure_run(config.registry, "x")
    with server.connected(config.registry) as client:
        client.delete_experiment(client.get_experiment_by_name("gone").experiment_id)
    with pytest.raises(InputError, match="experiment 'gone' was deleted"):
        runs.ensure_run(config.registry, "y")
