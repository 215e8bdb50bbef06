"""A real KFP 2.17's answers to runs that ended in every way: `--follow` says the right words, with the right exit code.

The files are the server's own (shared/kfp-2.17); they come from a pipeline whose export stood behind a condition, so
they are read with that pipeline's tasks.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multimodal_gemma import cli
from multimodal_gemma.cluster.kfp.why import last_word
from tests.servers.kfp_api import KfpServer

STAGES = [
    *("preflight", "download-models", "download-dataset", "download-benchmarks", "preprocess-dataset"),
    *("train-model", "evaluate-model", "register-model"),
]
OMITTED = {"evaluate-model": "not run", "register-model": "not run", "export-model": "not run"}


def pipeline() -> dict[str, Any]:
    """Return the graph of that day: an exit handler around a pipeline, which ends with a condition."""
    group = {"componentRef": {"name": "comp-condition-1"}, "triggerPolicy": {"condition": "passed"}}
    inner: dict[str, Any] = {name: {"componentRef": {"name": "code"}} for name in STAGES}
    report = {"componentRef": {"name": "code"}, "triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}}
    handled = {"componentRef": {"name": "comp-handled"}}
    return {
        "pipelineInfo": {"name": "multimodal-gemma-training"},
        "root": {"dag": {"tasks": {"exit-handler-1": handled, "report-run": report}}},
        "components": {
            "code": {"executorLabel": "code"},
            "comp-handled": {"dag": {"tasks": {**inner, "condition-1": group}}},
            "comp-condition-1": {"dag": {"tasks": {"export-model": {"componentRef": {"name": "code"}}}}},
        },
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    with KfpServer() as running:
        monkeypatch.setenv("KFP_HOST", running.url)
        yield running


@pytest.fixture
def answers(shared: Path) -> Path:
    """The folder of the server's answers."""
    folder = shared / "kfp-2.17"
    if not folder.is_dir():
        pytest.skip(f"the answers of a real server are not at {folder}")
    return folder


@pytest.fixture
def log(answers: Path) -> str:
    """The log of the task that failed, as the server gave it."""
    return (answers / "log-of-a-failed-task.txt").read_text(encoding="utf-8")


FULL = "0/1 nodes are available: 1 Insufficient cpu."  # seen, R1
PULL = 'Back-off pulling image "ghcr.io/a:1"'
LAUNCHER = "E1126 00:40:55.1 15 launcher_v2.go:449] Component failed to execute successfully: exit status {}\n"
FILES = [  # name, exit code, outcome, what is said, states that are worth a look, node and log
    ("succeeded", 0, "passed", "and passed the gate", {"download-models": "reused", "train-model": "succeeded"}),
    ("trainjob-succeeded", 0, "passed", "passed the gate", {"download-models": "reused", "export-model": "succeeded"}),
    ("pod-deleted-try-2", 0, "passed", "passed the gate", {"train-model": "succeeded"}),
    ("gate-refused", 3, "refused", "the gate refused the model", {"export-model": "skipped"}),
    ("as-pipeline-runner-gate-refused", 3, "refused", "the gate refused the model", {"preprocess-dataset": "reused"}),
    (
        "killed-then-retried-by-button",
        *(3, "refused", "It had failed before, and went on when it was retried."),
        {"train-model": "succeeded", "export-model": "skipped"},
    ),
    ("stopped", 1, "stopped", "The run was stopped during train-model.", {"train-model": "stopped", **OMITTED}),
    ("stopped-with-trainjob", 1, "stopped", "stopped during train-model.", {"train-model": "stopped", **OMITTED}),
    ("driver-failed", 1, "failed", "preflight could not be started: ", {"preflight": "failed", **OMITTED}),
    ("preflight-failed", 1, "failed", "preflight failed: ", {"preflight": "failed", "train-model": "not run"}),
    ("out-of-memory", 1, "failed", "train-model failed: killed (exit code 137)", {"train-model": "failed", **OMITTED}),
    ("pod-evicted", 1, "failed", "train-model failed: ended from outside (exit code 143)", {"train-model": "failed"}),
    ("task-failed-not-retried", 1, "failed", "download-dataset failed: download: s3://mlpipeline/nothing/here.json "
     "cannot be had (no such object). Check data.conversations.", {"preprocess-dataset": "not run"}),
    ("task-failed-after-3-tries", 1, "failed", "download-dataset failed after 4 tries: ", {"train-model": "not run"}),
]  # fmt: skip
LOGS = {  # by the node that the server's answer, or the pod's own annotation, names
    "multimodal-gemma-training-rjl5d-4148358502": "F1125 23:41:22.100000      15 main.go:79] KFP driver: "
    "driver.Container failed: Expected a non-empty string\n",
    "multimodal-gemma-training-fnc9l-1495559663": f"Killed\n{LAUNCHER.format(137)}",
    "multimodal-gemma-training-j2724-3857597122": f"Terminated\n{LAUNCHER.format(143)}",
}


@pytest.mark.parametrize(("name", "code", "outcome", "said", "states"), FILES, ids=[file[0] for file in FILES])
def test_a_run_of_the_real_server_is_told_as_it_was(
    server: KfpServer,
    answers: Path,
    log: str,
    capsys: pytest.CaptureFixture[str],
    name: str,
    code: int,
    outcome: str,
    said: str,
    states: dict[str, str],
) -> None:
    answer = json.loads((answers / f"run-{name}.json").read_text(encoding="utf-8"))
    run = server.replay(answer, pipeline(), LOGS | {"multimodal-gemma-training-h45xj-3508742075": log})
    ended = cli.main(["submit", "--patience", "0.2", "--follow", run, "--json", "--every", "0.01"])
    told = json.loads(capsys.readouterr().out)
    assert (ended, told["exit_code"], told["outcome"]) == (code, code, outcome)
    assert said in told["message"]
    tasks = {task["name"]: task for task in told["tasks"]}
    assert {name: tasks[name]["state"] for name in states} == states
    assert tasks["report-run"]["state"] == "succeeded"


def test_a_driver_that_failed_says_why(server: KfpServer, answers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = json.loads((answers / "run-driver-failed.json").read_text(encoding="utf-8"))
    assert cli.main(["submit", "--patience", "0.2", "--follow", server.replay(answer, pipeline(), LOGS)]) == 1
    assert "preflight could not be started: KFP driver: driver.Container failed: Expected" in capsys.readouterr().err


def test_a_second_try_is_told_with_its_number(
    server: KfpServer, answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = json.loads((answers / "run-pod-deleted-try-2.json").read_text(encoding="utf-8"))
    assert cli.main(["submit", "--patience", "0.2", "--follow", server.replay(answer, pipeline(), {})]) == 0
    assert "train-model: succeeded in 7 min 57 s, try 2" in capsys.readouterr().err


@pytest.mark.parametrize("template", ["retry-system-container-impl", "metadata-0-1-retry-system-container-impl"])
def test_a_pod_that_waits_for_a_node_is_no_running_one(
    server: KfpServer,
    answers: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    template: str,
) -> None:
    """The second is how KFP's compiler names the template of a task whose pod has a label of its own, as ours have."""
    answer = json.loads((answers / "run-waits-for-a-node.json").read_text(encoding="utf-8"))
    pod = f"multimodal-gemma-training-9p5x4-{template}-3275450235"
    run = server.replay(answer, pipeline(), {pod: ""})  # a pod without a node has an empty log

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("multimodal_gemma.cluster.kfp.follow.time.sleep", stop)
    assert cli.main(["submit", "--patience", "0.2", "--follow", run]) == 130
    said = capsys.readouterr().err
    assert "train-model: pending (its pod has said nothing yet; it may wait for a node" in said
    assert "train-model: running" not in said


def test_what_a_log_says_last(log: str) -> None:
    assert last_word(log).startswith("download: s3://mlpipeline/nothing/here.json cannot be had")
    crash = 'Traceback (most recent call last):\n  File "a.py", line 1\nRuntimeError: no\n'
    assert last_word(crash + LAUNCHER.format(1)) == "RuntimeError: no"
    assert last_word("a\nb\nc\nd\n" + LAUNCHER.format(9)) == "exit code 9: b / c / d"
    assert last_word("") == ""


@pytest.mark.parametrize(
    ("run", "pod", "node", "said"),
    [
        ("out-of-memory", "out-of-memory", "fnc9l-1495559663", "train-model failed: out of memory: asked for 450Mi"),
        (
            "pod-evicted",
            *("evicted", "j2724-3857597122"),
            'train-model failed: Evicted: Container main exceeded its local ephemeral storage limit "1Gi".',
        ),
    ],
)
def test_a_kubeconfig_tells_how_a_pod_died(
    answers: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    run: str,
    pod: str,
    node: str,
    said: str,
) -> None:
    monkeypatch.delenv("KFP_HOST", raising=False)
    answer, died = (json.loads((answers / f"{name}.json").read_text()) for name in (f"run-{run}", f"pod-{pod}"))
    assert died["metadata"]["annotations"]["workflows.argoproj.io/node-id"].endswith(node)
    with KfpServer() as server:
        server.objects["/api/v1/namespaces/kubeflow/pods"] = {"metadata": {}, "items": [died]}
        config = ["--kubeconfig", str(server.kubeconfig(tmp_path / "config")), "--patience", "0.2"]
        identity = server.replay(answer, pipeline(), LOGS)
        assert cli.main(["submit", "--follow", identity, "--port-forward", "kubeflow/ml-pipeline", *config]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": FULL}]},
            f"Unschedulable: {FULL}",
        ),
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": PULL}}}]},
            f"ImagePullBackOff: {PULL}",
        ),
        (None, "exceeded quota: accelerators"),
    ],
)
def test_a_kubeconfig_tells_why_a_pod_waits(
    answers: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    packed: bool,
    status: dict[str, Any] | None,
    said: str,
) -> None:
    monkeypatch.delenv("KFP_HOST", raising=False)
    answer = json.loads((answers / "run-waits-for-a-node.json").read_text(encoding="utf-8"))
    node = "multimodal-gemma-training-9p5x4-3275450235"
    waiting = {"metadata": {"name": "p", "annotations": {"workflows.argoproj.io/node-id": node}}, "status": status}
    nodes = {node: {"phase": "Pending", "message": "exceeded quota: accelerators"}}
    compressed = {"compressedNodes": base64.b64encode(gzip.compress(json.dumps(nodes).encode())).decode()}
    where = "/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows/multimodal-gemma-training-9p5x4"

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("multimodal_gemma.cluster.kfp.follow.time.sleep", stop)
    with KfpServer() as server:
        server.objects["/api/v1/namespaces/kubeflow/pods"] = {"metadata": {}, "items": [waiting] if status else []}
        server.objects[where] = {"status": compressed if packed else {"nodes": nodes}}
        config = ["--kubeconfig", str(server.kubeconfig(tmp_path / "config")), "--patience", "0.2"]
        identity = server.replay(answer, pipeline(), {})
        assert cli.main(["submit", "--follow", identity, "--port-forward", "kubeflow/ml-pipeline", *config]) == 130
    assert f"train-model: pending ({said})" in capsys.readouterr().err
