"""A container's end is told as it was: failures as failures, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multimodal_gemma.errors import InputError
from multimodal_gemma.local.containers import Containers
from multimodal_gemma.local.results import Record
from tests.images.conftest import Run


def test_no_failure_is_taken_for_a_success(containers: Containers, images: dict[str, str], tmp_path: Path) -> None:
    """kfp's own Docker runner takes about one failed container in 25 for a good one."""
    record = Record("task", log=tmp_path / "log")
    codes = [containers.launch(images["pipeline"], ["sh", "-c", "exit 3"], {}, record) for _ in range(40)]
    assert codes == [3] * 40


def test_a_killed_task_is_a_failed_one(containers: Containers, images: dict[str, str], tmp_path: Path) -> None:
    record = Record("task", log=tmp_path / "log")
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert containers.launch(images["pipeline"], ["python3", "-c", script], {}, record) == 128 + signal.SIGKILL


def test_what_a_task_says_is_kept(containers: Containers, images: dict[str, str], tmp_path: Path) -> None:
    record = Record("task", log=tmp_path / "log")
    command = ["sh", "-c", 'echo "token $HF_TOKEN" >&2']
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_secret")
        assert containers.launch(images["pipeline"], command, {}, record) == 0
    assert (tmp_path / "log").read_text() == "token hf_secret\n"


def test_an_absent_image_is_said_before_anything_runs(containers: Containers) -> None:
    with pytest.raises(InputError, match=r"localhost/none:1 is not on this machine and cannot be pulled.*make images"):
        containers.require(["localhost/none:1"])


def test_an_interrupted_run_leaves_no_container(docker: Run, images: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'on')!r}).touch()\ntime.sleep(600)\n"
    )
    script = (
        "import sys, pathlib, signal\n"
        "from multimodal_gemma.local.containers import Containers\n"
        "from multimodal_gemma.local.results import Record\n"
        "signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "command = ['sh', '-c', f'python3 {folder}/task.py']\n"
        "Containers([folder]).launch(sys.argv[2], command, {}, Record('task', log=folder / 'log'))\n"
    )
    tmp_path.chmod(0o777)
    started = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), images["pipeline"]], env=dict(os.environ))
    deadline = time.monotonic() + 60
    while not (tmp_path / "on").exists():
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    started.wait(60)
    assert docker("ps", "--all", "--quiet", "--filter", "name=mmgemma-").stdout == ""
