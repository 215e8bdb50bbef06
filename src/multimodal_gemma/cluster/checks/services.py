"""Do the servers that a run calls answer: MLflow and the object store?

Inside the cluster's network they are asked themselves. From a laptop an address such as mlflow.mlflow:5000 leads
nowhere, so the Service of that name, and whether a pod is ready behind it, is looked at instead.
"""

from __future__ import annotations

import urllib.parse

from multimodal_gemma.cluster.checks.finding import Finding, failed, ok, unknown
from multimodal_gemma.cluster.needs import Needs
from multimodal_gemma.cluster.train_job_api import Namespace, Refused

_TIMEOUT = 5  # seconds
_SLICES = "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"


def services(cluster: Namespace, needs: Needs) -> list[Finding]:
    """Look at every address that the run calls."""
    return [_service(cluster, needs, address) for address in dict.fromkeys(needs.services) if address]


def _service(cluster: Namespace, needs: Needs, address: str) -> Finding:
    host = urllib.parse.urlsplit(address if "//" in address else f"http://{address}").hostname or ""
    labels = host.removesuffix(".cluster.local").removesuffix(".svc").split(".")
    if len(labels) > 2 or host == "localhost" or labels[-1].isdigit():
        return _answers(address)
    name, namespace = labels[0], labels[1] if len(labels) == 2 else needs.namespace
    check = f"service {name}.{namespace}"
    try:
        if cluster.get(f"/api/v1/namespaces/{namespace}/services", name) is None:
            return failed(
                check,
                f"{address} names a Service {name} that namespace {namespace} does not have",
                "Correct the address, or install it (MLflow: kubectl apply -k manifests/overlays/…).",
            )
        slices, _ = cluster.list(
            _SLICES.format(namespace=namespace), {"labelSelector": f"kubernetes.io/service-name={name}"}
        )
    except Refused as refused:
        return unknown(check, f"it cannot be looked at ({refused.message})")
    ready = sum(
        bool((endpoint.get("conditions") or {}).get("ready", True))
        for item in slices
        for endpoint in item.get("endpoints") or []
    )
    if not ready:
        return failed(
            check,
            f"no pod is ready behind the Service {name} of {namespace}",
            f"See why: kubectl -n {namespace} get pods, then kubectl -n {namespace} describe pod NAME.",
        )
    return ok(check, f"behind {address} a pod is ready")


def _answers(address: str) -> Finding:
    import requests

    check = f"server {urllib.parse.urlsplit(address).netloc or address}"
    try:
        answer = requests.get(address, timeout=_TIMEOUT)
    except requests.RequestException as error:
        return failed(
            check,
            f"{address} does not answer ({type(error).__name__})",
            "Start it or correct the address; a NetworkPolicy may also keep this place out.",
        )
    if answer.status_code >= 500:
        return failed(check, f"{address} answers {answer.status_code}", "See its log.")
    return ok(check, f"{address} answers")
