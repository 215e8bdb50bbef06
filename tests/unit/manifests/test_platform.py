"""The two patches of the platform itself change what they say they change, and keep the rest."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.manifests.rendering import MANIFESTS, render, the
from tests.unit.manifests.schemas import complaints

# What an installation of Kubeflow Pipelines 2.17.0 holds under these names, as far as the patches touch it.
INSTALLED: dict[str, dict[str, Any]] = {
    "workflow-controller-configmap": {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "workflow-controller-configmap", "namespace": "kubeflow"},
        "data": {
            "artifactRepository": "archiveLogs: true\n",
            "executor": "imagePullPolicy: IfNotPresent\n",
            "workflowDefaults": yaml.safe_dump(
                {
                    "spec": {
                        "ttlStrategy": {
                            "secondsAfterCompletion": 3600,
                            "secondsAfterSuccess": 3600,
                            "secondsAfterFailure": 3600,
                        },
                        "templateDefaults": {"retryStrategy": {"limit": "2", "retryPolicy": "OnError"}},
                    }
                }
            ),
        },
    },
    "seaweedfs-pvc": {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "seaweedfs-pvc", "namespace": "kubeflow"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}},
    },
}
PARTS = {"retries": "workflow-controller-configmap", "store": "seaweedfs-pvc"}


@pytest.fixture(params=("component", "patch"))
def patched(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The objects after both patches: by kustomize, beside the platform's own manifests, and by `kubectl patch`."""
    if request.param == "component":
        (tmp_path / "platform.yaml").write_text(yaml.safe_dump_all(INSTALLED.values()))
        components = [os.path.relpath((MANIFESTS / "platform" / part).resolve(), tmp_path.resolve()) for part in PARTS]
        kustomization = {"resources": ["platform.yaml"], "components": components}
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        objects = render(tmp_path)
    else:
        render(MANIFESTS / "base")  # skips where there is no kubectl
        objects = [_patched(tmp_path, part) for part in PARTS]
    assert [line for one in objects for line in complaints(one)] == []
    return {name: the(objects, INSTALLED[name]["kind"], name) for name in PARTS.values()}


def _patched(folder: Path, part: str) -> dict[str, Any]:
    name = PARTS[part]
    (folder / "object.yaml").write_text(yaml.safe_dump(INSTALLED[name]))
    patch = MANIFESTS / "platform" / part / f"{name}.yaml"
    command = ["kubectl", "patch", "--local", "-f", "object.yaml", "--patch-file", str(patch), "-o", "yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return yaml.safe_load(done.stdout)


def test_only_what_is_tried_again_changes(patched: dict[str, dict[str, Any]]) -> None:
    before, after = INSTALLED["workflow-controller-configmap"]["data"], patched["workflow-controller-configmap"]["data"]
    assert {key: after[key] for key in before if key != "workflowDefaults"} == {
        key: before[key] for key in before if key != "workflowDefaults"
    }
    expected = yaml.safe_load(before["workflowDefaults"])
    expected["spec"]["templateDefaults"]["retryStrategy"] = {"limit": "0", "retryPolicy": "Always"}
    assert yaml.safe_load(after["workflowDefaults"]) == expected


def test_the_store_grows_and_stays_what_it_is(patched: dict[str, dict[str, Any]]) -> None:
    spec = patched["seaweedfs-pvc"]["spec"]
    assert spec["accessModes"] == ["ReadWriteOnce"]
    assert int(spec["resources"]["requests"]["storage"].removesuffix("Gi")) >= 200


def test_a_store_accepts_the_lifecycle_rules_and_none_touches_what_the_cache_points_at() -> None:
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")
    rules = json.loads((MANIFESTS / "platform" / "store" / "lifecycle.json").read_text())
    with moto.mock_aws():
        store = boto3.client("s3", region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test")
        store.create_bucket(Bucket="mlpipeline")
        store.put_bucket_lifecycle_configuration(Bucket="mlpipeline", LifecycleConfiguration=rules)
        kept = store.get_bucket_lifecycle_configuration(Bucket="mlpipeline")["Rules"]
    expiring = {rule["Filter"]["Prefix"] for rule in kept if "Expiration" in rule}
    assert not any("v2/artifacts/".startswith(prefix) or prefix.startswith("v2/") for prefix in expiring)
    # What the parameters' file for GKE writes to, and nothing else.
    told = yaml.safe_load((MANIFESTS.parent / "pipelines" / "parameters" / "gke-a100.yaml").read_text())["overrides"]
    places = {line.partition("=s3://mlpipeline/")[2] for line in told if "=s3://" in line}
    assert places
    assert {place for place in places if not any(prefix.startswith(f"{place}/") for prefix in expiring)} == set()
    assert all(prefix.startswith(tuple(f"{place}/" for place in places)) for prefix in expiring)
