"""What docs/cluster.md tells people to type are parameters that the compiled pipeline has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from multimodal_gemma.config.flat import bare

REPOSITORY = Path(__file__).parents[3]
TYPES = {"STRING": str, "LIST": list}


def _table() -> list[tuple[str, str, str]]:
    """Return parameter, value on kind and value on GKE of each row."""
    text = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8").split("side by side\n")[1]
    rows = [
        line.strip("| \n").split(" | ")
        for line in text.split("`overrides` takes")[0].splitlines()
        if line.startswith("| `")
    ]
    return [tuple(re.search(r"`([^`]*)`", cell)[1] for cell in row) for row in rows]


@pytest.fixture(scope="module")
def parameters() -> dict[str, dict]:
    compiled = REPOSITORY / "pipelines" / "compiled" / "training.yaml"
    spec = next(yaml.load_all(compiled.read_text(encoding="utf-8"), yaml.CSafeLoader))
    return {bare(name): value for name, value in spec["root"]["inputDefinitions"]["parameters"].items()}


def test_both_clusters_are_described_by_parameters_of_the_pipeline(parameters) -> None:
    table = _table()
    assert len(table) == 3
    for name, *values in table:
        wanted = TYPES[parameters[name]["parameterType"]]
        for value in values:
            assert isinstance(value if wanted is str else json.loads(value), wanted), name


def test_kind_runs_on_the_defaults(parameters) -> None:
    for name, kind, _ in _table():
        default = parameters[name]["defaultValue"]
        assert kind == (default if isinstance(default, str) else json.dumps(default)), name


def test_every_parameter_that_is_named_in_a_page_exists(parameters) -> None:
    for page in sorted((REPOSITORY / "docs").glob("cluster*.md")):
        named = set(
            re.findall(r"`((?:resources|registry|secret|training|data|model|benchmarks)_[a-z_]+)`", page.read_text())
        )
        assert named <= set(parameters), page.name
