"""The benchmark must run on a machine that has torch and transformers and little else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
ABSENT = ("datasets", "hydra", "omegaconf", "mlflow", "kfp", "pyarrow", "torchvision")


def test_benchmark_gives_identical_answers_without_the_pipelines_packages() -> None:
    program = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({ABSENT!r}))\n"  # None there makes an import fail
        "sys.argv = ['evaluate.py', '--tiny', '--images', '3', '--questions', '3', '--json']\n"
        "runpy.run_path('benchmarks/evaluate.py', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["identical"]
    assert figures["distinct_answers"] > 3
    assert figures["ratio"] > 0
