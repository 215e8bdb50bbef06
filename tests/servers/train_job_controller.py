"""What Kubeflow Trainer, JobSet and Kueue do with a TrainJob, as far as its submitter sees, told by a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.servers.kubernetes_api import KubernetesServer
from tests.servers.kubernetes_objects import now

Object = dict[str, Any]
JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainjobs"
RUNTIMES = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/ml/trainingruntimes"
WORKLOADS = "/apis/kueue.x-k8s.io/v1beta2/namespaces/ml/workloads"
PODS = "/api/v1/namespaces/ml/pods"


def condition(kind: str, status: str = "True", message: str = "", reason: str = "") -> Object:
    """Return a condition of a status."""
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now()}


def runtime(accelerators: int = 0) -> Object:
    """Return a TrainingRuntime, reduced to what a submitter reads of it."""
    limits = {"cpu": "2", "memory": "4Gi", **({"nvidia.com/gpu": str(accelerators)} if accelerators else {})}
    resources = {"limits": limits, "requests": dict(limits)}
    pod = {"spec": {"containers": [{"name": "node", "image": "trainer:1", "resources": resources}]}}
    jobs = [{"name": "node", "template": {"spec": {"template": pod}}}]
    return {"spec": {"mlPolicy": {"numNodes": 1, "torch": {}}, "template": {"spec": {"replicatedJobs": jobs}}}}


class Controller:
    """Acts on the only TrainJob of a server.

    Args:
        server: the API server; gets the runtime `multimodal-gemma`.
    """

    def __init__(self, server: KubernetesServer) -> None:
        self.server = server
        server.put(f"{RUNTIMES}/multimodal-gemma", runtime())

    @property
    def name(self) -> str:
        """Name of the TrainJob."""
        return self.server.names(JOBS)[0]

    def job(self) -> Object:
        """Return the TrainJob."""
        found = self.server.get(f"{JOBS}/{self.name}")
        assert found is not None
        return found

    def status(self, *conditions: Object) -> None:
        """Set the TrainJob's conditions."""
        self.server.patch(f"{JOBS}/{self.name}", {"status": {"conditions": list(conditions)}})

    def queued(self, reason: str) -> None:
        """Suspend the TrainJob as Kueue does: why is in the Workload that it keeps."""
        owner = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "name": self.name}
        owner["uid"] = self.job()["metadata"]["uid"]
        waits = condition("QuotaReserved", "False", reason, "Pending")
        content = {"metadata": {"ownerReferences": [owner]}, "status": {"conditions": [waits]}}
        self.server.put(f"{WORKLOADS}/trainjob-{self.name}", content)
        self.status(condition("Suspended", message="TrainJob is suspended", reason="Suspended"))

    def pod(self, index: int, restart: int = 0, **status: Any) -> str:
        """Create or change the pod of a node; return its name."""
        name = f"{self.name}-node-0-{index}-{'abcdefgh'[restart]}"
        labels = {
            "jobset.sigs.k8s.io/jobset-name": self.name,
            "jobset.sigs.k8s.io/restart-attempt": str(restart),
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        owner = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "name": self.name}
        owner["uid"] = self.job()["metadata"]["uid"]
        self.server.put(
            f"{PODS}/{name}",
            {
                "metadata": {"labels": labels, "ownerReferences": [owner]},
                "spec": {"containers": [{"name": "node"}]},
                "status": status,
            },
        )
        return name

    def pending(self, index: int, reason: str, restart: int = 0) -> str:
        """Leave a node's pod without a place."""
        unscheduled = condition("PodScheduled", "False", reason, "Unschedulable")
        return self.pod(index, restart, phase="Pending", conditions=[unscheduled])

    def running(self, index: int, restart: int = 0) -> str:
        """Let a node's pod run."""
        return self.pod(index, restart, phase="Running")

    def failed(self, index: int, code: int, restart: int = 0, **status: Any) -> str:
        """End a node's pod with an exit code."""
        ended = {"name": "node", "state": {"terminated": {"exitCode": code, "reason": "Error"}}}
        return self.pod(index, restart, phase="Failed", containerStatuses=[ended], **status)

    def log(self, index: int, text: str, restart: int = 0) -> None:
        """Set the log of a node's pod."""
        self.server.logs["ml", f"{self.name}-node-0-{index}-{'abcdefgh'[restart]}"] = text

    def delete_pod(self, index: int, restart: int = 0) -> None:
        """Delete a node's pod."""
        self.server.remove(f"{PODS}/{self.name}-node-0-{index}-{'abcdefgh'[restart]}")


class Nodes:
    """Runs the command of a TrainJob's container on this machine, once a node, as the cluster would.

    Args:
        job: the TrainJob.
        folder: gets a folder for each node, all that the node can write to.
        port: of the leading node.
    """

    def __init__(self, job: Object, folder: Path, port: int) -> None:
        trainer = job["spec"]["trainer"]
        source = str(Path(__file__).parents[2] / "src")
        self.processes: list[subprocess.Popen[bytes]] = []
        for index in range(trainer["numNodes"]):
            scratch = folder / f"node-{index}"
            scratch.mkdir(parents=True, exist_ok=True)
            told = {one["name"]: one["value"] for one in trainer.get("env", []) if "value" in one}
            environment = {
                **{key: value for key, value in os.environ.items() if key != "RANK"},
                **told,
                **{"HOME": str(scratch), "TMPDIR": str(scratch), "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
                # What Kubeflow Trainer injects.
                "PET_NNODES": str(trainer["numNodes"]),
                "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
                "PET_NODE_RANK": str(index),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
            }
            command = [sys.executable, *trainer["command"][1:], *trainer["args"]]
            with (scratch / "log").open("wb") as log:
                self.processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=scratch))

    def wait(self, timeout: float = 120) -> list[int]:
        """Return the exit codes of all nodes."""
        return [process.wait(timeout) for process in self.processes]

    def end(self, index: int) -> None:
        """Take a node away as a spot node is taken away: SIGTERM."""
        self.processes[index].send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait(timeout=60)
