"""What `kubectl apply -k` would send, as objects.

A cluster is what one overlay and its optional parts amount to together: a training runtime, say, and the priority class
that it names come from different parts.
"""

from __future__ import annotations

import copy
import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFESTS = Path(__file__).parents[3] / "manifests"
_OVERLAYS = MANIFESTS / "overlays"

CLUSTERS: dict[str, tuple[Path, ...]] = {
    "own-namespace": tuple(MANIFESTS / part for part in ("base", "mlflow", "trainer", "serving", "kueue")),
    **{
        name: tuple(_OVERLAYS / name / part for part in (".", "trainer", "serving", "kueue"))
        for name in ("kind", "gke-a100")
    },
}


@functools.cache
def _rendered(folder: Path) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; it renders the manifests")
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{folder} does not render:\n{done.stderr}"
    return [found for found in yaml.load_all(done.stdout, yaml.CSafeLoader) if found]


def render(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of one kustomization, each a copy that may be changed."""
    return copy.deepcopy(_rendered(folder))


def cluster(name: str) -> list[dict[str, Any]]:
    """Return the objects of all parts of one cluster."""
    return [found for folder in CLUSTERS[name] for found in render(folder)]


def the(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """Return the one object of this kind and name."""
    (found,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    return found
