"""Follows a TrainJob to its end, and says what a person who waits would ask.

Queued by Kueue; pending, with the pods' own reasons; running, with the progress that the first process logs; a node
lost and all begun again; complete; or failed, with the last lines of the pod that failed.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from multimodal_gemma import logs
from multimodal_gemma.cluster.kube import pods
from multimodal_gemma.cluster.kube.client import PODS, TRAINJOBS, WORKLOADS, Namespace
from multimodal_gemma.cluster.kube.watch import Watched
from multimodal_gemma.cluster.patience import Refused
from multimodal_gemma.errors import InputError

Object = dict[str, Any]

_LINES = 20  # of a failed pod's log
_TAIL = 60  # lines of a running pod's log in which progress is looked for
_VANISHED = 30.0  # seconds for which a job may be absent from the watch before it counts as deleted
OF_JOB = "jobset.sigs.k8s.io/jobset-name"  # label of a TrainJob's pods


class Follower:
    """Follows one TrainJob.

    Args:
        namespace: where it lives.
        name: its name.
        pause: seconds between two looks at the log.
    """

    def __init__(self, namespace: Namespace, name: str, *, pause: float = 10.0) -> None:
        self.namespace, self.name, self.pause = namespace, name, pause
        self._pods = {"labelSelector": f"{OF_JOB}={name}"}
        self._log = logs.get("train")
        self._said = ""
        self._restart = 0
        self._lost: dict[str, pods.Loss] = {}  # by pod
        self._lines: dict[str, list[str]] = {}  # last lines by failed pod

    def to_end(self) -> None:
        """Return when the TrainJob is complete.

        Raises:
            InputError: it failed, or somebody else deleted it; the sentence holds the last lines of the pod that
                failed.
        """
        changed = threading.Event()
        jobs = Watched(self.namespace, TRAINJOBS, {"fieldSelector": f"metadata.name={self.name}"}, changed)
        theirs = Watched(self.namespace, PODS, self._pods, changed)
        begun = time.monotonic()
        with jobs, theirs:
            while True:
                changed.wait(self.pause)
                changed.clear()
                if (broken := jobs.error or theirs.error) is not None:
                    raise _spoken(broken)
                self._note_losses(theirs.news())
                found = jobs.now()
                if found:
                    begun = time.monotonic()
                    if self._look(found[0], theirs.now()):
                        return
                elif time.monotonic() - begun > min(_VANISHED, 3 * self.pause):
                    raise InputError(
                        f"train: the TrainJob {self.name} was deleted while it was followed. Run again; training "
                        "continues from its last checkpoint."
                    )

    def _look(self, job: Object, nodes: list[Object]) -> bool:
        """Say what is new; True when the job is complete."""
        conditions = {one["type"]: one for one in (job.get("status") or {}).get("conditions") or []}
        true = {kind: one for kind, one in conditions.items() if one.get("status") == "True"}
        if "Complete" in true:
            self._say(f"{self.name} is complete")
            return True
        if "Failed" in true:
            raise self._failure(true["Failed"])
        if "Suspended" in true or (job.get("spec") or {}).get("suspend"):
            told = true.get("Suspended", {}).get("message")
            reason = self._queued_for(job) or told or "it waits until all its nodes fit"
            self._say(f"{self.name} is queued: {reason.rstrip('.')}")
            return False
        wanted = int(job["spec"]["trainer"]["numNodes"])
        told = (job.get("status") or {}).get("trainerStatus") or {}
        self._say_nodes([one for one in nodes if pods.restarts(one) >= self._restart], wanted, told)
        return False

    def _queued_for(self, job: Object) -> str:
        """Return why Kueue does not let the job begin: that stands in the Workload it keeps for it."""
        try:
            workloads, _ = self.namespace.list(WORKLOADS, {})
        except Refused:  # no Kueue, or another version of it
            return ""
        for workload in workloads:
            owners = workload["metadata"].get("ownerReferences") or []
            if any(owner.get("uid") == job["metadata"]["uid"] for owner in owners):
                for one in (workload.get("status") or {}).get("conditions") or []:
                    if one.get("type") == "QuotaReserved" and one.get("status") == "False":
                        return str(one.get("message") or "")
        return ""

    def _say_nodes(self, nodes: list[Object], wanted: int, told: Object) -> None:
        latest = max(map(pods.restarts, nodes), default=self._restart)
        if latest > self._restart:
            self._restart = latest
            self._log.info(f"{self.name} begins again from its last checkpoint (restart {latest})")
        nodes = [one for one in nodes if pods.restarts(one) == latest]
        running = [one for one in nodes if pods.phase_of(one) in ("Running", "Succeeded")]
        if len(running) < wanted:
            reasons = [f"{pods.name_of(one)}: {why}" for one in nodes if (why := pods.waiting_for(one))]
            self._say(f"{len(running)} of {wanted} nodes run{'; ' + reasons[0] if reasons else ', the others start'}")
            return
        leader = next((one for one in running if pods.leads(one)), running[0])
        progress = pods.progress_in(self.namespace.log(pods.name_of(leader), pods.CONTAINER, _TAIL))
        self._say(progress or _share(told) or f"{wanted} of {wanted} nodes run")

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._log.info(text)

    def _note_losses(self, news: list[Object]) -> None:
        """Say which pods ended too early, and keep their last words: a restart deletes the pods before it."""
        for pod in news:
            loss = pods.loss_of(pod)
            if loss is None or loss.pod in self._lost:
                continue
            text = self.namespace.log(loss.pod, pods.CONTAINER, _LINES) or loss.message
            self._lost[loss.pod], self._lines[loss.pod] = loss, pods.last_lines(text, _LINES)
            self._log.warning(f"node {loss.pod} is lost ({loss.reason})")

    def _failure(self, condition: Object) -> InputError:
        reason = condition.get("message") or condition.get("reason") or "no reason given"
        told = f"train: the TrainJob {self.name} failed: {reason.rstrip('.')}."
        self._note_losses(self.namespace.list(PODS, self._pods)[0])  # the watch of the pods may be behind
        # Of the last try. Ranks end each other: a code of its own comes before a lost connection.
        last = max((loss.restart for loss in self._lost.values()), default=0)
        tried = [loss for loss in self._lost.values() if loss.restart == last]
        blamed = min(tried, key=lambda loss: _BLAME.get(loss.code, 1), default=None)
        if blamed is None:
            return InputError(f"{told} Its pods are gone; look for their logs in the cluster's log store.")
        lines = "".join(f"\n  {line}" for line in self._lines[blamed.pod])
        return InputError(f"{told} {blamed.pod} ended with {blamed.reason}; its last lines:{lines or ' none'}")


_BLAME: dict[int | None, int] = {2: 0, 137: 0, 1: 1, 75: 2, None: 3, 143: 3}  # by exit code; 137 is out of memory


def _share(told: Object) -> str:
    """Return how far training is by the TrainJob's `status.trainerStatus`; "" where nobody fills it."""
    if told.get("progressPercentage") is None:
        return ""
    left = told.get("estimatedRemainingSeconds")
    losses = [f"loss {one['value']}" for one in told.get("metrics") or [] if one.get("name") == "loss"]
    return ", ".join([f"{told['progressPercentage']}% done", *([f"{left} s left"] if left else []), *losses])


def _spoken(error: InputError | Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    return InputError(
        f"cluster: the API refuses to tell about the TrainJob ({error}). Apply manifests/trainer: its Role lets a run "
        "watch TrainJobs and pods."
    )
