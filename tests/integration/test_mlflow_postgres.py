"""The registry as a cluster runs it: MLflow on PostgreSQL, artifacts in S3, and servers that go away."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from multimodal_gemma.config.schema import Config, RegistryConfig
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import packaging, runs, server, versions
from multimodal_gemma.stages import register
from tests.integration import mlflow_servers
from tests.unit.registry import artifacts

ROOT = Path(__file__).parents[2]
REGISTER = """
import json, sys
from pathlib import Path
from multimodal_gemma.config.schema import Config, RegistryConfig
from multimodal_gemma.registry import packaging
from multimodal_gemma.stages import register
packaging.example = lambda: None
uri, name, model, evaluation, output = sys.argv[1:]
config = Config()
config.registry = RegistryConfig(tracking_uri=uri, name=name, experiment=name, floors=None)
print("ready", flush=True)
sys.stdin.readline()
made = register.run(config, Path(model), Path(evaluation), Path(output), run_id="one pipeline run")
print(json.dumps(made.facts))
"""
# A fresh environment: nothing of this project can be imported.
PREDICT = """
import sys
sys.modules["multimodal_gemma"] = None
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
table = pandas.DataFrame({"image": [sys.argv[3]], "question": ["what color is the car ?"]})
print("answer:", model.predict(table, params={"max_new_tokens": 4})[0])
"""


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mlflow_servers.Server]:
    programs = mlflow_servers.postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = tmp_path_factory.mktemp("servers")
    with mlflow_servers.postgres(programs) as store, mlflow_servers.object_store(folder) as environment:
        made = mlflow_servers.mlflow(folder, store, f"s3://{mlflow_servers.BUCKET}/artifacts", environment)
        made.start()
        yield made
        made.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.model_folder(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def config(
    mlflow_server: mlflow_servers.Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Config:
    for variable in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(packaging, "example", lambda: None)
    made = Config()
    name = request.node.name
    made.registry = RegistryConfig(tracking_uri=mlflow_server.uri, name=name, experiment=name, floors=None)
    return made


def submit(config: Config, model: Path, scratch: Path, accuracy: float, run_id: str = "") -> dict[str, str]:
    folder = scratch / f"evaluation-{accuracy}"
    if not folder.exists():
        artifacts.evaluation_folder(folder, model, artifacts.answers(accuracy))
    output = scratch / f"out-{accuracy}"
    return register.run(config, model, folder, output, run_id=run_id or f"run-{accuracy}").facts


def state(config: Config) -> tuple[dict[str, str], int]:
    """Aliases, and how many versions there are; no two of them may be of the same model with the same scores."""
    with server.connected(config.registry) as client:
        found = client.search_model_versions(f"name = '{config.registry.name}'")
        assert len({version.tags[versions.IDENTITY] for version in found}) == len(found)
        return versions.aliases(client, config.registry.name), len(found)


@pytest.mark.parametrize(("step", "when"), [("create", "after"), ("crown", "before")])
def test_a_server_that_dies_during_registration_costs_no_version_and_no_alias(
    config: Config,
    mlflow_server: mlflow_servers.Server,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    when: str,
) -> None:
    """Before: the request is never heard. After: it is done, and its answer is lost."""
    config.registry.name = f"{step}-{when}"
    submit(config, model, tmp_path, 0.5)
    real = getattr(versions, step)

    def dies(*arguments: Any, **named: Any) -> Any:
        if when == "after":
            real(*arguments, **named)
        mlflow_server.stop()
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(versions, step, dies)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        with pytest.raises(InputError, match="went away in the middle of the work"):
            submit(config, model, tmp_path, 0.9)
    mlflow_server.start()
    assert submit(config, model, tmp_path, 0.9)["alias"] == "champion"
    assert state(config) == ({"champion": "2", "previous-champion": "1"}, 2)


def test_a_server_that_comes_back_in_time_is_waited_for(
    config: Config, mlflow_server: mlflow_servers.Server, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, restarted = versions.create, []

    def restarts(*arguments: Any) -> Any:
        mlflow_server.stop()
        restarted.append(threading.Thread(target=mlflow_server.start))
        restarted[0].start()
        return real(*arguments)

    monkeypatch.setattr(versions, "create", restarts)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "8")
    assert submit(config, model, tmp_path, 0.8)["alias"] == "champion"
    restarted[0].join()
    assert state(config) == ({"champion": "1"}, 1)


def test_two_registrations_of_one_run_at_once_make_one_champion(
    config: Config, mlflow_server: mlflow_servers.Server, model: Path, tmp_path: Path
) -> None:
    submit(config, model, tmp_path, 0.5)
    evaluation = artifacts.evaluation_folder(tmp_path / "evaluation", model, artifacts.answers(0.9))
    name = config.registry.name
    started = [
        subprocess.Popen(
            [sys.executable, "-c", REGISTER, mlflow_server.uri, name, *map(str, (model, evaluation, tmp_path / place))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for place in ("one", "two")
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in started]
    assert said[0]["version"] == said[1]["version"]
    assert [facts["alias"] for facts in said] == ["champion", "champion"]
    aliases, count = state(config)
    assert (aliases, count) == ({"champion": said[0]["version"], "previous-champion": "1"}, 2)
    with server.connected(config.registry) as client:
        experiment = client.get_experiment_by_name(name).experiment_id
        found = client.search_runs([experiment], f"tags.`{runs.PIPELINE_RUN}` = 'one pipeline run'")
    assert [run.info.run_id for run in found] == [said[0]["run_id"]] == [said[1]["run_id"]]


def test_champion_answers_from_s3_where_this_project_is_not_installed(
    config: Config, mlflow_server: mlflow_servers.Server, model: Path, tmp_path: Path
) -> None:
    submit(config, model, tmp_path, 0.8)
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "red.png")
    encoded = base64.b64encode((tmp_path / "red.png").read_bytes()).decode()
    where = f"models:/{config.registry.name}@champion"
    command = [sys.executable, "-c", PREDICT, mlflow_server.uri, where, encoded]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].removeprefix("answer:").strip()


def test_the_platforms_run_is_filled_and_left_open(
    config: Config, mlflow_server: mlflow_servers.Server, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the KFP backend's MLflow plugin does: it makes the run and names server, run and experiment in each pod."""
    with server.connected(config.registry) as client:
        experiment = client.create_experiment("the platform's")
        injected = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    monkeypatch.setenv("MLFLOW_RUN_ID", injected)
    config.registry.tracking_uri = ""
    facts = submit(config, model, tmp_path, 0.8, run_id="kfp-run")
    assert facts["run_id"] == injected
    with server.connected(config.registry) as client:
        run = client.get_run(injected)
        assert client.get_experiment_by_name(config.registry.experiment) is None
        logged = client.get_logged_model(client.get_model_version(facts["name"], "1").tags[versions.LOGGED_MODEL])
    assert run.info.status == "RUNNING"
    assert run.data.metrics["pope_accuracy"] == pytest.approx(0.8)
    assert logged.experiment_id == experiment
