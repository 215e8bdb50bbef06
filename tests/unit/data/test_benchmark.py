"""The benchmark of the data path runs, small, and says what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_benchmark_prints_one_object() -> None:
    asked = [sys.executable, "benchmarks/data.py", "--json", "--images", "100"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert {"ratio", "preprocess_images_per_s_per_core", "rss_growth", "download_ratio"} <= set(figures)
    assert figures["download_ratio"] > 1
    assert figures["preprocess"]["images"] == [10, 100]
