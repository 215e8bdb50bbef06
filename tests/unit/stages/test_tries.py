"""What is tried again in a task's pod, and what never is: with real processes that die in real ways."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

# Stands in for a stage: each time it is called it does the next thing of its story, and counts on the disk.
STAGE = """
from __future__ import annotations
import dataclasses, os, signal, sys, time
from pathlib import Path
from multimodal_gemma.errors import InputError, Outage
from multimodal_gemma.stages.summary import Summary

def run(config, folder: Path, story: list, *, run_id: str = "") -> Summary:
    done = folder / "steps"
    number = len(done.read_text()) if done.exists() else 0
    done.write_text("x" * (number + 1))
    sys.stderr.write(f"working, from step {number}\\n")
    what = story[number]
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "memory":
        raise MemoryError
    if what == "connection":
        raise ConnectionResetError("the store hung up")
    if what == "outage":
        raise Outage("registry: MLflow at http://mlflow:5000 cannot be reached. Start it.")
    if what == "mistake":
        raise InputError("export: there is no such place. Name another.")
    if what == "waits":
        (folder / "waiting").write_text(str(os.getpid()))
        time.sleep(60)
    if what == "saves":
        def save(*_):
            (folder / "saved").write_text("checkpoint")
            raise SystemExit(75)
        signal.signal(signal.SIGTERM, save)
        (folder / "waiting").write_text(str(os.getpid()))
        time.sleep(60)
    return Summary("trial", folder, "d1", {"steps": float(number)}, {"preset": config.preset, "run": run_id})
"""
# A component's shell, which must never import what only the work needs.
SHELL = """
import json, sys
from pathlib import Path
from multimodal_gemma.stages import component, tries
tries.PAUSES = (0.0,)
tries.TRIES["trial"] = 3
if len(sys.argv) > 3:
    tries._MEMORY = Path(sys.argv[3])
plan = json.dumps({"config": {"preset": "sample"}, "run_id": "r1", "mlflow": "http://mlflow:5000/#/runs/7"})
summary = component.work("trial", plan, folder=sys.argv[1], story=json.loads(sys.argv[2]))
print(json.dumps([summary.digest, summary.numbers, summary.facts, str(summary.folder)]))
assert "torch" not in sys.modules and "mlflow" not in sys.modules and "hydra" not in sys.modules
"""


@pytest.fixture
def shell(tmp_path: Path):
    """Return what runs the shell over a story; its stage is a module of this package for its own time."""
    package = tmp_path / "site" / "sitecustomize.py"
    package.parent.mkdir()
    (tmp_path / "trial.py").write_text(STAGE)
    package.write_text(
        textwrap.dedent(
            f"""
            import importlib.abc, importlib.util, sys
            class Finder(importlib.abc.MetaPathFinder):
                def find_spec(self, name, path=None, target=None):
                    if name == "multimodal_gemma.stages.trial":
                        return importlib.util.spec_from_file_location(name, {str(tmp_path / "trial.py")!r})
            sys.meta_path.insert(0, Finder())
            """
        )
    )
    (tmp_path / "work").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    environment.pop("MMGEMMA_TRIES", None)

    def start(*story: str, cgroup: Path | None = None, **more: str) -> subprocess.Popen:
        arguments = [str(tmp_path / "work"), json.dumps(story), *([str(cgroup)] if cgroup else [])]
        command = [sys.executable, "-c", SHELL, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env={**environment, **more}, **pipes)

    return start


def ended(process: subprocess.Popen) -> tuple[int, str, list[str]]:
    out, err = process.communicate(timeout=120)
    sys.stderr.write(err)
    return process.returncode, out, err.splitlines()


def test_a_first_try_that_works_is_the_only_one(shell, tmp_path):
    code, out, said = ended(shell("done"))
    assert code == 0
    assert json.loads(out) == ["d1", {"steps": 0.0}, {"preset": "sample", "run": "r1"}, str(tmp_path / "work")]
    assert said[:3] == ["MLflow: http://mlflow:5000/#/runs/7", "--- trial: try 1 of 3", "working, from step 0"]
    assert len(said) == 3


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("killed", "killed by SIGKILL"),
        ("memory", "MemoryError: "),
        ("connection", "ConnectionResetError: the store hung up"),
    ],
)
def test_what_nobody_asked_for_is_tried_again_and_continues(shell, ending, reason):
    code, out, said = ended(shell(ending, "done"))
    assert code == 0
    assert json.loads(out)[1] == {"steps": 1.0}
    headers = [line for line in said if line.startswith("---")]
    assert headers == [
        "--- trial: try 1 of 3",
        f"--- trial: {reason}; tried again in 0 s with what is on the disk",
        "--- trial: try 2 of 3",
        "--- trial: done at try 2",
    ]
    assert [line for line in said if line.startswith("working")] == ["working, from step 0", "working, from step 1"]
    assert not [line for line in said if line.startswith("error: ")]


def test_a_mistake_of_the_user_is_never_tried_again(shell):
    code, _, said = ended(shell("mistake", "done"))
    assert code == 2
    assert said[-1] == "error: export: there is no such place. Name another."
    assert len([line for line in said if line.startswith("working")]) == 1


def test_a_server_that_is_away_is_waited_for_and_one_that_never_comes_is_a_mistake(shell, tmp_path):
    code, _, said = ended(shell("outage", "done"))
    assert code == 0
    assert not [line for line in said if line.startswith(("error: ", "Traceback"))]
    (tmp_path / "work" / "steps").unlink()
    code, _, said = ended(shell("outage", "outage", "outage"))
    assert code == 2
    assert said[-1] == "error: registry: MLflow at http://mlflow:5000 cannot be reached. Start it."


def test_three_deaths_end_it_with_one_sentence(shell):
    code, _, said = ended(shell("killed", "killed", "killed", "done"))
    assert code == 1
    assert said[-1].startswith("error: trial: tried 3 times, each time killed by SIGKILL. ")


def test_the_last_reason_is_told_where_they_differ(shell):
    code, _, said = ended(shell("killed", "memory", "connection"))
    assert code == 1
    assert "tried 3 times, the last time ConnectionResetError: the store hung up." in said[-1]
    assert any("Traceback" in line for line in said)


def test_a_person_who_waits_gets_one_try(shell):
    code, _, said = ended(shell("connection", "done", MMGEMMA_TRIES="1"))
    assert code == 1
    assert said[-1] == "error: trial: ConnectionResetError: the store hung up. What happened stands above."
    assert not [line for line in said if line.startswith("---")]


def test_a_kill_for_want_of_memory_is_told_from_others(shell, tmp_path):
    """The kernel counts it in the container's cgroup; here a file stands in for it."""
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    (cgroup / "memory.events").write_text("low 0\nmax 7\noom 1\noom_kill 0\n")
    (cgroup / "memory.max").write_text(f"{450 * 2**20}\n")
    (tmp_path / "trial.py").write_text(
        STAGE.replace(
            '    if what == "killed":\n',
            f"    if what == \"killed\":\n        Path({str(cgroup)!r}, 'memory.events').write_text('oom_kill 1')\n",
        )
    )
    code, _, said = ended(shell("killed", "done", cgroup=cgroup))
    assert code == 0
    assert any("killed for want of memory (the container may have 0.439 GiB); tried again" in line for line in said)


def waiting(tmp_path: Path) -> int:
    deadline = time.monotonic() + 60
    while not (tmp_path / "work" / "waiting").exists() or not (tmp_path / "work" / "waiting").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int((tmp_path / "work" / "waiting").read_text())


def test_sigterm_reaches_the_work_at_once_and_ends_the_tries(shell, tmp_path):
    process = shell("saves", "done")
    waiting(tmp_path)
    process.send_signal(signal.SIGTERM)
    code, _, said = ended(process)
    assert code == 75
    assert (tmp_path / "work" / "saved").read_text() == "checkpoint"
    assert not any("try 2" in line for line in said)


def test_work_without_its_shell_ends(shell, tmp_path):
    process = shell("waits", "done")
    child = waiting(tmp_path)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split(")")[1]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
