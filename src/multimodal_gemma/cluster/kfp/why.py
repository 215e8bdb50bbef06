"""Why a task failed, or why it waits, in its own words.

KFP's answer about a run has no reasons. Its log endpoint has them: it gives the log of any node, also after the pod is
gone. There a user's mistake is the line that begins with "error: ", and the launcher, whose own exit code is 1 whatever
happened, has written the real one. Why a pod waits, and whether it was its memory or its disk that ended it, only
Kubernetes knows: whoever has a kubeconfig is told that too.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from typing import TYPE_CHECKING, Any

from multimodal_gemma.cluster.kfp.story import one_line
from multimodal_gemma.cluster.kube import pods
from multimodal_gemma.cluster.kube.client import Namespace
from multimodal_gemma.cluster.patience import Refused
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.cluster.kfp.api import Api

ERROR = "error: "  # what stages.component puts before the sentence of a mistake
_WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows"
_PODS = "/api/v1/namespaces/{namespace}/pods"
_NODE = "workflows.argoproj.io/node-id"
# As KFP's compiler for Argo names them: with a label of the pod's own (and no annotation), with retries, with neither.
_TEMPLATES = ("metadata-0-1-retry-system-container-impl", "retry-system-container-impl", "system-container-impl")
_SILENT = "its pod has said nothing yet; it may wait for a node or an image, which a kubeconfig would show"
_MAIN = "main"  # Argo's name of the container that does a task's work
_GLOG = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w.]+:\d+\] ?")  # of KFP's driver and launcher
_CODE = re.compile(r"exit status (\d+)")
_INPUT = re.compile(r"^\{$.*?^\}$\n?", re.MULTILINE | re.DOTALL)  # the executor's input, which KFP writes into the log
_GATE = re.compile(r"\bregister: .*\bgate (passed|failed)\b")
_LINES = 3  # of a log that says nothing better
_CODES = {
    137: "killed (exit code 137), as a process is whose memory ends (resources.memory gives training more)",
    143: "ended from outside (exit code 143), as when its pod is deleted or its time is over",
}


class Causes:
    """Finds out about the pods of one run, each only once.

    Args:
        api: the KFP server.
        run_id: the run.
        cluster: its namespace, for whoever has a kubeconfig.
    """

    def __init__(self, api: Api, run_id: str, cluster: Namespace | None = None) -> None:
        self._api, self._run_id, self._cluster = api, run_id, cluster
        self._ended: dict[str, str] = {}
        self._spoke: set[str] = set()

    def ended(self, node: str, workflow: str) -> str:
        """Return why a pod ended badly; "" where nobody says."""
        if node not in self._ended:
            log = self._api.log(self._run_id, node) or ""
            self._ended[node] = one_line(self._death(node, workflow) or last_word(log))
        return self._ended[node]

    def gate(self, node: str) -> str:
        """Return what a registration's log says about the gate: passed, refused or unknown."""
        words = _GATE.findall(self._api.log(self._run_id, node) or "")
        return {"passed": "passed", "failed": "refused"}[words[-1]] if words else "unknown"

    def waits(self, node: str, workflow: str) -> str:
        """Return why a pod does not run yet; "" for one that does, or where nobody says."""
        if node in self._spoke:
            return ""
        if self._cluster is not None and (told := self._waiting(self._cluster, node, workflow)) is not None:
            return one_line(told)
        for template in _TEMPLATES:
            log = self._api.log(self._run_id, node.replace(workflow, f"{workflow}-{template}"))
            if log == "":
                return _SILENT
            if log:
                self._spoke.add(node)
        return ""

    def _death(self, node: str, workflow: str) -> str:
        """Return what Kubernetes says about a pod's end, where it is no exit code."""
        if self._cluster is None:
            return ""
        pod = self._pod(self._cluster, node)
        if pod is None:
            message = _node(self._cluster, workflow, node).get("message", "")
            return "its pod was deleted" if message == "pod deleted" else ""
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            ended = (status.get("state") or {}).get("terminated") or {}
            if status.get("name") == _MAIN and ended.get("reason") == "OOMKilled":
                limit = (status.get("resources") or {}).get("limits", {}).get("memory") or _limit(pod)
                return f"out of memory: asked for {limit} (resources.memory gives training more)"
        loss = pods.loss_of(pod)
        return loss.reason if loss is not None and "exit code" not in loss.reason else ""

    def _waiting(self, cluster: Namespace, node: str, workflow: str) -> str | None:
        """Return why a pod waits, as Kubernetes says; None where it knows neither the pod nor its node."""
        pod = self._pod(cluster, node)
        if pod is not None:
            return pods.waiting_for(pod)
        known = _node(cluster, workflow, node)  # without a pod: a quota, or a webhook, refuses it
        return (str(known.get("message", "")) if known.get("phase") == "Pending" else "") if known else None

    def _pod(self, cluster: Namespace, node: str) -> dict[str, Any] | None:
        """Return the pod of a node: its name has the template in the middle, so its note is looked for."""
        try:
            found, _ = cluster.list(_PODS, {"labelSelector": f"pipeline/runid={self._run_id}"})
        except (Refused, InputError):  # the run is followed all the same
            return None
        return next((pod for pod in found if (pod["metadata"].get("annotations") or {}).get(_NODE) == node), None)


def last_word(log: str) -> str:
    """Return what a log says about its task's failure.

    Args:
        log: of a task, as KFP gives it, or of a driver.

    Returns:
        The last line that begins with "error: ", without that mark; else the exit code and the last lines; "" for an
        empty log.
    """
    lines = [line.rstrip() for line in _INPUT.sub("", log).splitlines() if line.strip()]
    own = [line for line in lines if not _GLOG.match(line) and not line.startswith("[KFP Executor")]
    if mistakes := [line.removeprefix(ERROR) for line in own if line.startswith(ERROR)]:
        return mistakes[-1]
    codes = [int(code) for line in lines if _GLOG.match(line) for code in _CODE.findall(line)]
    if not own:
        wrong = [_GLOG.sub("", line, count=1) for line in lines if (mark := _GLOG.match(line)) and mark[1] in "EF"]
        return wrong[-1] if wrong else ""
    last = own[-1:] if any(line.startswith("Traceback (most recent call last)") for line in own) else own[-_LINES:]
    said = " / ".join(last)
    if codes and codes[-1] in _CODES:
        return f"{_CODES[codes[-1]]}; last: {said}"
    return f"exit code {codes[-1]}: {said}" if codes and codes[-1] != 1 else said


def _limit(pod: dict[str, Any]) -> str:
    main: dict[str, Any] = next((one for one in pod["spec"]["containers"] if one["name"] == _MAIN), {})
    return str((main.get("resources") or {}).get("limits", {}).get("memory", "no amount"))


def _node(cluster: Namespace, workflow: str, node: str) -> dict[str, Any]:
    """Return a node of an Argo workflow; {} where it cannot be seen."""
    try:
        status = (cluster.get(_WORKFLOWS, workflow) or {}).get("status") or {}
    except (Refused, InputError):
        return {}
    nodes = status.get("nodes")
    if not nodes and (packed := status.get("compressedNodes")):
        nodes = json.loads(gzip.decompress(base64.b64decode(packed)))
    return dict((nodes or {}).get(node) or {})
