"""What the cluster's API accepts.

Kubernetes' objects are held against its own schemas, Kubeflow Trainer's against its own types, and those of Kueue and
KServe against the fields that we use of their definitions. A misspelt field is the mistake that hurts most, because the
API drops it in silence: so each validation is strict.
"""

from __future__ import annotations

from typing import Any

import pytest

Object = dict[str, Any]

OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes, that the manifests are checked for

_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "object", "additionalProperties": _TEXT, "maxProperties": 8}
_QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGTPE]i?)?$"}
_TOLERATION = {
    "type": "object",
    "additionalProperties": False,
    "required": ["key", "operator", "effect"],
    "properties": {
        "key": _TEXT,
        "operator": {"enum": ["Equal", "Exists"]},
        "value": _TEXT,
        "effect": {"enum": ["NoSchedule", "NoExecute", "PreferNoSchedule"]},
    },
}


def _closed(properties: Object, required: tuple[str, ...] = ()) -> Object:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}


def _list(items: Object, most: int = 16) -> Object:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


_QUOTA = _closed({"name": _TEXT, "nominalQuota": _QUANTITY}, ("name", "nominalQuota"))
_FLAVOR = _closed({"name": _TEXT, "resources": _list(_QUOTA)}, ("name", "resources"))
_PREEMPTION = {"enum": ["Never", "LowerPriority", "LowerOrNewerEqualPriority"]}

# Of Kueue's CustomResourceDefinitions (v1beta2) and KServe's (0.20), the fields that our manifests use.
CUSTOM: dict[tuple[str, str], Object] = {
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): _closed(
        {"nodeLabels": _TEXTS, "nodeTaints": {"type": "array"}, "tolerations": _list(_TOLERATION, 8)}
    ),
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): _closed({"clusterQueue": _TEXT}, ("clusterQueue",)),
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): _closed(
        {
            "namespaceSelector": _closed({"matchLabels": _TEXTS}),
            "queueingStrategy": {"enum": ["StrictFIFO", "BestEffortFIFO"]},
            "preemption": _closed({"withinClusterQueue": _PREEMPTION}),
            "flavorFungibility": _closed(
                {
                    "whenCanBorrow": {"enum": ["MayStopSearch", "TryNextFlavor"]},
                    "whenCanPreempt": {"enum": ["MayStopSearch", "TryNextFlavor"]},
                }
            ),
            "resourceGroups": _list(
                _closed({"coveredResources": _list(_TEXT), "flavors": _list(_FLAVOR)}, ("coveredResources", "flavors"))
            ),
        },
        ("namespaceSelector", "resourceGroups"),
    ),
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): _closed(
        {
            "annotations": _TEXTS,
            "supportedModelFormats": _list(
                _closed({"name": _TEXT, "version": _TEXT, "autoSelect": {"type": "boolean"}}, ("name",))
            ),
            "protocolVersions": _list({"enum": ["v1", "v2", "grpc-v2"]}),
            "containers": {"type": "array"},  # checked as a pod's
            "volumes": {"type": "array"},
        },
        ("supportedModelFormats", "containers"),
    ),
    ("serving.kserve.io/v1beta1", "InferenceService"): _closed(
        {
            "predictor": _closed(
                {
                    "minReplicas": {"type": "integer", "minimum": 0},
                    "maxReplicas": {"type": "integer", "minimum": 1},
                    "model": _closed(
                        {
                            "modelFormat": _closed({"name": _TEXT, "version": _TEXT}, ("name",)),
                            "runtime": _TEXT,
                            "storageUri": {"type": "string", "pattern": "^s3://[a-z0-9.-]+/.+"},
                        },
                        ("modelFormat", "storageUri"),
                    ),
                    # checked as a pod's
                    **{key: {} for key in ("serviceAccountName", "automountServiceAccountToken", "priorityClassName")},
                    **{key: {} for key in ("securityContext", "nodeSelector", "tolerations")},
                },
                ("model",),
            )
        },
        ("predictor",),
    ),
}


def complaints(one: Object) -> list[str]:
    """Return what the API would not accept, or would drop without a word."""
    group = one["apiVersion"].partition("/")[0]
    if group == "trainer.kubeflow.org":
        return _against_trainer(one)
    if (one["apiVersion"], one["kind"]) in CUSTOM:
        return _against_custom(one)
    return _against_kubernetes(one)


def _against_kubernetes(one: Object) -> list[str]:
    validate = pytest.importorskip("kubernetes_validate", reason="Kubernetes' schemas are not installed")
    lines = []
    for version in (OLDEST, NEWEST):
        try:
            validate.validate(one, version, strict=True)
        except validate.SchemaNotFoundError:
            lines.append(f"Kubernetes {version} has no {one['kind']} in {one['apiVersion']}")
        except validate.ValidationError as error:
            lines.append(f"{one['kind']} {one['metadata']['name']} ({version}): {str(error).splitlines()[0]}")
    return lines


def _against_trainer(one: Object) -> list[str]:
    """Read the object into Trainer's published types and write it again: what is lost was no field of theirs."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="Kubeflow Trainer's types are not installed")
    from pydantic import ValidationError

    try:
        read = getattr(models, f"TrainerV1alpha1{one['kind']}").from_dict(one)
    except (AttributeError, ValidationError) as error:
        return [f"{one['kind']} {one['metadata']['name']}: {error}"]
    return [f"{one['kind']} {one['metadata']['name']}: {line}" for line in _lost(one, read.to_dict())]


def _against_custom(one: Object) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema comes with Kubernetes' schemas")
    found = jsonschema.Draft202012Validator(CUSTOM[one["apiVersion"], one["kind"]]).iter_errors(one["spec"])
    lines = [f"{one['kind']} {one['metadata']['name']}: {'/'.join(map(str, e.path))}: {e.message}" for e in found]
    # What KServe copies into a pod is held against the pod's schema.
    spec = one["spec"].get("predictor", one["spec"])
    if one["kind"] in ("ServingRuntime", "InferenceService") and not lines:
        fields = ("containers", "volumes", "nodeSelector", "tolerations", "securityContext", "priorityClassName")
        part = {key: spec[key] for key in fields if key in spec}
        pod = {"containers": [{"name": "placeholder", "image": "placeholder:1"}], **part}
        metadata = {"name": one["metadata"]["name"]}
        lines += _against_kubernetes({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod})
    return lines


def _lost(given: Any, kept: Any, where: str = "") -> list[str]:
    if isinstance(given, dict):
        kept = kept if isinstance(kept, dict) else {}
        return [line for key, value in given.items() for line in _lost(value, kept.get(key), f"{where}/{key}")]
    if isinstance(given, list):
        kept = kept if isinstance(kept, list) else [None] * len(given)
        return [line for i, (a, b) in enumerate(zip(given, kept, strict=True)) for line in _lost(a, b, f"{where}/{i}")]
    return [] if given == kept else [f"{where}: {given!r} is no field"]
