"""The graph that people see is the graph that runs."""

import pytest

from multimodal_gemma.errors import InputError
from multimodal_gemma.local import graph
from multimodal_gemma.reporting.run_page import Step
from tests.unit.local.toy import compile_toy


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return graph.read(compile_toy(tmp_path_factory.mktemp("toy")))


def test_nested_groups_become_a_plain_list_in_order_with_the_exit_handler_last(tasks):
    assert [task.name for task in tasks] == ["preflight", "fetch", "learn", "ship", "last"]


def test_a_task_needs_those_before_it_across_groups(tasks):
    needs = {task.name: set(task.needs) for task in tasks}
    assert needs["learn"] == {"preflight", "fetch"}
    assert needs["ship"] == {"learn"}  # which is inside a condition
    assert needs["last"] == {"ship"}  # which is inside a pipeline inside the exit handler


def test_only_the_condition_is_conditional_and_only_the_exit_handler_final(tasks):
    assert [task.name for task in tasks if task.conditional] == ["ship"]
    assert [task.name for task in tasks if task.final] == ["last"]


def test_a_file_that_is_no_pipeline_is_refused_in_a_sentence(tmp_path):
    for text in ("", "just: yaml\n", "{broken: [\n"):
        path = tmp_path / "x.yaml"
        path.write_text(text)
        with pytest.raises(InputError, match="make compile-pipeline"):
            graph.read(path)
    with pytest.raises(InputError, match="does not exist"):
        graph.read(tmp_path / "absent.yaml")


def test_the_picture_shows_each_status_and_leaves_out_arrows_that_follow(tasks):
    steps = {task.name: Step(task.name, "succeeded", 2.0) for task in tasks}
    steps |= {"fetch": Step("fetch", "reused", 2.0), "ship": Step("ship", "skipped")}
    svg = graph.svg(tasks, steps)
    assert "reused, 2.0 s" in svg
    assert ">skipped<" in svg
    # preflight -> fetch -> learn -> ship -> last; preflight -> learn follows from the first two.
    assert svg.count("marker-end") == 4
