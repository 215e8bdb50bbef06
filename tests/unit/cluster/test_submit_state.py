"""What a server's answer says about tasks, tries and the gate, and what it does not say."""

from __future__ import annotations

import datetime
import io
from typing import Any

import kfp_server_api
import pytest
from rich.console import Console

from multimodal_gemma.cluster.kfp import pipeline as pipelines
from multimodal_gemma.cluster.kfp.screen import Screen, changes, duration, picture
from multimodal_gemma.cluster.kfp.story import Row, Snapshot, snapshot
from multimodal_gemma.local.runner import compiled_pipeline
from tests.servers.kfp_nodes import Task, details, training

NOW = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=datetime.UTC)
END = 10_000.0


def seen(story: list[Task], elapsed: float, state: str, *, pipeline: str = "training") -> Snapshot:
    answer = {"run_id": "r", "state": state, "run_details": {"task_details": details("wf-r", story, elapsed, NOW)}}
    run: Any = kfp_server_api.ApiClient()._ApiClient__deserialize(answer, "V2beta1Run")  # type: ignore[attr-defined]
    return snapshot(run, pipelines.read(compiled_pipeline(pipeline)).spec, NOW)


def states(run: Snapshot) -> dict[str, str]:
    return {row.name: row.state for row in run.rows}


def test_a_task_of_which_the_server_says_nothing_yet_is_waiting() -> None:
    run = seen(training(), 200, "RUNNING")
    assert states(run)["train-model"] == "waiting"
    assert states(run)["download-dataset"] == "running"
    assert states(run)["download-models"] == "succeeded"
    assert run.gate == "undecided"
    assert not run.ended


def test_a_running_task_counts_from_its_start_though_its_end_is_given_as_year_1() -> None:
    rows = {row.name: row for row in seen(training(), 1_085, "RUNNING").rows}
    assert rows["train-model"].seconds == pytest.approx(100, abs=1)
    assert rows["preprocess-dataset"].seconds == pytest.approx(588, abs=1)


def test_drivers_and_pods_are_no_tasks_of_the_table() -> None:
    names = [row.name for row in seen(training(), END, "SUCCEEDED").rows]
    assert len(names) == 10
    assert names[0] == "preflight"
    assert names[-1] == "report-run"


def test_a_gate_of_which_the_answer_says_nothing_is_unknown_and_not_passed() -> None:
    assert seen([], END, "SUCCEEDED").gate == "unknown"


def test_a_failure_before_the_gate_leaves_it_undecided() -> None:
    run = seen(training(failing="train-model"), END, "FAILED")
    assert run.gate == "undecided"
    assert run.failed is not None
    assert run.failed.name == "train-model"
    assert states(run)["evaluate-model"] == "not run"
    assert states(run)["report-run"] == "succeeded"


@pytest.mark.parametrize(("state", "shown"), [("CANCELED", "stopped"), ("SUCCEEDED", "succeeded")])
def test_a_task_whose_end_was_never_reported_does_not_run_for_ever(state: str, shown: str) -> None:
    row = next(row for row in seen(training(), 2_000, state).rows if row.name == "train-model")
    assert (row.state, row.seconds) == (shown, None)


def test_a_pipeline_without_a_gate_has_none() -> None:
    assert seen([], END, "SUCCEEDED", pipeline="reevaluation").gate == "none"


def test_every_try_is_counted_though_other_tasks_run_beside_it() -> None:
    story = training(tried={"train-model": ("", ""), "download-dataset": ("",)})
    rows = {row.name: row for row in seen(story, END, "SUCCEEDED").rows}
    assert {name: rows[name].tries for name in ("train-model", "download-dataset", "download-models")} == {
        "train-model": 3,
        "download-dataset": 2,
        "download-models": 1,
    }
    assert len(set(rows["train-model"].pods)) == 3


def test_a_server_that_lists_no_task_is_told_from_one_that_has_not_begun() -> None:
    assert seen([], 0, "PENDING").told
    answer: Any = kfp_server_api.V2beta1Run(state="RUNNING")
    run = snapshot(answer, pipelines.read(compiled_pipeline()).spec, NOW)
    assert not run.told
    assert set(states(run).values()) == {"waiting"}


def test_lines_are_written_only_about_what_changed() -> None:
    early, later = seen(training(), 200, "RUNNING"), seen(training(), 300, "RUNNING")
    assert [line.partition(":")[0] for line in changes(None, early)] == [
        "preflight",
        "download-benchmarks",
        "download-dataset",
        "download-models",
    ]
    assert changes(early, later) == []
    tried = training(tried={"train-model": ("",)})
    assert changes(seen(tried, 2_000, "RUNNING"), seen(tried, 4_000, "RUNNING")) == ["train-model: running, try 2"]


def test_on_a_terminal_the_table_is_repainted_and_says_when_the_server_is_away() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    screen = Screen("nightly", console)
    with screen.open():
        screen.show(seen(training(), 200, "RUNNING"))
        screen.trouble("the connection was lost; trying again")
        screen.show(seen(training(), 2_000, "RUNNING"))
    painted = console.file.getvalue()  # type: ignore[attr-defined]
    assert painted.count("\x1b[2K") >= 20  # lines that were wiped to be painted anew
    assert "The run goes on, but the connection was lost; trying again." in painted
    assert painted.rindex("train-model") > painted.rindex("connection was lost")


def test_what_a_server_says_is_no_markup() -> None:
    rows = (Row("preflight", "failed", reason="[red]no[/] bracket]"),)
    console = Console(file=io.StringIO(), width=100)
    console.print(picture(Snapshot("FAILED", rows, "undecided"), "[1]"))
    assert "[red]no[/] bracket]" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7_620, "2 h 07 min")])
def test_durations_are_written_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
