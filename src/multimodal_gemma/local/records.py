"""What is known about each task of a run, while it runs and afterwards."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any, Literal

from multimodal_gemma.stages.component import ERROR_MARK

Status = Literal["waiting", "succeeded", "reused", "failed", "skipped"]
_KEPT = 50  # lines


@dataclasses.dataclass
class Record:
    """One task.

    Attributes:
        name: its name in the pipeline.
        status: "reused" is a result of an earlier run that was found in the cache; "skipped" did not run, because a
            condition did not hold or something before it failed.
        seconds: wall time.
        exit_code: of its process; None if it had none.
        log: everything that it wrote; None if it did not run.
        outputs: parameters by name, artifacts as paths by name.
        said: the last lines that it wrote for people, without those of the machinery around it.
    """

    name: str
    status: Status = "waiting"
    seconds: float = 0.0
    exit_code: int | None = None
    log: Path | None = None
    outputs: dict[str, Any] = dataclasses.field(default_factory=dict)
    said: collections.deque[str] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=_KEPT))

    def folder(self, output: str) -> Path | None:
        """Return the path of an artifact that the task made, or None."""
        value = self.outputs.get(output)
        return value if isinstance(value, Path) else None

    @property
    def sentence(self) -> str:
        """The sentence with which it refused its input, or ""."""
        marked = [line for line in self.said if line.startswith(ERROR_MARK)]
        return marked[-1].removeprefix(ERROR_MARK) if marked else ""

    def last_lines(self, count: int = 15) -> list[str]:
        """Return the last lines that it wrote for people."""
        return list(self.said)[-count:]
