"""What a run is told, in the words that training used before."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from multimodal_gemma.config.schema import Config
from multimodal_gemma.registry import record, runs, server


def test_a_parameter_keeps_its_first_value_and_the_difference_is_said(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    run = runs.ensure_run(config.registry, "parameters")
    logging.getLogger("multimodal_gemma").propagate = True
    with server.connected(config.registry) as client:
        record.parameters(client, run, {"training": {"epochs": 3}, "seed": 1})
        record.parameters(client, run, {"training": {"epochs": 4}, "seed": 1, "new": [1]})
        held = client.get_run(run).data.params
    assert held == {"training.epochs": "3", "seed": "1", "new": "[1]"}
    assert "keeps its first value of training.epochs" in caplog.text


def test_a_package_inside_a_foreign_checkout_claims_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import subprocess

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, timeout=300)
    installed = tmp_path / "site-packages" / "record.py"
    installed.parent.mkdir()
    installed.write_text("")
    monkeypatch.delenv("MMGEMMA_GIT_COMMIT", raising=False)
    monkeypatch.setattr(record, "__file__", str(installed))
    assert record.git_commit() == ""
    monkeypatch.setenv("MMGEMMA_GIT_COMMIT", "a" * 40)
    assert record.git_commit() == "a" * 40


def test_the_table_of_scores_keeps_its_cells_apart_and_goes_from_the_easiest_to_the_hardest():
    """MLflow's pages draw cells without any space between them: "0.949-0.9800.500" was seen."""
    score = {"accuracy": 0.968, "interval": [0.949, 0.98], "f1": 0.97, "tp": 5, "fp": 0, "tn": 5, "fn": 0, "count": 10}
    pope = dict.fromkeys(("adversarial", "popular", "random"), score)  # as metrics.json, whose keys are sorted
    lines = record.scores_markdown({"names": {"pope": "POPE"}, "pope": pope}).split("\n")
    assert lines[1].replace(" ", "") == "|---|---:|---:|---:|---:|"
    assert [line.split()[2] for line in lines[2:]] == ["random", "popular", "adversarial"]
    assert all("0.949-0.980 \N{NO-BREAK SPACE}| 0.500 \N{NO-BREAK SPACE}|" in line for line in lines[2:])
