"""What the scenarios of tests/cluster are made of: everything but the cluster itself, for real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from multimodal_gemma import cli
from tests.cluster import machines, test_access, test_bad_days, test_good_days
from tests.cluster.machines import Cluster, Kubectl, Runs
from tests.servers.kfp_api import KfpServer
from tests.servers.kfp_nodes import training

REPOSITORY = Path(__file__).parents[3]


class Canned(Kubectl):
    """Answers from a dict, by the first words of the command that fit."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers, self.asked = answers, []

    def run(self, *arguments: str, given: str | None = None, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        words = " ".join(arguments)
        self.asked.append(words)
        found = [answer for beginning, answer in self.answers.items() if words.startswith(beginning)]
        return subprocess.CompletedProcess(arguments, 0 if found else 1, found[0] if found else "", "no such thing")


def test_without_a_cluster_every_scenario_is_skipped_and_says_why() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
    command = [sys.executable, "-m", "pytest", "tests/cluster", "-rs", "-p", "no:cacheprovider", "--cluster-cpu", "1"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "KUBECONFIG names no cluster; docs/cluster-kind.md makes one" in done.stdout
    assert re.search(r"^\d\d skipped", done.stdout.splitlines()[-1])


def test_a_cluster_that_does_not_answer_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{name: x, context: {cluster: x, user: x}}]\n"
        "clusters: [{name: x, cluster: {server: 'http://127.0.0.1:9'}}]\nusers: [{name: x, user: {}}]\n"
    )
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    assert re.search(r"cannot be used|not installed", Kubectl().unusable())


STORE = ("mlflow/object-store", "kubeflow/object-store")
SERVER = ("mlflow/mlflow-database", "mlflow/mlflow-admin")
USER = ("kubeflow/mlflow",)


@pytest.mark.parametrize(
    ("there", "made"),
    [((), [STORE, SERVER, USER]), ((*STORE, *SERVER), [USER]), ((*STORE, *SERVER, *USER), [])],
    ids=["none", "all but the runs' user", "all"],
)
def test_secrets_that_are_missing_are_made_by_the_commands_of_the_page(
    there: tuple[str, ...], made: list[tuple[str, ...]]
) -> None:
    scripts = machines.missing_secrets(lambda namespace, name: f"{namespace}/{name}" in there, "kubeflow")
    found = [re.findall(r"-n (\S+) create secret generic (\S+)", script) for script in scripts]
    assert [tuple(f"{n}/{s}".replace('"$RUNS"', "kubeflow") for n, s in each) for each in found] == made
    for script in scripts:
        subprocess.run(["bash", "-n", "-c", script], timeout=20, check=True)


def test_half_of_a_pair_of_secrets_is_not_papered_over() -> None:
    with pytest.raises(AssertionError, match="one is there and another is not"):
        machines.missing_secrets(lambda namespace, name: (namespace, name) == ("mlflow", "object-store"), "kubeflow")


@pytest.fixture
def dry(capsys: pytest.CaptureFixture[str]) -> Any:
    """Let `mmgemma submit` check what a scenario would submit; return the parameters."""

    def check(*overrides: str, params: tuple[str, ...] = ()) -> dict[str, Any]:
        command = Runs(Cluster(Kubectl(), cpu="1")).command("submit", "--dry-run", "--json")
        options = Runs(Cluster(Kubectl(), cpu="1")).options(*overrides, params=params)
        assert cli.main([*command[len(machines.MMGEMMA) :], *options]) == 0, capsys.readouterr().err
        return dict(json.loads(capsys.readouterr().out)["parameters"])

    return check


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        machines.SMALL,
        (*machines.LONG, "training.seed=101"),
        (*machines.NODES, "nodes.cpu=500m"),
        machines.REFUSED,
        machines.TOO_LARGE,
        machines.CHECKPOINTS,
        (*machines.SMALL, "data.sample.seed=11"),
    ],
)
def test_what_a_scenario_submits_is_accepted(dry: Any, overrides: tuple[str, ...]) -> None:
    told = json.dumps(dry(*overrides))
    assert all(one in told for one in overrides)
    assert "resources.cpu=1" in told or overrides is machines.TOO_LARGE


def test_the_pretended_accelerator_is_asked_for_by_parameters(dry: Any) -> None:
    told = json.dumps(dry(*machines.PRETENDED, params=("hardware=custom",)))
    assert "custom" in told
    assert machines.SELECTOR in told


def test_no_run_meets_the_champion_of_another() -> None:
    runs = Runs(Cluster(Kubectl()))
    names = [one for _ in range(3) for one in runs.options(*machines.SMALL) if one.startswith("registry.name=")]
    assert len(set(names)) == 3
    named = [one for one in runs.options("registry.name=mine") if one.startswith("registry.name=")]
    assert named == ["registry.name=mine"]


def test_a_secret_is_named_by_parameter(dry: Any) -> None:
    for kind in ("registry", "store"):
        assert "scenarios-1" in dry(params=(f"secret_{kind}=scenarios-1",)).values()


def test_a_run_is_submitted_followed_and_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    with KfpServer() as server:
        runs = Runs(Cluster(Canned({}), cpu="1", minutes=1, door=("--host", server.url, "--every", "0.05")))
        ended = runs.run(*machines.SMALL)
        assert (ended.code, ended.facts["gate"], ended.facts["outcome"]) == (0, "passed", "passed")
        assert set(ended.states) == test_good_days.TASKS
        server.story = training(gate="refused")
        refused = runs.run(*machines.REFUSED)
        assert (refused.code, refused.facts["gate"]) == (3, "refused")
        run = runs.start(*machines.SMALL)
        runs.stop(run)
        stopped = runs.follow(run)
        assert (stopped.code, stopped.facts["outcome"]) == (1, "stopped")


def test_the_pods_of_a_task_are_told_from_the_others(shared: Path) -> None:
    pod = json.loads((shared / "kfp-2.17" / "pod-failed.json").read_text())
    driver = json.loads(json.dumps(pod))
    driver["metadata"]["annotations"]["pipelines.kubeflow.org/runtime-role"] = "driver"
    kubectl = Canned({"get pods -n kubeflow -l pipeline/runid=RUN": json.dumps({"items": [pod, driver]})})
    runs = Runs(Cluster(kubectl))
    assert [one["metadata"]["name"] for one in runs.pods("RUN", "download-dataset")] == [pod["metadata"]["name"]]
    assert len(runs.pods("RUN")) == 1
    assert runs.pods("RUN", "download") == runs.pods("RUN", "train-model") == []


def test_a_task_at_work_is_waited_for_until_it_says_the_line(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = json.loads((shared / "kfp-2.17" / "pod-failed.json").read_text())
    pod["status"] = {"phase": "Running", "containerStatuses": [{"name": "main", "state": {"running": {}}}]}
    name = pod["metadata"]["name"]
    kubectl = Canned({"get pods": json.dumps({"items": [pod]}), f"-n kubeflow logs {name} -c main": "a\n"})
    monkeypatch.setattr(
        machines.time, "sleep", lambda _: kubectl.answers.update({f"-n kubeflow logs {name}": "done\n"})
    )
    kubectl.answers = {"get pods": kubectl.answers["get pods"], f"-n kubeflow logs {name}": "begun\n"}
    assert Runs(Cluster(kubectl, minutes=1)).at_work("RUN", "download-dataset", "done") == name
    with pytest.raises(AssertionError, match="waited 0 minutes"):
        machines.until("nothing", lambda: None, 0)


def test_mlflow_comes_back_after_a_scenario_without_it() -> None:
    replicas = json.dumps({"spec": {"replicas": 2}})
    kubectl = Canned({"-n mlflow get deployment": replicas, "get pods": '{"items": []}', "-n mlflow ": ""})
    with pytest.raises(ZeroDivisionError), Cluster(kubectl).without_mlflow():
        raise ZeroDivisionError
    scaled = [asked.split("=")[-1] for asked in kubectl.asked if " scale " in asked]
    assert scaled == ["0", "2"]
    assert "rollout status" in kubectl.asked[-1]


def test_the_child_is_killed_and_nothing_else(tmp_path: Path) -> None:
    """With a word of its own instead of the child's: this machine may run other trainings."""
    word = f"scenario-{os.getpid()}"
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", word])
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        command = [sys.executable, "-c", test_bad_days.KILL, word]
        deadline = time.monotonic() + 20
        while "killed" not in subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout:
            assert time.monotonic() < deadline
        assert victim.wait(20) == -9
        assert other.poll() is None
    finally:
        victim.kill()
        other.kill()
        victim.wait()
        other.wait()


def test_the_child_is_named_as_the_package_names_it() -> None:
    import importlib

    assert importlib.import_module(test_bad_days.CHILD).__name__ == test_bad_days.CHILD


def test_a_probe_tells_an_open_port_from_a_closed_one() -> None:
    import socket

    def probe(host: str, port: int) -> str:
        command = [sys.executable, "-c", test_access.PROBE, host, str(port)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert probe("127.0.0.1", port) == "reached"
    assert probe("127.0.0.1", port) == "refused"
    assert probe("no.such.name.invalid", 80) == "unknown name"


def test_the_foreign_pods_are_admitted_by_the_strictest_namespace() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    pod = test_access._pod("client", "image:1", ["sleep", "1"])
    validate.validate(pod, "1.37", strict=True)
