"""What goes into a registration, and what comes out of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multimodal_gemma.manifest import Manifest
from multimodal_gemma.registry import gate, versions


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is to be registered.

    Attributes:
        model: folder of the model artifact.
        model_manifest: its manifest.
        evaluation: folder of the evaluation artifact.
        evaluation_manifest: its manifest.
        metrics: its metrics.json.
        dataset: folder of the processed dataset, if it is at hand.
        dataset_manifest: its manifest.
        benchmarks: what it was scored on, if it is at hand; for the pictures of a comparison.
    """

    model: Path
    model_manifest: Manifest
    evaluation: Path
    evaluation_manifest: Manifest
    metrics: Mapping[str, Any]
    dataset: Path | None = None
    dataset_manifest: Manifest | None = None
    benchmarks: Path | None = None

    @property
    def identity(self) -> str:
        """What makes its version one of a kind."""
        return versions.identity(self.model_manifest.digest, self.evaluation_manifest.digest)

    @property
    def benchmarks_digest(self) -> str:
        """Manifest digest of what it was scored on."""
        return str(self.metrics.get("benchmarks_digest") or self.evaluation_manifest.digest)

    @property
    def dataset_digest(self) -> str:
        """Manifest digest of the dataset it learned from; "" if the model does not say."""
        return self.dataset_manifest.digest if self.dataset_manifest else self.model_manifest.inputs.get("dataset", "")


@dataclasses.dataclass(frozen=True)
class Registration:
    """A version in the registry.

    Attributes:
        name: the registered model.
        version: its number, as text.
        alias: "champion", "challenger", "previous-champion", or "" if newer versions took its alias.
        decision: the gate's.
        run_id: the run of MLflow.
        experiment_id: that run's experiment.
        found: it was registered before, and nothing was done.
        comparison: the candidate beside the champion, an HTML page; "" if there was no champion, or nothing was done.
    """

    name: str
    version: str
    alias: str
    decision: gate.Decision
    run_id: str
    experiment_id: str
    found: bool
    comparison: str = ""
