"""The cluster's API accepts every manifest as it is written, and drops none of its fields."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.manifests.rendering import CLUSTERS, MANIFESTS, cluster, the
from tests.unit.manifests.schemas import complaints


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_api_accepts_every_manifest(name: str) -> None:
    assert [line for one in cluster(name) for line in complaints(one)] == []


@pytest.mark.parametrize("page", sorted((MANIFESTS.parent / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_the_api_accepts_what_the_pages_show(page: Path) -> None:
    shown = [yaml.safe_load_all(block) for block in re.findall(r"```yaml\n(apiVersion.*?)```", page.read_text(), re.S)]
    assert [line for objects in shown for one in objects for line in complaints(one)] == []


def _rank(one: dict[str, Any]) -> dict[str, Any]:
    return one["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]


BROKEN: list[tuple[str, str, Callable[[dict[str, Any]], Any], str]] = [
    ("Deployment", "mlflow", lambda one: one["spec"].update(replica=2), "replica"),
    ("Deployment", "mlflow", lambda one: one["spec"].update(replicas="two"), "two"),
    ("NetworkPolicy", "runs-https", lambda one: one["spec"].update(policytypes=["Egress"]), "policytypes"),
    ("ResourceQuota", "multimodal-gemma-ranks", lambda one: one.update(apiVersion="v2"), "has no ResourceQuota in v2"),
    # Older runtimes said it here; Trainer 2.3 has no such field, and drops it.
    (
        "TrainingRuntime",
        "multimodal-gemma",
        lambda one: one["spec"]["mlPolicy"]["torch"].update(numProcPerNode=2),
        "Proc",
    ),
    ("TrainingRuntime", "multimodal-gemma", lambda one: _rank(one).update(resource={"limits": {}}, image=3), "image"),
    ("TrainingRuntime", "multimodal-gemma", lambda one: _rank(one).update(enviroment=["x"]), "enviroment"),
    ("ClusterQueue", "multimodal-gemma", lambda one: one["spec"].update(cohort="all"), "cohort"),
    ("ClusterQueue", "multimodal-gemma", lambda one: one["spec"]["resourceGroups"][0].pop("flavors"), "flavors"),
    ("ResourceFlavor", "multimodal-gemma-a100", lambda one: one["spec"].update(nodelabels={"a": "b"}), "nodelabels"),
    ("LocalQueue", "multimodal-gemma", lambda one: one["spec"].pop("clusterQueue"), "clusterQueue"),
    ("ServingRuntime", "multimodal-gemma-vllm", lambda one: one["spec"]["containers"][0].update(arg=["x"]), "arg"),
    (
        "InferenceService",
        "multimodal-gemma",
        lambda one: one["spec"]["predictor"]["model"].update(storageURI="x"),
        "URI",
    ),
    ("InferenceService", "multimodal-gemma", lambda one: one["spec"]["predictor"].update(tolerations={}), "array"),
]


@pytest.mark.parametrize(("kind", "name", "breaking", "said"), BROKEN, ids=[f"{k}-{s}" for k, _, _, s in BROKEN])
def test_a_field_that_the_api_would_drop_is_found(
    kind: str, name: str, breaking: Callable[[dict[str, Any]], Any], said: str
) -> None:
    one = the(cluster("gke-a100"), kind, name)
    assert complaints(one) == []
    breaking(one)
    assert any(said in line for line in complaints(one)), complaints(one)
