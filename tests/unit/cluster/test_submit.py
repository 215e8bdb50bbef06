"""`mmgemma submit` against a server that speaks KFP's API: what is sent, what is said, and the exit code."""

from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest
import yaml

from multimodal_gemma import __version__, cli, files
from multimodal_gemma.data import benchmarks as questions
from multimodal_gemma.local.runner import compiled_pipeline
from tests.servers.kfp_api import KfpServer
from tests.servers.kfp_nodes import training

FAST = ["--every", "0.01", "--patience", "1"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    with KfpServer() as running:
        monkeypatch.setenv("KFP_HOST", running.url)
        yield running


def submitted(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, Any]:
    code = cli.main(["submit", *FAST, "--json", *argv])
    return code, json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(["submit", *FAST, *argv]) == 2
    return capsys.readouterr().err


def test_a_run_that_passed_the_gate_ends_with_0(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = submitted(capsys, "training.epochs=1")
    assert code == said["exit_code"] == 0
    assert (said["state"], said["gate"]) == ("SUCCEEDED", "passed")
    assert said["link"] == f"{server.url}/#/runs/details/{said['run_id']}"
    run = server.runs[said["run_id"]]
    assert run["runtime_config"]["parameters"] == {
        "p01_preset": "sample",
        "p06_overrides": ["training.epochs=1"],
    }
    assert server.experiments[run["experiment_id"]]["display_name"] == "multimodal-gemma"


def test_a_refused_gate_is_no_success(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.story = training(gate="refused")
    code, said = submitted(capsys)
    assert code == said["exit_code"] == 3
    assert said["gate"] == "refused"
    assert "gate refused" in said["message"]


def test_a_gate_that_is_not_told_is_no_success(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.story = training(gate="")
    assert submitted(capsys)[0] == 4


def test_a_failed_run_names_the_task_and_its_own_sentence(
    server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = "train: the loss is no number at step 12. Lower training.lora_lr."
    server.story = training(failing="train-model", message=sentence, tried={"train-model": ("Killed\n",)})
    code, said = submitted(capsys)
    assert (code, said["outcome"]) == (1, "failed")
    assert said["message"] == f"train-model failed after 2 tries: {sentence}"


def test_a_run_whose_tasks_are_not_listed_is_followed_to_its_end(
    server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.compressed = True
    code, said = submitted(capsys)
    assert code == 4
    assert "lists none of its tasks" in said["message"]


def test_the_pipeline_is_uploaded_once_and_named_by_its_digest(
    server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submitted(capsys, "--detach")[1]["pipeline"]["uploaded"] is True
    assert submitted(capsys, "--detach")[1]["pipeline"]["uploaded"] is False
    assert server.count("POST", "/upload_version") == server.count("POST", "/pipelines") == 1
    digest = files.sha256_file(compiled_pipeline())
    (version,) = server.versions.values()
    assert digest.startswith(version["name"].removeprefix("sha256-"))
    assert re.fullmatch(rf"{re.escape(__version__)}\+[0-9a-f]{{7}}", version["display_name"])
    assert version["description"] == f"sha256:{digest}"
    assert version["pipeline_spec"]["pipeline_spec"] == next(yaml.safe_load_all(compiled_pipeline().read_text()))


def test_the_second_submission_says_that_nothing_was_uploaded(
    server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for said in ("uploaded", "nothing was uploaded"):
        assert cli.main(["submit", *FAST, "--detach"]) == 0
        assert said in capsys.readouterr().err


def test_no_cache_reaches_the_innermost_task(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(capsys, "--detach")
    submitted(capsys, "--detach", "--no-cache")
    cached, plain = (version["pipeline_spec"]["pipeline_spec"] for version in server.versions.values())
    assert "enableCache" in json.dumps(cached)
    assert "enableCache" not in json.dumps(plain)


def test_parameters_may_be_named_without_their_numbers_and_a_file_may_hold_overrides(
    server: KfpServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_text("hardware: l4\np10_secret_registry: mine\noverrides: [training.epochs=2]\n")
    given = ["--params", str(tmp_path / "params.yaml"), "--param", "registry_tracking_uri=http://mlflow:5000/?a=b"]
    _, said = submitted(capsys, "--detach", "--run-name", "mine", "--service-account", "runner", *given, "data.limit=9")
    run = server.runs[said["run_id"]]
    assert run["runtime_config"]["parameters"] == {
        "p01_preset": "sample",
        "p02_hardware": "l4",
        "p06_overrides": ["training.epochs=2", "data.limit=9"],  # the later one wins
        "p07_registry_tracking_uri": "http://mlflow:5000/?a=b",
        "p10_secret_registry": "mine",
    }
    assert (run["display_name"], run["service_account"]) == ("mine", "runner")


def test_a_dry_run_sends_nothing(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "--dry-run", "--param", "contamination=drop"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == {
        "p01_preset": "sample",
        "p05_contamination": "drop",
    }
    assert server.requests == []


def test_a_version_of_the_server_can_be_run_by_its_digest(
    server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(capsys, "--detach")
    digest = files.sha256_file(compiled_pipeline())
    for version in (digest[:12], "latest"):
        code, said = submitted(capsys, "--pipeline-version", version)
        assert (code, said["gate"]) == (0, "passed")
    assert server.count("POST", "/upload_version") == 1


def test_a_pipeline_can_be_uploaded_without_a_run(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert submitted(capsys, "--upload")[1]["pipeline"]["uploaded"] is True
    code, said = submitted(capsys, "--upload")
    assert (code, said["pipeline"]["uploaded"], said["submitted"]) == (0, False, False)
    assert (len(server.versions), len(server.runs)) == (1, 0)


def test_a_run_can_be_followed_by_another_command_and_stopped(
    server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = submitted(capsys, "--detach")[1]["run_id"]
    code, said = submitted(capsys, "--follow", run_id)
    assert (code, said["run_id"], said["gate"]) == (0, run_id, "passed")
    other = submitted(capsys, "--detach")[1]["run_id"]
    assert submitted(capsys, "--stop", other)[0] == 0
    code, said = submitted(capsys, "--follow", other)
    assert (code, said["outcome"], said["state"]) == (1, "stopped", "FAILED")
    assert said["message"].startswith("The run was stopped")


def test_a_failed_run_goes_on_from_what_failed(
    server: KfpServer, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.story = training(failing="train-model", message="no room")
    run_id = submitted(capsys)[1]["run_id"]
    server.story, server.step = training(gate="refused"), 1_000.0
    code, said = submitted(capsys, "--retry", run_id)
    assert (code, said["run_id"], said["outcome"], said["retried"]) == (3, run_id, "refused", 1)
    assert "It had failed before, and went on when it was retried." in said["message"]
    page = (tmp_path / f"{said['run_name']}.html").read_text(encoding="utf-8")  # KFP runs no exit handler twice
    assert "The model was refused by the gate." in page
    assert "train-model failed" not in page
    assert server.count("POST", ":retry") == 1
    assert "has succeeded, so there is nothing to retry" in refused(capsys, "--retry", run_id)


def test_a_retry_whose_answer_is_lost_is_asked_for_once(
    server: KfpServer, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the page of the run's end is written
    server.story = training(failing="register-model", message="no MLflow")
    run_id = submitted(capsys)[1]["run_id"]
    server.story, server.step = training(), 100.0
    server.misbehave(cut="after", method="POST", contains=":retry")
    assert submitted(capsys, "--retry", run_id)[0] == 0
    assert server.count("POST", ":retry") == 1


def test_a_run_that_goes_on_is_not_retried(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.step = 1_000.0
    run_id = submitted(capsys, "--detach")[1]["run_id"]
    assert "has not ended" in refused(capsys, "--retry", run_id)


def test_ctrl_c_leaves_the_run_going_and_says_how_to_follow_it(server: KfpServer) -> None:
    server.step = 0.0  # it never ends
    command = [sys.executable, "-m", "multimodal_gemma.cli", "submit", *FAST]
    # A test run in the background (nohup make test &) ignores SIGINT, and so would this child by inheritance.
    default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=default) as process:
        deadline = time.monotonic() + 30
        while server.count("GET", "/run-0004") < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "mmgemma submit --follow run-0004" in said
    assert "--stop run-0004" in said
    assert server.count("POST", ":terminate") == 0


def test_outside_a_terminal_nothing_is_painted_over(server: KfpServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", *FAST]) == 0
    out, err = capsys.readouterr()
    assert "\r" not in out + err
    assert "\x1b" not in out + err
    assert len(re.findall(r"train-model: running", err)) == 1
    assert "passed the gate" in out


def test_new_data_submits_only_when_the_data_has_changed(
    server: KfpServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    conversations = tmp_path / "chat.json"
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    conversations.write_text(json.dumps([{"id": "1", "image": "1.jpg", "conversations": turns}]))
    (tmp_path / "images").mkdir()
    (tmp_path / "pope").mkdir()
    for name in questions.POPE_FILES.values():
        (tmp_path / "pope" / name).write_text("{}")
    benchmarks = [f"benchmarks.pope={tmp_path / 'pope'}", "benchmarks.vqa=", f"benchmarks.images={tmp_path / 'images'}"]
    where = f"data_conversations={conversations.as_uri()}"
    overrides = [*benchmarks, f"data.images={tmp_path / 'images'}", "--param", where]
    first = submitted(capsys, "--new-data", *overrides)[1]
    assert first["submitted"]
    code, again = submitted(capsys, "--new-data", *overrides)
    assert (code, again["submitted"], again["last_run"]) == (0, False, first["run_id"])
    assert len(server.runs) == 1
    conversations.write_text(json.dumps([{"id": "2", "image": "2.jpg", "conversations": turns}] * 2))
    assert submitted(capsys, "--new-data", "--detach", *overrides)[1]["submitted"]
    server.story = training(failing="preflight")
    server.runs.popitem()
    assert submitted(capsys, "--new-data", *overrides)[0] == 1  # failed, so its data still counts as new
    assert submitted(capsys, "--new-data", "--detach", *overrides)[1]["submitted"]


# What the server of these tests says is what the published types say.


def conforms(value: Any, kind: str) -> None:
    """Raise unless `value` has only fields of the model `kind`, each of its type."""
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        for item in value:
            conforms(item, match.group(1))
    elif match := re.fullmatch(r"dict\(str, (.*)\)", kind):
        for item in value.values():
            conforms(item, match.group(1))
    elif kind == "object":
        assert isinstance(value, dict | list | str | int | float | bool)
    elif kind in ("str", "datetime"):
        assert isinstance(value, str)
    elif kind in ("int", "bool"):
        assert isinstance(value, {"int": int, "bool": bool}[kind])
    else:
        model = getattr(kfp_server_api, kind)
        if not model.openapi_types:
            assert value in model.allowable_values
            return
        names = {json_name: field for field, json_name in model.attribute_map.items()}
        for name, item in value.items():
            assert name in names, f"{kind} has no field {name}"
            conforms(item, model.openapi_types[names[name]])


def test_every_answer_of_the_test_server_has_the_published_shape() -> None:
    with KfpServer() as server:
        server.story = training(failing="train-model", message="no", tried={"train-model": ("lost",)})

        def ask(method: str, path: str, kind: str, body: Any = None, **query: str) -> Any:
            answer = server.answer(method, f"/apis/v2beta1{path}", query, body or {}, compiled_pipeline().read_text())
            conforms(answer, kind)
            return answer

        ask("GET", "/healthz", "V2beta1GetHealthzResponse")
        pipeline = ask("POST", "/pipelines", "V2beta1Pipeline", {"display_name": "p"})["pipeline_id"]
        ask("GET", "/pipelines", "V2beta1ListPipelinesResponse", page_size="1")
        version = ask("POST", "/pipelines/upload_version", "V2beta1PipelineVersion", name="v", pipelineid=pipeline)
        of_version = f"/pipelines/{pipeline}/versions"
        ask("GET", of_version, "V2beta1ListPipelineVersionsResponse")
        ask("GET", f"{of_version}/{version['pipeline_version_id']}", "V2beta1PipelineVersion")
        experiment = ask("POST", "/experiments", "V2beta1Experiment", {"display_name": "e"})["experiment_id"]
        ask("GET", "/experiments", "V2beta1ListExperimentsResponse")
        what = {
            "display_name": "r",
            "experiment_id": experiment,
            "runtime_config": {"parameters": {"p01_preset": "sample"}},
            "pipeline_version_reference": {
                "pipeline_id": pipeline,
                "pipeline_version_id": version["pipeline_version_id"],
            },
        }
        run = ask("POST", "/runs", "V2beta1Run", what)["run_id"]
        for _ in range(9):
            last = ask("GET", f"/runs/{run}", "V2beta1Run")
        assert last["state"] == "FAILED"
        ask("GET", "/runs", "V2beta1ListRunsResponse", experiment_id=experiment)
        trigger = {"cron_schedule": {"cron": "0 0 3 * * 1"}}
        again = {**what, "trigger": trigger, "mode": "ENABLE", "max_concurrency": "1"}
        recurring = ask("POST", "/recurringruns", "V2beta1RecurringRun", again)["recurring_run_id"]
        ask("POST", f"/recurringruns/{recurring}:disable", "object")
        ask("GET", "/recurringruns", "V2beta1ListRecurringRunsResponse")
        ask("DELETE", f"/recurringruns/{recurring}", "object")
        ask("POST", f"/runs/{run}:terminate", "object")
