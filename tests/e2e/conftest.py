"""Whole pipelines, run as a user runs them: by the command line, in a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def mmgemma() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `mmgemma` with these arguments and return the finished process; output goes to the test's own."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "HF_"))}
        return subprocess.run(
            [sys.executable, "-m", "multimodal_gemma.cli", *arguments],
            cwd=REPOSITORY,
            env={**clean, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )

    return run


def summary_of(runs: Path) -> dict[str, Any]:
    """Return what the latest run of a folder left for machines."""
    return json.loads((runs / "latest" / "summary.json").read_text())
