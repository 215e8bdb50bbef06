"""What the scenarios do to a cluster, by the commands that a person would use: kubectl and mmgemma."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

REPOSITORY = Path(__file__).parents[2]
MMGEMMA = (sys.executable, "-m", "multimodal_gemma.cli")
LAUNCHER = "pipelines.kubeflow.org/runtime-role"  # annotation of a task's pod
NODE_NAME = "workflows.argoproj.io/node-name"  # annotation: which task it is
# A run in a few minutes: few scenes, few steps, no floor. What comes of it says nothing; that it comes does.
SMALL = (
    "data.sample.train_scenes=40",
    "data.sample.held_out_scenes=6",
    "data.validation_fraction=0.2",
    "training.max_steps=3",
    "training.validations_per_epoch=1",
    "registry.floors=null",
)
# One that trains long enough to be disturbed, and leaves a checkpoint every few seconds.
LONG = (
    *(one for one in SMALL if not one.startswith(("training.max_steps", "data.sample.train_scenes"))),
    *("data.sample.train_scenes=400", "training.epochs=24", "training.patience=99"),
)
# A run whose training asks for an accelerator that only one node pretends to have.
SELECTOR = "mmgemma-scenario"  # label and taint of that node
PRETENDED = (
    *(*SMALL, "training.seed=103", "resources.cpu=1", "resources.memory=4Gi", "resources.accelerator_count=1"),
    f"resources.node_selector={{{SELECTOR}:pretended}}",
    f"resources.tolerations=[{{key:{SELECTOR},operator:Exists,effect:NoSchedule}}]",
)
# One that trains on two nodes; they and the pod that waits for them fit where one training pod fits.
NODES = (
    *LONG,
    "training.nodes=2",
    "nodes.work_uri=s3://mlpipeline/scenarios/work",
    "nodes.memory=2Gi",
)
REFUSED = ("registry.floors={pope_accuracy:1.01}",)
TOO_LARGE = (*SMALL, "resources.cpu=4096", "resources.memory=4Gi")
CHECKPOINTS = (*SMALL, "training.checkpoint_uri=s3://mlpipeline/scenarios/checkpoints")
Found = TypeVar("Found")


def fresh() -> str:
    """Return an override that makes a training no other: one that was done before would be taken from the cache."""
    return f"training.seed={time.time_ns() % 1_000_000_000}"


def until(what: str, look: Callable[[], Found | None], minutes: float, every: float = 3.0) -> Found:
    """Look again and again, and return what was found.

    Raises:
        AssertionError: it was not there in time.
    """
    deadline = time.monotonic() + minutes * 60
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline, f"waited {minutes:g} minutes for {what}"
        time.sleep(every)


class Kubectl:
    """The command, with the cluster of KUBECONFIG."""

    def __call__(self, *arguments: str, given: str | None = None, check: bool = True, seconds: float = 120) -> str:
        """Run it and return what it printed."""
        done = self.run(*arguments, given=given, seconds=seconds)
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def run(self, *arguments: str, given: str | None = None, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Run it, whatever comes of it."""
        return subprocess.run(
            ["kubectl", *arguments], input=given, capture_output=True, text=True, timeout=seconds, check=False
        )

    def unusable(self) -> str:
        """Say why there is no cluster to be used; "" where there is one."""
        try:
            done = self.run("version", "--output=json", "--request-timeout=20s", seconds=60)
        except FileNotFoundError:
            return "kubectl is not installed"
        except subprocess.TimeoutExpired:
            return "the cluster of KUBECONFIG does not answer"
        if done.returncode != 0 or "serverVersion" not in done.stdout:
            return f"the cluster of KUBECONFIG cannot be used: {' '.join(done.stderr.split()[-20:])}"
        return ""

    def found(self, kind: str, name: str, namespace: str = "") -> dict[str, Any] | None:
        """Return an object, or None where there is none."""
        where = ("-n", namespace) if namespace else ()
        done = self.run(*where, "get", kind, name, "--ignore-not-found", "--output=json")
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else None

    def listed(self, kind: str, *arguments: str) -> list[dict[str, Any]]:
        """Return the objects of a kind."""
        return list(json.loads(self("get", kind, *arguments, "--output=json"))["items"])

    def may(self, *what: str) -> bool:
        """Tell whether we may do something."""
        return self.run("auth", "can-i", *what).returncode == 0


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where the scenarios run.

    Attributes:
        kubectl: reaches it.
        namespace: that runs live in.
        cpu: cores of a training pod.
        overlay: of the manifests, that was applied.
        minutes: that one run may take.
        door: options by which `mmgemma` reaches the server of Kubeflow Pipelines.
    """

    kubectl: Kubectl
    namespace: str = "kubeflow"
    cpu: str = "2"
    overlay: str = "kind"
    minutes: float = 45.0
    door: tuple[str, ...] = ("--port-forward", "kubeflow/ml-pipeline")

    @property
    def has_trainer(self) -> bool:
        """Whether Kubeflow Trainer is installed."""
        return self.kubectl.found("crd", "trainjobs.trainer.kubeflow.org") is not None

    def secret(self, namespace: str, name: str) -> dict[str, str] | None:
        """Return the values of a Secret."""
        found = self.kubectl.found("secret", name, namespace)
        return found and {key: base64.b64decode(value).decode() for key, value in (found.get("data") or {}).items()}

    def kfp(self, path: str) -> Any:
        """Ask the API of Kubeflow Pipelines, by the API server's proxy."""
        door = "/api/v1/namespaces/kubeflow/services/ml-pipeline:8888/proxy/apis/v2beta1"
        return json.loads(self.kubectl("get", "--raw", f"{door}/{path}"))

    def mlflow(self, path: str, **query: str) -> Any:
        """Ask MLflow's API, from inside its own pod, as the user of the runs."""
        user = self.secret(self.namespace, "mlflow")
        assert user is not None
        script = (
            "import base64, json, sys, urllib.parse, urllib.request\n"
            "asked = json.load(sys.stdin)\n"
            "query = urllib.parse.urlencode(asked['query'])\n"
            "url = f\"http://localhost:5000/api/2.0/mlflow/{asked['path']}?{query}\"\n"
            "login = base64.b64encode(asked['login'].encode()).decode()\n"
            "request = urllib.request.Request(url, headers={'Authorization': 'Basic ' + login})\n"
            "print(urllib.request.urlopen(request, timeout=60).read().decode())\n"
        )
        asked = {"path": path, "query": query, "login": f"{user['username']}:{user['password']}"}
        command = ("-n", "mlflow", "exec", "-i", "deployment/mlflow", "--", "python", "-c", script)
        return json.loads(self.kubectl(*command, given=json.dumps(asked)))

    @contextmanager
    def without_mlflow(self) -> Iterator[None]:
        """Take MLflow's server away, and bring it back."""
        deployment = self.kubectl.found("deployment", "mlflow", "mlflow")
        assert deployment is not None
        scale = ("-n", "mlflow", "scale", "deployment/mlflow")
        self.kubectl(*scale, "--replicas=0")
        try:
            until("MLflow to be gone", lambda: not self.kubectl.listed("pods", "-n", "mlflow", "-l", MLFLOW), 5)
            yield
        finally:
            self.kubectl(*scale, f"--replicas={deployment['spec']['replicas']}")
            self.kubectl("-n", "mlflow", "rollout", "status", "deployment/mlflow", "--timeout=15m", seconds=960)


MLFLOW = "app.kubernetes.io/name=mlflow"


def blocks(page: Path) -> list[str]:
    """Return the shell commands of a page, a text a block."""
    return re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def missing_secrets(there: Callable[[str, str], bool], namespace: str) -> list[str]:
    """Return the scripts of manifests/secrets.md that make what is not there, in the page's order.

    Args:
        there: tells whether a namespace has a Secret of a name.
        namespace: that runs live in.
    """
    scripts = []
    for block in blocks(REPOSITORY / "manifests" / "secrets.md")[1:]:
        made = re.findall(r"-n (\S+) create secret generic (\S+)", block)
        made = [(namespace if where == '"$RUNS"' else where, name) for where, name in made]
        wanted = [one for one in made if one[0] in (namespace, "mlflow") and one[1] != "huggingface"]
        if wanted and "dry-run" not in block and not all(there(*one) for one in wanted):
            assert not any(there(*one) for one in wanted), f"of {wanted} one is there and another is not"
            scripts.append(f"set -euo pipefail\nRUNS={namespace}\n{block}")
    return scripts


def prepare(cluster: Cluster) -> None:
    """Apply the overlay, make the Secrets that are missing, and wait for MLflow."""
    kubectl = cluster.kubectl
    kubectl("apply", "-k", str(REPOSITORY / "manifests" / "overlays" / cluster.overlay))
    there = lambda namespace, name: kubectl.found("secret", name, namespace) is not None  # noqa: E731
    for script in missing_secrets(there, cluster.namespace):
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0, done.stderr
    for what in ("statefulset/mlflow-database", "deployment/mlflow"):
        kubectl("-n", "mlflow", "rollout", "status", what, "--timeout=15m", seconds=960)


@dataclasses.dataclass(frozen=True)
class Ended:
    """What `mmgemma submit --json` printed about a run that ended.

    Attributes:
        code: its exit code.
        facts: its object.
        said: what it wrote on standard error.
    """

    code: int
    facts: dict[str, Any]
    said: str

    def task(self, name: str) -> dict[str, Any]:
        """Return what it says of one task."""
        (found,) = [task for task in self.facts["tasks"] if task["name"] == name]
        return dict(found)

    @property
    def states(self) -> dict[str, str]:
        """The state of each task."""
        return {task["name"]: task["state"] for task in self.facts["tasks"]}

    @property
    def reasons(self) -> str:
        """All reasons that it gives, of tasks and of the run."""
        told = [task.get("reason") or "" for task in self.facts["tasks"]]
        return "\n".join([self.facts.get("message", ""), *told, self.said])


class Runs:
    """Runs of the training pipeline on the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._names = (f"scenarios-{int(time.time())}-{number}" for number in itertools.count())

    def command(self, verb: str, *arguments: str) -> list[str]:
        """Return a command line of ours that reaches this cluster."""
        profile = () if self.cluster.namespace == "kubeflow" else ("--namespace", self.cluster.namespace)
        return [*MMGEMMA, verb, *self.cluster.door, *profile, *arguments]

    def options(self, *overrides: str, params: Sequence[str] = ()) -> list[str]:
        """Return what every run is told; each registers under a name of its own, so that no champion is in its way."""
        given = [part for one in params for part in ("--param", one)]
        parameters = ("--params", str(REPOSITORY / "pipelines" / "parameters" / "kind.yaml"))
        cpu = f"resources.cpu={self.cluster.cpu}"
        own = [] if any(one.startswith("resources.cpu=") for one in overrides) else [cpu, "resources.memory=4Gi"]
        if not any(one.startswith("registry.name=") for one in overrides):
            own.append(f"registry.name={next(self._names)}")
        return ["--service-account", "multimodal-gemma", *parameters, *given, *own, *overrides]

    def run(self, *overrides: str, params: Sequence[str] = ()) -> Ended:
        """Submit a run and follow it to its end."""
        return self.follow(self.start(*overrides, params=params))

    def start(self, *overrides: str, params: Sequence[str] = ()) -> str:
        """Submit a run and return its id."""
        options = self.options(*overrides, params=params)
        done = self._json(self.command("submit", "--detach", "--json", *options), 10)
        assert done.code == 0, done.said
        return str(done.facts["run_id"])

    def follow(self, run: str) -> Ended:
        """Follow a run to its end."""
        return self._json(self.command("submit", "--follow", run, "--json"), self.cluster.minutes)

    def retry(self, run: str) -> Ended:
        """Let a run that failed go on, and follow it to its end."""
        return self._json(self.command("submit", "--retry", run, "--json"), self.cluster.minutes)

    def stop(self, run: str) -> None:
        """Stop a run."""
        assert self._json(self.command("submit", "--stop", run, "--json"), 5).code == 0

    def mmgemma(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run another command of ours."""
        return subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False, cwd=REPOSITORY)

    def pods(self, run: str, task: str = "") -> list[dict[str, Any]]:
        """Return the pods of a run's tasks, or of one task, the oldest first; the platform's drivers are left out."""
        found = self.cluster.kubectl.listed("pods", "-n", self.cluster.namespace, "-l", f"pipeline/runid={run}")
        found = [pod for pod in found if pod["metadata"]["annotations"].get(LAUNCHER) == "launcher"]
        named = [pod for pod in found if f".{task}(" in pod["metadata"]["annotations"].get(NODE_NAME, "")]
        return sorted(named if task else found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def at_work(self, run: str, task: str, line: str = "") -> str:
        """Wait until a task's container works, and has said a line; return the name of its pod."""

        def look() -> str | None:
            for pod in self.pods(run, task):
                states = {one["name"]: one["state"] for one in pod.get("status", {}).get("containerStatuses", [])}
                if "running" in states.get("main", {}) and re.search(line, self.log(pod["metadata"]["name"])):
                    return str(pod["metadata"]["name"])
            ended = {pod["status"].get("phase") for pod in self.pods(run, task)}
            assert not ended & {"Succeeded"}, f"{task} ended before {line or 'it was seen at work'}"
            return None

        return until(f"{task} of run {run} to work{line and ' and say ' + line}", look, self.cluster.minutes)

    def log(self, pod: str) -> str:
        """Return what a task's container has said so far."""
        return self.cluster.kubectl("-n", self.cluster.namespace, "logs", pod, "-c", "main", check=False)

    def _json(self, command: list[str], minutes: float) -> Ended:
        seconds = minutes * 60
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, cwd=REPOSITORY)
        try:
            return Ended(done.returncode, json.loads(done.stdout), done.stderr)
        except ValueError:
            ended = f"{' '.join(command)} ended with {done.returncode}"
            raise AssertionError(f"{ended}: {done.stdout}{done.stderr}") from None
