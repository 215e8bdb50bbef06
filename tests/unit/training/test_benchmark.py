"""The benchmarks of training run on a bare machine, and say what each technique saves and what bounds a GPU."""

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
    assert len(names) == 6
    assert names[0].startswith("stock Llava with PEFT")


def test_the_gpu_benchmark_runs_through_the_trainer_with_toys_on_a_processor(tmp_path):
    """In this process and without its phases' own ones, of which each would load the libraries anew."""
    code = (
        "import sys, runpy, json\n"
        "found = {}\n"
        "module = runpy.run_path(sys.argv[1], run_name='gpu')\n"
        "for phase in module['RUN']:\n"
        "    arguments = ['--tiny', '--cpu', '--steps', '14', '--phase', phase, '--out', sys.argv[2]]\n"
        "    sys.argv[3:] = []\n"
        "    before, sys.argv = sys.argv, ['gpu', *arguments]\n"
        "    try:\n"
        "        module['main']()\n"
        "    except SystemExit as ended:\n"
        "        assert not ended.code, open(before[2]).read()\n"
        "    sys.argv = before\n"
        "    found[phase] = json.load(open(sys.argv[2]))\n"
        f"assert not [name for name in {HEAVY!r} if name in sys.modules]\n"
        "json.dump(found, open(sys.argv[2], 'w'))\n"
    )
    script, out = SCRIPT.with_name("gpu.py"), tmp_path / "out.json"
    command = [sys.executable, "-c", code, str(script), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    main = found["main"]
    first, last = main["first_and_last_loss"]
    assert main["samples_per_second"] > 0
    assert last < first
    assert main["mfu"] is None  # a processor's peak is not known
    assert found["loss"]["relative_error_of_our_gradient"] < 1e-5
    assert "no such kernel for cpu" in found["sdpa"]["varlen"]
    assert found["naive"]["samples_per_second"] > 0
    assert found["encode"]["images_per_second"] > 0
