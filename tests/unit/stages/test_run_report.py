"""report-run's page for runs that ended in every way, as a real KFP 2.17 told them (shared/kfp-2.17)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from multimodal_gemma import config
from multimodal_gemma.cluster.kfp.why import Causes
from multimodal_gemma.config import hardware
from multimodal_gemma.errors import InputError
from multimodal_gemma.reporting import run_page
from multimodal_gemma.stages import component, run_report
from multimodal_gemma.stages.run_report import Registered
from tests.unit.cluster.test_kfp_answers import pipeline
from tests.unit.registry.artifacts import ensure_run

RULES = ({"name": "floor of pope_accuracy", "passed": False, "reason": "0.5957 is below 0.85"},)
SETTINGS = hardware.resolve(config.compose("sample"))
LAUNCHER = "E1126 00:40:55.1 15 launcher_v2.go:449] Component failed to execute successfully: exit status 2\n"


class Server:
    """A KFP server that gives one of the answers; while report-run runs, the run itself is RUNNING."""

    def __init__(self, answer: dict[str, Any], log: str, *, ended: bool) -> None:
        self._log = log
        self.runs = SimpleNamespace(run_service_get_run=None)
        history = answer["state_history"]
        if not ended and history[-1]["state"] in ("SUCCEEDED", "FAILED"):
            history = history[:-1]
        self._answer = {**answer, "state": history[-1]["state"], "state_history": history}

    def call(self, *_: Any) -> Any:
        import kfp_server_api

        client = kfp_server_api.ApiClient()
        return client._ApiClient__deserialize(self._answer, "V2beta1Run")  # type: ignore[attr-defined]

    def log(self, *_: Any) -> str:
        return self._log


@pytest.fixture
def told(shared: Path):
    """Return what makes the page of one of the answers."""
    folder = shared / "kfp-2.17"
    if not folder.is_dir():
        pytest.skip(f"the answers of a real server are not at {folder}")

    def page(
        name: str, known: Registered | None = None, log: str = "", *, ended: bool = True, stopped: bool = False
    ) -> run_page.RunPage:
        answer = json.loads((folder / f"{name}.json").read_text())
        if stopped:
            answer["state_history"].append({"state": "CANCELING", "update_time": "2026-11-25T23:59:00Z"})
        server = Server(answer, log, ended=ended)
        end = run_report.ending(server, pipeline(), answer["run_id"], Causes(server, answer["run_id"]))  # type: ignore[arg-type]
        named = answer["display_name"]
        # As it was seen: a refused gate and a stopped run, too, came as COMPLETE, RUNNING or FAILED.
        state = {"state": "RUNNING", "error_message": None}
        return run_report.page_of(named, state, end, known or Registered(), SETTINGS, run_id=answer["run_id"])

    return page


PASSED = Registered(
    "http://mlflow:5000/#/experiments/1/runs/7", "multimodal-gemma", "3", "champion", ({"passed": True},)
)
REFUSED = Registered("http://mlflow:5000/#/experiments/1/runs/7", "multimodal-gemma", "4", "challenger", RULES)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(
    ("name", "known", "outcome", "verdict", "reason"),
    [
        ("run-succeeded", PASSED, "passed", "version 3 of multimodal-gemma is champion", ""),
        ("run-trainjob-succeeded", PASSED, "passed", "version 3", ""),
        ("run-pod-deleted-try-2", PASSED, "passed", "version 3", ""),
        ("run-gate-refused", REFUSED, "refused", "The gate refused the model: version 4", "0.5957 is below 0.85."),
        ("run-as-pipeline-runner-gate-refused", REFUSED, "refused", "version 4", "0.5957 is below 0.85."),
        ("run-killed-then-retried-by-button", REFUSED, "refused", "version 4", "0.5957 is below 0.85."),
        ("run-gate-refused", Registered(), "refused", "was refused by the gate", "MLflow could not be asked"),
        ("run-succeeded", Registered(), "passed", "passed the gate", "MLflow could not be asked"),
        ("run-task-failed-not-retried", Registered(), "failed", "failed", "no such object"),
        (
            "run-task-failed-after-3-tries",
            Registered(),
            "failed",
            "download-dataset failed after 4 tries",
            "no such object",
        ),
        ("run-preflight-failed", Registered(), "failed", "preflight failed", "no such object"),
        ("run-out-of-memory", Registered(), "failed", "train-model failed", "no such object"),
        ("run-pod-evicted", Registered(), "failed", "failed", "no such object"),
        ("run-driver-failed", Registered(), "failed", "could not be started", "no such object"),
    ],
)
def test_each_story_has_its_verdict_and_reason(told, name, known, outcome, verdict, reason, ended):
    log = f"error: download: s3://b/c.json cannot be had (no such object). Check it.\n{LAUNCHER}"
    page = told(name, known, log, ended=ended)
    assert page.outcome == outcome
    assert verdict in page.verdict
    assert reason in page.reason
    assert ("mmgemma submit --retry" in " ".join(page.commands.values())) == (outcome == "failed")
    html = run_page.render(page)
    assert all(step.name in html for step in page.steps)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("name", ["run-stopped", "run-stopped-with-trainjob"])
def test_a_stopped_run_is_called_stopped_and_names_the_task(told, name, ended):
    page = told(name, log="Terminated\n", ended=ended)
    assert (page.outcome, page.reason) == ("stopped", "")
    assert page.verdict == "The run was stopped during train-model."
    assert {step.name: step.status for step in page.steps}["train-model"] == "stopped"


def test_a_run_stopped_while_a_task_waited_for_a_node_says_which_and_why(told):
    page = told("run-waits-for-a-node", stopped=True)
    assert (page.outcome, page.verdict) == ("stopped", "The run was stopped during train-model.")
    assert page.reason.startswith("train-model: it had not begun: its pod has said nothing yet; it may wait for a node")
    assert "mmgemma submit --retry" in " ".join(page.commands.values())
    states = {step.name: step.status for step in page.steps}
    assert (states["preprocess-dataset"], states["train-model"], states["evaluate-model"]) == (
        "reused",
        "stopped",
        "not run",
    )


def test_the_version_and_the_question_to_it_are_at_hand(told):
    page = told("run-succeeded", PASSED)
    assert page.links["model version"] == "http://mlflow:5000/#/models/multimodal-gemma/versions/3"
    assert page.commands["ask the model"].endswith("--model models:/multimodal-gemma/3")


def test_without_server_and_mlflow_the_final_status_is_all_there_is():
    def judged(state: str) -> str:
        return run_report.page_of("r", {"state": state, "error_message": "no"}, None, Registered(), None).outcome

    assert [judged(state) for state in ("FAILED", "CANCELED", "COMPLETE", "RUNNING")] == [
        "failed",
        "stopped",
        "done",
        "unknown",
    ]


@pytest.fixture
def asked(tmp_path) -> dict[str, Any]:
    place = f"sqlite:///{tmp_path}/mlflow.db"
    return {
        "preset": "sample",
        "overrides": [],
        "registry_tracking_uri": place,
        "run_id": "run-1",
        "run_name": "sample-20261125-232731",
        "status": {"state": "FAILED", "error_code": 1, "error_message": "Task x failed."},
    }


def test_a_failed_run_is_failed_in_mlflow_too(asked, tmp_path, monkeypatch):
    from multimodal_gemma.registry import server

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(run_report, "_asked_server", lambda _: (None, ""))
    monkeypatch.setattr(run_report, "clean_up", lambda _: [])
    registry = config.compose("sample", [f"registry.tracking_uri={asked['registry_tracking_uri']}"]).registry
    run = ensure_run(registry, "run-1")
    status = asked.pop("status")
    run_report.run(asked, status, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "sample-20261125-232731" in page
    assert "Task x failed." in page
    with server.connected(registry) as client:
        assert client.get_run(run).info.status == "FAILED"


def test_a_configuration_that_was_refused_has_a_page_too(asked, tmp_path):
    status = asked.pop("status")
    run_report.run({**asked, "overrides": ["no.such=key"]}, status, tmp_path / "page.html")
    assert "The run failed." in (tmp_path / "page.html").read_text()


def test_the_component_passes_on_what_it_was_given(asked, tmp_path, monkeypatch):
    import dataclasses

    status = dataclasses.make_dataclass("Status", ["state"])("FAILED")
    seen: list[Any] = []
    monkeypatch.setattr(run_report, "run", lambda *given: seen.append(given))
    component.report({"preset": "sample", "status": status, "report": SimpleNamespace(path=str(tmp_path / "a"))})
    assert seen == [({"preset": "sample"}, {"state": "FAILED"}, tmp_path / "a")]


def test_a_server_that_cannot_be_reached_costs_the_page_nothing(asked, tmp_path, monkeypatch):
    from multimodal_gemma.cluster.kfp import connect
    from multimodal_gemma.cluster.kube import client

    def away(_: float) -> None:
        raise InputError("kfp: nothing listens there.")

    monkeypatch.setattr(client, "in_cluster", lambda: True)
    monkeypatch.setattr(connect, "inside", away)
    monkeypatch.setattr(run_report, "clean_up", lambda _: [])
    run_report.run(asked, asked.pop("status"), tmp_path / "page.html")
    assert "The run failed." in (tmp_path / "page.html").read_text()
