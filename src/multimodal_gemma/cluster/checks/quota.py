"""Is enough of the namespace's quota left for the run's largest pod?"""

from __future__ import annotations

from multimodal_gemma.cluster.checks.finding import Finding, failed, ok, unknown
from multimodal_gemma.cluster.needs import Needs
from multimodal_gemma.cluster.train_job_api import Namespace, Refused

_QUOTAS = "/api/v1/namespaces/{namespace}/resourcequotas"
_RANGES = "/api/v1/namespaces/{namespace}/limitranges"


def quota(cluster: Namespace, needs: Needs) -> Finding:
    """Does every quota have room for one training pod, and no limit range forbid its size?"""
    from kubernetes.utils.quantity import parse_quantity

    check = "quota"
    try:
        quotas, _ = cluster.list(_QUOTAS, {})
        ranges, _ = cluster.list(_RANGES, {})
    except Refused as refused:
        return unknown(check, f"the quota cannot be looked at ({refused.message})")
    asked = {"pods": "1", "count/pods": "1"}
    for kind in ("requests", "limits"):
        asked |= {f"{kind}.cpu": needs.cpu, f"{kind}.memory": needs.memory}
        if needs.count:
            asked[f"{kind}.{needs.accelerator}"] = str(needs.count)
    asked |= {"cpu": needs.cpu, "memory": needs.memory}
    for item in quotas:
        status = item.get("status") or {}
        for name, hard in (status.get("hard") or {}).items():
            used = (status.get("used") or {}).get(name, "0")
            if name in asked and parse_quantity(used) + parse_quantity(asked[name]) > parse_quantity(hard):
                return failed(
                    check,
                    f"quota {item['metadata']['name']} of {needs.namespace} has {used} of {hard} {name} in use, and "
                    f"the run asks for {asked[name]}",
                    "Wait until other runs end, ask for less, or have the quota raised.",
                )
    own = {"cpu": needs.cpu, "memory": needs.memory}
    for item in ranges:
        for limit in (item.get("spec") or {}).get("limits") or []:
            most = limit.get("max") or {}
            for name in own.keys() & most.keys():
                if limit.get("type") in ("Container", "Pod") and parse_quantity(own[name]) > parse_quantity(most[name]):
                    return failed(
                        check,
                        f"limit range {item['metadata']['name']} allows a {limit['type'].lower()} {most[name]} {name}, "
                        f"and the run asks for {own[name]}",
                        f"Lower resources_{name}, or have the limit raised.",
                    )
    return ok(check, "what is left of it is enough for a training pod" if quotas else "there is none")
