"""What a training in one process depends on: itself, its configuration and its data; no cluster, store or registry."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import multimodal_gemma
from multimodal_gemma import config as configuration
from tests.unit.training import toys

PACKAGE = "multimodal_gemma"
ROOT = Path(multimodal_gemma.__file__).parent
TRAIN = f"{PACKAGE}.stages.train"
MOST = 45
# Rooms that stages/train.py enters only where the configuration asks for it, each by an import inside a function.
OPTIONAL = {
    f"{PACKAGE}.stages.train_nodes": "training.nodes and nodes.train_job",
    f"{PACKAGE}.registry.tracking": "training.trackers=[mlflow]",
    f"{PACKAGE}.training.store": "training.checkpoint_uri",
}
CHILD = f"""
import json, sys
from pathlib import Path

from multimodal_gemma import config
from multimodal_gemma.stages import train

train.run(config.from_json(sys.argv[1]), *map(Path, sys.argv[2:]))
print(json.dumps(sorted(name for name in sys.modules if name.startswith("{PACKAGE}.") or "." not in name)))
"""


def modules() -> dict[str, Path]:
    """Return every module of the package by its name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, known: dict[str, Path]) -> set[str]:
    """Return the modules that one imports by any statement, also inside a function or for types, and their packages."""
    wanted: set[str] = set()
    for node in ast.walk(ast.parse(known[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = (f"{node.module}.{alias.name}" for alias in node.names)
            wanted |= {member if member in known else node.module for member in members}
    if name == TRAIN:
        assert wanted >= OPTIONAL.keys()
        wanted -= OPTIONAL.keys()
    parts = [one.split(".") for one in wanted]
    return {".".join(each[:count]) for each in parts for count in range(1, len(each) + 1)} & known.keys()


def test_train_reaches_few_modules():
    """Whoever reads or mends a training must not have to know the rest of the project: half of it was reached once."""
    known = modules()
    by: dict[str, str] = {TRAIN: ""}
    waiting = [TRAIN]
    while waiting:
        name = waiting.pop(0)
        for found in sorted(imported(name, known) - by.keys()):
            by[found] = name
            waiting.append(found)
    lines = "\n".join(f"  {name} (first by {by[name]})" for name in sorted(by))
    assert len(by) <= MOST, (
        f"stages/train.py reaches {len(by)} modules, and {MOST} are allowed. Let the caller give what a training needs "
        f"of another room, as stages/train.py gives it MLflow's tracker and the copies of checkpoints.\n{lines}"
    )


def test_a_training_on_folders_loads_no_client_of_anything(tmp_path):
    """The rooms that stages/train.py enters on demand stay closed: `OPTIONAL` would be a lie otherwise."""
    models = toys.write_models(tmp_path / "models")
    dataset = toys.write_dataset(tmp_path / "data", models)
    settings = configuration.to_json(toys.configuration("training.max_steps=1"))
    folders = [str(folder) for folder in (dataset, models, tmp_path / "model")]
    told = subprocess.run(
        [sys.executable, "-c", CHILD, settings, *folders], check=True, capture_output=True, text=True, timeout=300
    ).stdout
    loaded = json.loads(told.splitlines()[-1])
    shut = ("cluster", "data.sources", "registry", "sample", "stages.train_nodes", "training.store")
    shut = tuple(f"{PACKAGE}.{name}" for name in shut)
    assert [name for name in loaded if name.startswith(shut) or name in ("kubernetes", "minio", "mlflow", "kfp")] == []
    assert f"{PACKAGE}.training.loop" in loaded
