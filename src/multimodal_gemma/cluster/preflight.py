"""Everything about a cluster that would stop a run after minutes or hours, found out in seconds.

Every check is made, and all that is wrong is told at once, each with what to do about it. What cannot be looked at is
said to be unknown, and stops nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from multimodal_gemma import logs
from multimodal_gemma.cluster.checks import images, kinds, nodes, quota, rights, secrets, services
from multimodal_gemma.cluster.checks.finding import Finding, ok
from multimodal_gemma.cluster.train_job_api import Namespace, Refused
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

    from multimodal_gemma.cluster.needs import Needs

PATIENCE = 15.0  # seconds that an API may be silent
_MARKS = {"ok": "✓", "failed": "✗", "unknown": "?"}
_log = logs.get("preflight")


def look(connect: Callable[[], ApiClient], needs: Needs, *, patience: float = PATIENCE) -> list[Finding]:
    """Make every check.

    Args:
        connect: returns a client with the credentials of the moment.
        needs: what the run asks for.
        patience: seconds that the API may be silent.

    Returns:
        What was found, in the order in which one would mend it.

    Raises:
        InputError: the API cannot be reached, or refuses the credentials.
    """
    cluster = Namespace(connect, needs.namespace, patience=patience, pause=0.5)
    try:
        version = cluster.get("", "version") or {}
    except Refused as refused:
        raise InputError(f"cluster: the API refuses to say its version ({refused.message}). Log in again.") from None
    except ValueError:
        raise InputError(
            "cluster: what answers at the API's address is no Kubernetes API. Correct the server in the kubeconfig."
        ) from None
    return [
        ok("api", f"Kubernetes {version.get('gitVersion', 'of unknown version')} answers"),
        rights.service_account(cluster, needs),
        nodes.node(cluster, needs),
        quota.quota(cluster, needs),
        *secrets.secrets(cluster, needs),
        *services.services(cluster, needs),
        *images.images(cluster, needs),
        *kinds.trainer(cluster, needs),
    ]


def require(findings: Sequence[Finding]) -> None:
    """Log what was found.

    Raises:
        InputError: something failed; the sentences of all of it.
    """
    for finding in findings:
        _log.info(f"{finding.check}: {finding.told}")
    wrong = [f"{finding.told}. {finding.remedy}" for finding in findings if finding.state == "failed"]
    if wrong:
        raise InputError("preflight: " + " ".join(wrong))


def table(findings: Sequence[Finding]) -> str:
    """Return what was found for a person to read, a remedy under what failed."""
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.state]} {finding.check:<{width}}  {finding.told}")
        if finding.remedy:
            lines.append(f"  {'':<{width}}  → {finding.remedy}")
    failed = sum(finding.state == "failed" for finding in findings)
    unknown = sum(finding.state == "unknown" for finding in findings)
    rest = f", {unknown} could not be found out" if unknown else ""
    last = (
        f"{failed} of {len(findings)} checks failed{rest}" if failed else f"{len(findings)} checks, none failed{rest}"
    )
    return "\n".join([*lines, last])


def as_json(findings: Sequence[Finding]) -> str:
    """Return what was found for a machine to read."""
    import dataclasses

    failed = any(finding.state == "failed" for finding in findings)
    return json.dumps({"passed": not failed, "checks": [dataclasses.asdict(finding) for finding in findings]})
