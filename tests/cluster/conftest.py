"""The scenarios' cluster: that of KUBECONFIG, with Kubeflow Pipelines on it.

What it lacks of this project is applied once. Nothing of Kubeflow itself is installed or changed, and names of nodes
and storage classes are never assumed. Scenarios run one after another, and each undoes what it does to the cluster.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from tests.cluster.machines import Cluster, Kubectl, Runs, prepare

MINUTES = 60  # seconds


OPTIONS = {
    "cpu": ("2", "cores of a training pod, e.g. 1 where nodes are small"),
    "namespace": ("kubeflow", "where runs live"),
    "overlay": ("kind", "folder of manifests/overlays that is applied"),
    "minutes": ("45", "that one run may take"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cluster", "the cluster that the scenarios run on")
    for name, (default, told) in OPTIONS.items():
        group.addoption(f"--cluster-{name}", default=default, help=f"{told} (default: {default})")


def _option(config: pytest.Config, name: str) -> str:
    return str(config.getoption(f"--cluster-{name}", OPTIONS[name][0]))  # unknown where this folder was not named


@pytest.fixture(autouse=True)
def _ends(request: pytest.FixtureRequest) -> Iterator[None]:
    """End a scenario that hangs: with what it waits for, as the last line of the traceback."""
    marker = request.node.get_closest_marker("runs")
    minutes = float(_option(request.config, "minutes")) * (marker.args[0] if marker else 1) + 15

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{request.node.name} took more than {minutes:g} minutes")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, minutes * MINUTES)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster, with the overlay applied and every Secret there."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster; docs/cluster-kind.md makes one")
    kubectl = Kubectl()
    if reason := kubectl.unusable():
        pytest.skip(reason)
    if not kubectl.found("deployment", "ml-pipeline", namespace="kubeflow"):
        pytest.skip("this cluster has no Kubeflow Pipelines: namespace kubeflow has no Deployment ml-pipeline")
    told = {name: _option(request.config, name) for name in ("namespace", "cpu", "overlay")}
    found = Cluster(kubectl, minutes=float(_option(request.config, "minutes")), **told)
    prepare(found)
    return found


@pytest.fixture(scope="session")
def runs(cluster: Cluster) -> Runs:
    """What submits, follows and stops."""
    return Runs(cluster)
