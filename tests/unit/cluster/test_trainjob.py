"""A TrainJob's life as its submitter sees it: queued, pending, running, a node lost, begun again, done - or not."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multimodal_gemma.cluster.kube import client, pods, watch
from multimodal_gemma.cluster.trainjob import job as train_job
from multimodal_gemma.cluster.trainjob import spec
from multimodal_gemma.config.schema import NodesConfig
from multimodal_gemma.errors import InputError
from tests.servers.kubernetes_api import KubernetesServer
from tests.servers.train_job_controller import JOBS, PODS, RUNTIMES, Controller, condition

WORK = "s3://work/mm/jobs/mmgemma-1"
PROGRESS = "23:10:{0:02d} train: {0} of 4,800 samples, 12.3/s, 390 s left, loss 2.3{0}, lr 1e-3, samples/s 12\n"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesServer]:
    for name in ("KUBERNETES_SERVICE_HOST", "KFP_POD_NAME", "AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    with KubernetesServer() as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path / "kubeconfig")))
        yield running


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return what was said so far."""
    logger = logging.getLogger("multimodal_gemma.train")
    logger.setLevel(logging.INFO)
    caplog.set_level(logging.INFO, "multimodal_gemma.train")
    logging.getLogger("multimodal_gemma").propagate = True
    return lambda: [record.getMessage() for record in caplog.records if record.name == "multimodal_gemma.train"]


def here() -> client.Namespace:
    namespace = train_job.here()
    namespace.pause = 0.02
    return namespace


def made(name: str = "mmgemma-1", nodes: int = 2, **asked: object) -> dict:
    return train_job.build(here(), name, WORK, nodes, NodesConfig(**asked), run_id="run-7")


class Followed:
    """A submission in the background, as the task would make it."""

    def __init__(self, job: dict) -> None:
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(job,), daemon=True)
        self.thread.start()

    def _run(self, job: dict) -> None:
        try:
            train_job.run(here(), job, pause=0.05)
        except BaseException as error:
            self.error = error

    def end(self) -> BaseException | None:
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.error


def until(condition: Callable[[], object], seconds: float = 15) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it has not come about"
        time.sleep(0.01)


def begin(server: KubernetesServer, job: dict) -> tuple[Controller, Followed]:
    followed = Followed(job)
    until(lambda: server.names(JOBS))
    return Controller(server), followed


def test_a_life_queued_pending_running_node_lost_retried_done(server, told):
    Controller(server)
    controller, followed = begin(server, made(queue="multimodal-gemma"))
    name = controller.name
    controller.queued("couldn't assign flavors to pod set node: insufficient unused quota for nvidia.com/gpu")
    reason = "couldn't assign flavors to pod set node: insufficient unused quota for nvidia.com/gpu"
    until(lambda: f"{name} is queued: {reason}" in told())
    controller.status(condition("Suspended", "False"))
    controller.running(0)
    waiting = controller.pending(1, "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    sentence = f"1 of 2 nodes run; {waiting}: Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    until(lambda: sentence in told())
    controller.log(0, "23:10:00 train: 150 steps of 32 conversations\n" + PROGRESS.format(40) + "a warning\n")
    controller.running(1)
    until(lambda: any("40 of 4,800 samples, 12.3/s, 390 s left, loss 2.340" in line for line in told()))
    controller.log(0, PROGRESS.format(40) + PROGRESS.format(59))
    until(lambda: any("59 of 4,800 samples" in line for line in told()))
    reclaimed = condition("DisruptionTarget", message="node is shutting down", reason="TerminationByKubelet")
    lost = controller.failed(1, 75, conditions=[reclaimed])
    controller.delete_pod(1)  # JobSet makes all pods anew
    controller.delete_pod(0)
    until(lambda: f"node {lost} is lost (TerminationByKubelet: node is shutting down)" in told())
    controller.running(0, restart=1)
    controller.running(1, restart=1)
    controller.log(0, "23:20:00 train: continuing from the checkpoint of step 30 of 150\n", restart=1)
    until(lambda: f"{name} begins again from its last checkpoint (restart 1)" in told())
    until(lambda: "continuing from the checkpoint of step 30 of 150" in told())
    controller.status(condition("Complete"))
    assert followed.end() is None
    assert (server.names(JOBS), server.names(PODS)) == ([], [])
    assert told()[-2:] == [f"{name} is complete", f"the TrainJob {name} and its pods are deleted"]


def test_how_far_it_is_is_read_from_its_status_where_the_log_says_nothing(server, told):
    """Kubeflow Trainer 2.2 keeps what the first process told it (pkg/apis/trainer/v1alpha1, TrainerStatus)."""
    Controller(server)
    controller, followed = begin(server, made())
    controller.running(0)
    controller.running(1)
    until(lambda: "2 of 2 nodes run" in told())
    status = {"progressPercentage": 45, "estimatedRemainingSeconds": 3600, "lastUpdatedTime": "2026-06-12T03:00:00Z"}
    status["metrics"] = [{"name": "loss", "value": "0.2347"}]
    server.patch(f"{JOBS}/{controller.name}", {"status": {"trainerStatus": status}})
    until(lambda: "45% done, 3600 s left, loss 0.2347" in told())
    controller.log(0, PROGRESS.format(59))
    until(lambda: any("59 of 4,800 samples" in line for line in told()))
    server.patch(f"{JOBS}/{controller.name}", {"status": {"trainerStatus": {"lastUpdatedTime": "x"}}})
    controller.status(condition("Complete"))
    assert followed.end() is None


def test_a_job_that_is_suspended_without_kueue_says_so(server, told):
    Controller(server)
    server.denied.add(("list", "kueue.x-k8s.io", "workloads"))
    controller, followed = begin(server, made())
    controller.status(condition("Suspended", message="TrainJob is suspended"))
    until(lambda: "mmgemma-1 is queued: TrainJob is suspended" in told())
    controller.status(condition("Complete"))
    assert followed.end() is None


def test_a_failure_ends_with_the_last_lines_of_the_pod_that_was_first(server, told):
    Controller(server)
    controller, followed = begin(server, made())
    controller.running(0)
    controller.running(1)
    controller.log(0, "an error of the first try\n")
    controller.failed(0, 1)
    until(lambda: any("is lost" in line for line in told()))
    controller.delete_pod(0)
    controller.running(0, restart=1)
    controller.running(1, restart=1)
    controller.log(
        1, "loading\n\nerror: train: step 3 has 1 conversations for 2 processes. Use fewer processes.\n", restart=1
    )
    controller.log(0, "connection reset by peer\n", restart=1)
    controller.failed(0, 1, restart=1)
    pod = controller.failed(1, 2, restart=1)
    until(lambda: sum("is lost" in line for line in told()) == 3)
    controller.status(condition("Failed", message="jobset failed due to reaching max number of restarts"))
    error = followed.end()
    assert isinstance(error, InputError)
    assert str(error) == (
        f"train: the TrainJob {controller_name(error)} failed: jobset failed due to reaching max number of restarts. "
        f"{pod} ended with exit code 2; its last lines:\n  loading\n"
        "  error: train: step 3 has 1 conversations for 2 processes. Use fewer processes."
    )
    assert server.names(JOBS) == []


def controller_name(error: BaseException) -> str:
    return str(error).split()[3]


def test_the_last_words_of_a_pod_whose_log_is_gone_are_in_its_status(server, told):
    Controller(server)
    controller, followed = begin(server, made())
    ended = {"exitCode": 1, "reason": "Error", "message": "RuntimeError: CUDA error: uncorrectable ECC error\n"}
    controller.pod(0, phase="Failed", containerStatuses=[{"name": "node", "state": {"terminated": ended}}])
    until(lambda: any("is lost (exit code 1)" in line for line in told()))
    controller.status(condition("Failed", message="no restart left"))
    assert "uncorrectable ECC error" in str(followed.end())


def test_a_failure_that_comes_with_its_pods_names_memory(server):
    """The job's end may be heard before the pod's."""
    Controller(server)
    controller, followed = begin(server, made())
    server.denied.add(("watch", "", "pods"))
    ended = {"name": "node", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
    controller.pod(1, phase="Failed", containerStatuses=[ended])
    controller.status(condition("Failed", message="no restart left"))
    assert "ended with OOMKilled, exit code 137; its last lines: none" in str(followed.end())


def test_an_image_that_cannot_be_pulled_is_named(server, told):
    Controller(server)
    controller, followed = begin(server, made())
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "trainer:1"'}
    controller.pod(0, phase="Pending", containerStatuses=[{"name": "node", "state": {"waiting": waiting}}])
    until(lambda: any('ImagePullBackOff: Back-off pulling image "trainer:1"' in line for line in told()))
    controller.status(condition("Complete"))
    assert followed.end() is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pod-evicted", 'Evicted: Container main exceeded its local ephemeral storage limit "1Gi".'),
        ("pod-out-of-memory", "OOMKilled, exit code 1"),
        ("pod-failed", "exit code 1"),
    ],
)
def test_how_a_pod_ended_is_what_the_kubelet_says(shared, name, told):
    """Real pods of Kubernetes 1.34; in a run's the container is named otherwise than in a TrainJob's."""
    pod = json.loads((shared / "kfp-2.17" / f"{name}.json").read_text())
    for status in pod["status"]["containerStatuses"]:
        status["name"] = {"main": pods.CONTAINER}.get(status["name"], status["name"])
    loss = pods.loss_of(pod)
    assert loss is not None
    assert loss.reason == told


def test_watches_may_break_and_expire(server, told):
    """Lost connections and 410 Gone in the middle: what happened meanwhile is seen all the same."""
    Controller(server)
    controller, followed = begin(server, made())
    controller.running(0)
    until(lambda: any("1 of 2 nodes run" in line for line in told()))
    server.cut_watches(2)
    controller.running(1)
    until(lambda: "2 of 2 nodes run" in told())
    server.gone_watches(2)
    server.fail_next(410, contains="watch=true")  # also as the answer's own status
    server.fail_next(0, times=2, contains="trainjobs?fieldSelector")
    controller.log(0, PROGRESS.format(12))
    until(lambda: any("12 of 4,800 samples" in line for line in told()))
    controller.status(condition("Complete"))
    assert followed.end() is None
    watches = [path for _, path in server.requests if "watch=true" in path]
    assert len(watches) >= 4  # two at first; each that broke was begun anew


def test_a_busy_api_is_asked_again_and_an_expired_token_is_renewed(server, told, tmp_path):
    Controller(server)
    job = made()
    server.fail_next(429, times=2, contains="trainjobs", method="POST", headers={"Retry-After": "0"})
    server.fail_next(503, contains="pods")
    controller, followed = begin(server, job)
    controller.running(0)
    until(lambda: any("1 of 2 nodes run" in line for line in told()))
    server.kubeconfig(tmp_path / "kubeconfig", token="new")  # as a refreshed login leaves it
    server.tokens = {"new"}
    server.cut_watches(2)
    controller.running(1)
    until(lambda: "2 of 2 nodes run" in told())
    server.tokens = {"newest"}  # which nobody wrote anywhere
    server.cut_watches(2)
    error = followed.end()
    assert "refuses the token even after it was renewed" in str(error)


def test_a_retry_follows_what_its_killed_predecessor_left(server, told):
    controller = Controller(server)
    job = made()
    server.put(f"{JOBS}/{job['metadata']['name']}", job)
    controller.running(0)
    followed = Followed(made())
    until(lambda: any("found TrainJob mmgemma-1 again" in line for line in told()))
    controller.status(condition("Complete"))
    assert followed.end() is None
    assert server.names(JOBS) == []


def test_a_retry_begins_again_what_has_failed(server, told):
    controller = Controller(server)
    job = made()
    server.put(f"{JOBS}/mmgemma-1", {**job, "status": {"conditions": [condition("Failed")]}})
    first = server.get(f"{JOBS}/mmgemma-1")["metadata"]["uid"]
    followed = Followed(made())
    until(lambda: (server.get(f"{JOBS}/mmgemma-1") or {"metadata": {"uid": first}})["metadata"]["uid"] != first)
    controller.status(condition("Complete"))
    assert followed.end() is None


def test_a_name_that_another_training_has_is_left_alone(server):
    Controller(server)
    job = made()
    theirs = {**job, "metadata": {**job["metadata"], "annotations": {spec.WORK: "s3://theirs/x"}}}
    server.put(f"{JOBS}/mmgemma-1", theirs)
    with pytest.raises(InputError, match="of another training"):
        train_job._submit(here(), job)
    assert server.get(f"{JOBS}/mmgemma-1") is not None


def test_a_job_that_somebody_deletes_is_missed(server, monkeypatch):
    Controller(server)
    controller, followed = begin(server, made())
    time.sleep(0.1)
    server.remove(f"{JOBS}/{controller.name}")
    assert "was deleted while it was followed" in str(followed.end())


def test_a_trainer_of_an_unsupported_version_is_refused(server):
    """Without the API's version at all, and with one that drops the field it does not know."""
    with pytest.raises(InputError, match=r"has no TrainingRuntime .* Install Kubeflow Trainer 2.2 or newer"):
        made()
    Controller(server)
    job = made()
    server.fail_next(404, contains="trainjobs", method="POST")
    with pytest.raises(InputError, match=r"of an unsupported version. Install 2.2 or newer"):
        train_job.run(here(), job)

    kept = {**job, "spec": {key: value for key, value in job["spec"].items() if key != "runtimePatches"}}
    server.put(f"{JOBS}/mmgemma-1", kept)  # made although it is not what was asked for
    server.fail_next(201, contains="trainjobs", method="POST", body=json.dumps(kept))
    with pytest.raises(InputError, match="its TrainJob has no runtimePatches"):
        train_job.run(here(), job)
    assert server.names(JOBS) == []


@pytest.mark.parametrize(
    ("verb", "plural"), [("create", "trainjobs"), ("watch", "trainjobs"), ("get", "trainingruntimes")]
)
def test_missing_rights_name_their_remedy(server, verb, plural):
    Controller(server)
    server.denied.add((verb if verb != "watch" else "list", "trainer.kubeflow.org", plural))
    with pytest.raises(InputError, match="manifests/trainer"):
        train_job.run(here(), made(), pause=0.05)


def test_all_of_a_run_are_deleted_and_no_other(server):
    Controller(server)
    for name, run in (("mmgemma-1", "run-7"), ("mmgemma-2", "run-8")):
        server.put(f"{JOBS}/{name}", {**made(name), "metadata": {"labels": {spec.RUN: run}}})
    assert train_job.delete_all(here(), "run-7") == ["mmgemma-1"]
    assert server.names(JOBS) == ["mmgemma-2"]


def test_a_watch_forgets_what_is_deleted(server):
    changed = threading.Event()
    with watch.Watched(here(), RUNTIMES, {}, changed) as watched:
        Controller(server)
        until(lambda: watched.now())
        server.remove(f"{RUNTIMES}/multimodal-gemma")
        until(lambda: not watched.now())
