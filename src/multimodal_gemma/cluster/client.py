"""A connection to the Kubernetes API: from inside a pod by its own token, from a laptop by a kubeconfig."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

_MOUNTED = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where a pod finds its token and namespace


def in_cluster() -> bool:
    """Tell whether this process runs in a pod that may speak to the API."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and (_MOUNTED / "token").is_file()


def connect(kubeconfig: Path | None = None, context: str | None = None) -> ApiClient:
    """Return a client of the Kubernetes API with the credentials of the moment.

    Args:
        kubeconfig: file to read; None: in a pod its own token, else KUBECONFIG or ~/.kube/config.
        context: of the kubeconfig; None: its current one.

    Raises:
        InputError: there is no kubeconfig, it cannot be read, or it has no such context.
    """
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException

    if kubeconfig is None and context is None and in_cluster():
        settings = client.Configuration()
        config.load_incluster_config(client_configuration=settings)
        settings.retries = False  # what is asked again, and for how long, is decided where it is asked
        return client.ApiClient(settings)
    path = _kubeconfig(kubeconfig)
    try:
        made = config.new_client_from_config(str(path), context=context)
    except ConfigException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        known = ", ".join(sorted(_contexts(path))) or "none"
        raise InputError(
            f"cluster: {path} gives no way into a cluster ({reason}). Its contexts: {known}. Choose one with "
            "--context, or log in again."
        ) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"cluster: {path} is no kubeconfig ({type(error).__name__}). Log in again.") from None
    made.configuration.retries = False
    return made


def current_namespace(kubeconfig: Path | None = None, context: str | None = None) -> str:
    """Return the namespace that a pod is in or that a kubeconfig's context names; "default" where neither does."""
    if kubeconfig is None and context is None and in_cluster():
        return (_MOUNTED / "namespace").read_text(encoding="utf-8").strip()
    contexts = _contexts(_kubeconfig(kubeconfig))
    chosen = context or next((name for name, found in contexts.items() if found["current"]), "")
    return contexts.get(chosen, {}).get("namespace") or "default"


def _kubeconfig(given: Path | None) -> Path:
    named = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    path = given or Path(named or "~/.kube/config").expanduser()
    if not path.is_file():
        raise InputError(
            f"cluster: there is no kubeconfig at {path}, and this is no pod. Log in to the cluster (gcloud container "
            "clusters get-credentials NAME, or kind export kubeconfig), or name the file with --kubeconfig."
        )
    return path


def _contexts(path: Path) -> dict[str, dict[str, str]]:
    """Return namespace and whether it is current, by name of the context; {} where the file has none."""
    from kubernetes import config
    from kubernetes.config.config_exception import ConfigException

    try:
        every, current = config.list_kube_config_contexts(str(path))
    except (ConfigException, TypeError, KeyError):
        return {}
    return {
        item["name"]: {
            "namespace": item["context"].get("namespace", ""),
            "current": "yes" if current and item["name"] == current["name"] else "",
        }
        for item in every
    }
