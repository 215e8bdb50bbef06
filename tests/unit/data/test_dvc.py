"""dvc.yaml says the same as the command line: each command is understood, each dependency is there or made before."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from multimodal_gemma import cli, config

ROOT = Path(__file__).parents[3]
PARAMS: dict[str, str] = yaml.safe_load((ROOT / "params.yaml").read_text())
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def words(stage: str, overrides: str) -> list[str]:
    command = STAGES[stage]["cmd"].replace("${preset}", PARAMS["preset"]).replace("${overrides}", overrides)
    assert "${" not in command
    return shlex.split(command)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("overrides", [PARAMS["overrides"], "data.limit=10 training.epochs=1"])
def test_the_command_of_a_stage_is_understood(stage: str, overrides: str) -> None:
    program, *arguments = words(stage, overrides)
    assert program == "mmgemma"
    parsed, rest = cli._parser().parse_known_args(arguments)
    assert rest == overrides.split()
    assert config.compose(parsed.preset, rest).data.conversations
    assert stage.split("-")[0] == parsed.command.__name__.strip("_")


def test_what_a_stage_reads_is_in_the_repository_or_made_before_it() -> None:
    made: set[str] = set()
    for name, stage in STAGES.items():
        outputs = {next(iter(output)) for output in stage["outs"]}
        for dependency in stage["deps"]:
            assert dependency in made or (ROOT / dependency).exists(), (name, dependency)
        given = [word for word in words(name, "") if word.startswith("dvc/")]
        assert set(given) == outputs | (set(stage["deps"]) & made), name
        assert set(stage["params"]) == set(PARAMS)
        made |= outputs
    assert {"dvc/processed", "dvc/model", "dvc/evaluation"} <= made
