"""The benchmark of the training step runs on a bare machine and says what each technique saves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "train_step.py"
HEAVY = ("datasets", "hydra", "mlflow", "kfp")


def test_it_needs_torch_transformers_and_peft_alone():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['train_step', '--tiny', '--json', '--samples', '4']\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        f"assert not [name for name in {HEAVY!r} if name in sys.modules]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["ratio"] > 0
    names = [rung["name"] for rung in result["rungs"]]
    assert len(names) == 9
    assert names[0].startswith("stock Llava with PEFT")
