"""May the run do what it does, and can it log in: the account's rights, the Secrets, the servers that it calls.

Inside a run each is tried with what the pod was given: its own account, its own variables, its own network. From a
laptop what can be looked at is looked at (is there the Secret, is a pod ready behind the Service), and the rest is said
to be unknown: whether a password is right, for one.
"""

from __future__ import annotations

import hashlib
import os
import urllib.parse

from multimodal_gemma.cluster.kube.client import Namespace, Object
from multimodal_gemma.cluster.patience import Refused
from multimodal_gemma.cluster.preflight.findings import Finding, failed, ok, unknown
from multimodal_gemma.cluster.preflight.needs import SERVICE_ACCOUNT, Needs
from multimodal_gemma.errors import InputError

ACCOUNTS = (SERVICE_ACCOUNT, "pipeline-runner")  # the project's own, and what the pipelines' UI takes
VARIABLES = {  # by which a task gets a Secret's key
    "token": "HF_TOKEN",
    "accesskey": "AWS_ACCESS_KEY_ID",
    "secretkey": "AWS_SECRET_ACCESS_KEY",
    "username": "MLFLOW_TRACKING_USERNAME",
    "password": "MLFLOW_TRACKING_PASSWORD",
}
_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"  # of somebody else
_OWN_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_EVERY_RUN = (  # verb, group, resource
    ("get", "", "pods"),
    ("patch", "argoproj.io", "workflowtaskresults"),
)
_TRAIN_JOBS = (
    *((verb, "trainer.kubeflow.org", "trainjobs") for verb in ("create", "watch", "delete")),
    ("get", "", "pods/log"),
)
_ACCOUNTS = "/api/v1/namespaces/{namespace}/serviceaccounts"
_SECRETS = "/api/v1/namespaces/{namespace}/secrets"
_SLICES = "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
_TIMEOUT = 5  # seconds
_PATIENCE = 20.0  # seconds for a store that does not answer
_MARK = "preflight"  # name of the empty object that shows that a place can be written


def rights(cluster: Namespace, needs: Needs) -> Finding:
    """Is there the account, and may it do what the run does?"""
    check = "rights"
    name = "the account of this run" if needs.inside else _account(cluster, needs)
    if not name:
        wanted = needs.service_account or " or ".join(ACCOUNTS)
        return failed(
            check,
            f"namespace {needs.namespace} has no service account {wanted}",
            "Apply what the project adds (kubectl apply -k manifests/overlays/kind or gke-a100), or name the "
            "namespace that runs live in with --namespace.",
        )
    done = _EVERY_RUN + (_TRAIN_JOBS if needs.train_job else ())
    try:
        missing = [" ".join(right).replace("  ", " ") for right in done if not _may(cluster, needs, name, *right)]
    except Refused as refused:
        return unknown(check, f"what {name} may do cannot be asked by you ({refused.message})")
    named = name if needs.inside else f"service account {name}"
    if missing:
        part = "manifests/overlays/…/trainer" if needs.train_job else "manifests/overlays/…"
        return failed(
            check,
            f"{named} in {needs.namespace} may not: {', '.join(missing)}",
            f"Apply its Role: kubectl apply -k {part}.",
        )
    return ok(check, f"{named} may do what a run does")


def _account(cluster: Namespace, needs: Needs) -> str:
    """Return the account that the run's pods have; "" where there is none."""
    for name in [needs.service_account] if needs.service_account else ACCOUNTS:
        try:
            if cluster.get(_ACCOUNTS, name) is not None:
                return name
        except Refused as refused:
            if refused.status != 403:
                raise
            return name  # its rights may be asked all the same
    return ""


def _may(cluster: Namespace, needs: Needs, account: str, verb: str, group: str, resource: str) -> bool:
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
        "user": f"system:serviceaccount:{needs.namespace}:{account}",
        "groups": ["system:serviceaccounts", f"system:serviceaccounts:{needs.namespace}", "system:authenticated"],
    }
    return bool(cluster.create(_REVIEWS, review)["status"]["allowed"])


def secrets(cluster: Namespace, needs: Needs) -> list[Finding]:
    """Look for every Secret of the run, inside for the variables that it became; values are neither kept nor shown."""
    return [_given(needs, name) if needs.inside else _secret(cluster, needs, name) for name in needs.secrets if name]


def _given(needs: Needs, name: str) -> Finding:
    keys = list(needs.secrets[name])
    missing = [key for key in keys if not os.environ.get(VARIABLES[key])]
    check = f"secret {name}"
    if len(missing) == len(keys) and name not in needs.required:
        return ok(check, "this pod was given nothing of it, and this run can do without it")
    if missing:
        return failed(
            check,
            f"this pod has no {VARIABLES[missing[0]]}: Secret {name} of {needs.namespace} is absent or has no key "
            f"{missing[0]!r}",
            f"{_make(needs, name)}.",
        )
    return ok(check, f"this pod was given its {' and '.join(keys)}")


def _make(needs: Needs, name: str) -> str:
    literals = " ".join(f"--from-literal={key}=…" for key in needs.secrets[name])
    return f"kubectl -n {needs.namespace} create secret generic {name} {literals}"


def _secret(cluster: Namespace, needs: Needs, name: str) -> Finding:
    check, keys = f"secret {name}", list(needs.secrets[name])
    try:
        found = cluster.get(_SECRETS, name)
    except Refused as refused:
        return unknown(check, f"it cannot be looked at ({refused.message})")
    make = _make(needs, name)
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
    return ok(check, f"it has {' and '.join(keys)}; whether they are right, only a run can try")


def services(cluster: Namespace, needs: Needs) -> list[Finding]:
    """Look at MLflow and at the places of the store; inside, log in there."""
    if not needs.inside:
        return [_service(cluster, needs, needs.registry)] if needs.registry.startswith("http") else []
    found = [_login(needs)] if needs.registry.startswith("http") else []
    return found + [_writable(place) for place in dict.fromkeys(needs.written) if place.startswith("s3://")]


def _login(needs: Needs) -> Finding:
    """Ask MLflow for the experiment that runs are recorded in, as the run would."""
    import requests

    netloc = urllib.parse.urlsplit(needs.registry).netloc.rpartition("@")[2]
    check, at = f"login {netloc}", f"MLflow at {netloc}"
    user, token = os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get("MLFLOW_TRACKING_TOKEN")
    login = (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None
    try:
        answer = requests.get(
            f"{needs.registry.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name",
            params={"experiment_name": needs.experiment},
            headers={"Authorization": f"Bearer {token}"} if token and not login else {},
            auth=login,
            timeout=_TIMEOUT,
            allow_redirects=False,
        )
    except requests.RequestException as error:
        return failed(
            check,
            f"{at} does not answer ({type(error).__name__})",
            "Start it or correct registry.tracking_uri; a NetworkPolicy may also keep this pod out.",
        )
    if answer.status_code == 401:
        who = f"as {user!r} with the password that it was given" if user else "without a user"
        return failed(
            check,
            f"{at} does not let this run in {who} (401)",
            "Correct username and password of the Secret that secret_registry names (manifests/secrets.md).",
        )
    if answer.status_code == 403:
        return failed(
            check,
            f"{at} forbids {user or 'this run'!r} to read experiment {needs.experiment} (403)",
            "Grant it there; a server reached by a new name must list that name in --allowed-hosts.",
        )
    if answer.status_code >= 500 or (answer.status_code == 404 and "RESOURCE_DOES_NOT_EXIST" not in answer.text):
        return failed(
            check,
            f"{at} answers {answer.status_code}, not as MLflow does",
            "See its log, or correct registry.tracking_uri.",
        )
    return ok(check, f"{at} knows {user or 'this run'}")


def _writable(place: str) -> Finding:
    """Write an empty object, as the run will write whole checkpoints: a wrong key, a missing bucket, a full store."""
    from multimodal_gemma.data.sources.base import Unavailable
    from multimodal_gemma.data.sources.buckets import S3Source

    check = f"login {place}"
    try:
        S3Source(place, _PATIENCE).put(_MARK, b"", hashlib.sha256(b"").hexdigest())
    except Unavailable as error:
        return failed(
            check, f"{place} cannot be written ({error})", "See whether the store is up, and whether it is full."
        )
    except InputError as error:
        told, _, remedy = str(error).removeprefix("download: ").partition(". ")
        return failed(check, told, remedy)
    return ok(check, "it can be written with the key that this pod was given")


def _service(cluster: Namespace, needs: Needs, address: str) -> Finding:
    host = urllib.parse.urlsplit(address).hostname or ""
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
