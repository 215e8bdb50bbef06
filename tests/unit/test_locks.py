"""A folder has one writer, for as long as that process lives and no longer."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from multimodal_gemma import locks
from multimodal_gemma.errors import InputError

HOLD = """
import multiprocessing, os, pathlib, sys, time
from multimodal_gemma import locks

def work():
    print(os.getpid(), flush=True)
    time.sleep(60)

with locks.only_writer(pathlib.Path(sys.argv[1]), "train"):
    multiprocessing.get_context("fork").Process(target=work).start()
    time.sleep(60)
"""


def test_another_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        worker = int(other.stdout.readline())
        try:
            with (
                pytest.raises(InputError, match=f"train: another process is writing to {folder}. Wait until it ends"),
                locks.only_writer(folder, "train"),
            ):
                pass
            other.kill()
            other.wait(timeout=60)
            os.kill(worker, 0)  # a worker that outlives its parent, as one may after SIGKILL
            with locks.only_writer(folder, "train"):
                (folder / "file").touch()
        finally:
            other.kill()
            os.kill(worker, signal.SIGKILL)
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_the_folder_is_free_after_the_block_however_it_ends(tmp_path: Path) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    for _ in range(2):  # the second time would fail if the first had kept its hold
        with pytest.raises(KeyboardInterrupt), locks.only_writer(tmp_path, "train"):
            raise KeyboardInterrupt
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_folder_that_stays_empty_is_not_left_behind_unless_it_was_there(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name in ("old", "new"):
        with locks.only_writer(tmp_path / name, "train"):
            assert (tmp_path / name).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_one_that_is_refused_leaves_the_folder_to_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    with locks.only_writer(folder, "train"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "exists", lambda _: False)  # as one sees it that comes a moment before it is made
            with pytest.raises(InputError, match="another process"), locks.only_writer(folder, "train"):
                pass
        assert folder.is_dir()


def test_a_file_in_the_way_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"), locks.only_writer(tmp_path / "file", "train"):
        pass
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_file_system_without_locks_does_not_hinder_the_work_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(fcntl, "flock", refuses)
    monkeypatch.setattr(logging.getLogger("multimodal_gemma"), "propagate", True)
    with locks.only_writer(tmp_path / "out", "train"):
        (tmp_path / "out" / "file").touch()
    assert (tmp_path / "out" / "file").exists()
    assert "without locks (not supported)" in caplog.text
