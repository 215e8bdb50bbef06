"""What a stage tells its caller."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Summary:
    """The outcome of one stage.

    Attributes:
        stage: the verb, e.g. "preprocess".
        folder: the artifact that the stage made or found.
        digest: manifest digest of that artifact.
        numbers: the figures a person would ask for next, by name.
        facts: short texts worth showing, e.g. a model version's alias.
        cached: the finished artifact was found and nothing was done.
    """

    stage: str
    folder: Path
    digest: str
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    cached: bool = False

    def log_to(self, metrics: Any) -> None:
        """Write the numbers into a KFP `Metrics` artifact; what is no finite number has no place in its metadata."""
        for name, value in self._finite().items():
            metrics.log_metric(name, value)

    def describe(self, artifact: Any) -> None:
        """Write digest, numbers and facts into the metadata of a KFP artifact."""
        artifact.metadata.update({"digest": self.digest, **self._finite(), **self.facts})

    def _finite(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.numbers.items() if math.isfinite(value)}
