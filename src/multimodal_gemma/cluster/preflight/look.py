"""Everything about a cluster that would stop a run after minutes or hours, found out in seconds.

Every check is made, and all that is wrong is told at once, each with what to do about it. What cannot be looked at is
said to be unknown, and stops nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from multimodal_gemma.cluster.kube.client import Namespace
from multimodal_gemma.cluster.patience import Refused
from multimodal_gemma.cluster.preflight import access, nodes, platform
from multimodal_gemma.cluster.preflight.findings import Finding, ok
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

    from multimodal_gemma.cluster.preflight.needs import Needs

PATIENCE = 15.0  # seconds that an API may be silent


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
        access.rights(cluster, needs),
        nodes.node(cluster, needs),
        nodes.quota(cluster, needs),
        *nodes.disk(cluster, needs),
        *access.secrets(cluster, needs),
        *access.services(cluster, needs),
        platform.retries(cluster, needs),
        *platform.store(cluster, needs),
        *platform.trainer(cluster, needs),
    ]
