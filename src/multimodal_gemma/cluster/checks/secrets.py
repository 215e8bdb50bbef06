"""Are the Secrets there that a run takes its passwords from, with the keys that it reads?"""

from __future__ import annotations

from multimodal_gemma.cluster.checks.finding import Finding, failed, ok, unknown
from multimodal_gemma.cluster.needs import Needs
from multimodal_gemma.cluster.train_job_api import Namespace, Refused

_SECRETS = "/api/v1/namespaces/{namespace}/secrets"


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
