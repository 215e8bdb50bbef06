"""May the run's service account do what the run does?"""

from __future__ import annotations

from multimodal_gemma.cluster.checks.finding import Finding, failed, ok, unknown
from multimodal_gemma.cluster.needs import Needs
from multimodal_gemma.cluster.train_job_api import Namespace, Object, Refused

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
