"""May the run do what it does, and can it log in: the account's rights, the Secrets, the servers that it calls.

Inside the cluster's network the servers are asked themselves. From a laptop an address such as mlflow.mlflow:5000 leads
nowhere, so the Service of that name, and whether a pod is ready behind it, is looked at instead.
"""

from __future__ import annotations

import urllib.parse

from multimodal_gemma.cluster.kube.client import Namespace, Object, Refused
from multimodal_gemma.cluster.preflight.findings import Finding, failed, ok, unknown
from multimodal_gemma.cluster.preflight.needs import Needs

_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"  # of somebody else
_OWN_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_EVERY_RUN = (  # verb, group, resource
    ("get", "", "pods"),
    ("patch", "argoproj.io", "workflowtaskresults"),
)
_TRAIN_JOBS = (
    ("create", "trainer.kubeflow.org", "trainjobs"),
    ("watch", "trainer.kubeflow.org", "trainjobs"),
    ("delete", "trainer.kubeflow.org", "trainjobs"),
    ("get", "", "pods/log"),
)
_SECRETS = "/api/v1/namespaces/{namespace}/secrets"
_TIMEOUT = 5  # seconds
_SLICES = "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"


def service_account(cluster: Namespace, needs: Needs) -> Finding:
    """Is there the account, and may it do what the run does?"""
    check, name = "rights", needs.service_account
    try:
        if cluster.get("/api/v1/namespaces/{namespace}/serviceaccounts", name) is None:
            return failed(
                check,
                f"namespace {needs.namespace} has no service account {name}",
                "Apply what the project adds (kubectl apply -k manifests/overlays/kind or gke-a100), or name the "
                "namespace that runs live in with --namespace.",
            )
    except Refused as refused:
        if refused.status != 403:
            raise
    wanted = _EVERY_RUN + (_TRAIN_JOBS if needs.train_job else ())
    try:
        missing = [" ".join(right).replace("  ", " ") for right in wanted if not _may(cluster, needs, *right)]
    except Refused as refused:
        return unknown(check, f"what {name} may do cannot be asked by you ({refused.message})")
    if missing:
        part = "manifests/overlays/…/trainer" if needs.train_job else "manifests/overlays/…"
        return failed(
            check,
            f"service account {name} in {needs.namespace} may not: {', '.join(missing)}",
            f"Apply its Role: kubectl apply -k {part}.",
        )
    return ok(check, f"service account {name} may do what a run does")


def _may(cluster: Namespace, needs: Needs, verb: str, group: str, resource: str) -> bool:
    name, _, subresource = resource.partition("/")
    asked = {"namespace": needs.namespace, "verb": verb, "group": group, "resource": name, "subresource": subresource}
    review: Object = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview" if needs.inside else "SubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    if needs.inside:
        return bool(cluster.create(_OWN_REVIEWS, review)["status"]["allowed"])
    review["spec"] |= {
        "user": f"system:serviceaccount:{needs.namespace}:{needs.service_account}",
        "groups": ["system:serviceaccounts", f"system:serviceaccounts:{needs.namespace}", "system:authenticated"],
    }
    return bool(cluster.create(_REVIEWS, review)["status"]["allowed"])


def secrets(cluster: Namespace, needs: Needs) -> list[Finding]:
    """Look for every Secret of the run; values are neither kept nor shown."""
    return [_secret(cluster, needs, name) for name in needs.secrets if name]


def _secret(cluster: Namespace, needs: Needs, name: str) -> Finding:
    check, keys = f"secret {name}", list(needs.secrets[name])
    try:
        found = cluster.get(_SECRETS, name)
    except Refused as refused:
        return unknown(check, f"it cannot be looked at ({refused.message})")
    literals = " ".join(f"--from-literal={key}=…" for key in keys)
    make = f"kubectl -n {needs.namespace} create secret generic {name} {literals}"
    if found is None:
        if name in needs.required:
            return failed(check, f"namespace {needs.namespace} has no Secret {name}, which this run needs", f"{make}.")
        return ok(check, "it is absent, and this run can do without it")
    missing = [key for key in keys if not (found.get("data") or {}).get(key)]
    if missing:
        return failed(
            check,
            f"Secret {name} of {needs.namespace} has no key {missing[0]!r}; it has: "
            f"{', '.join(sorted(found.get('data') or {})) or 'none'}",
            f"Make it anew: kubectl -n {needs.namespace} delete secret {name}, then {make}.",
        )
    return ok(check, f"it has {' and '.join(keys)}")


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
