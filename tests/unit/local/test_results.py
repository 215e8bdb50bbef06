"""A run's folder belongs to one run at a time, and the latest run can be found."""

import os
import subprocess
import sys

import pytest

from multimodal_gemma.errors import InputError
from multimodal_gemma.local import results


def test_a_folder_in_use_is_refused_with_its_user(tmp_path):
    with (
        results.occupied(tmp_path / "run"),
        pytest.raises(InputError, match=rf"in use by another run \(process {os.getpid()}"),
        results.occupied(tmp_path / "run"),
    ):
        pass


def test_a_folder_is_free_after_its_run_was_killed(tmp_path):
    code = (
        "import os, sys, pathlib\nfrom multimodal_gemma.local import results\n"
        "with results.occupied(pathlib.Path(sys.argv[1])):\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], timeout=300).returncode == -9
    with results.occupied(tmp_path / "run"):
        pass


def test_two_runs_of_the_same_second_get_different_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(results.time, "strftime", lambda form: "20260101-000000")
    first = results.choose(tmp_path, "sample")
    assert first.name == "20260101-000000-sample"
    assert results.choose(tmp_path, "sample").name == "20260101-000000-sample-2"


def test_latest_moves_from_run_to_run(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        results.point_latest(tmp_path, tmp_path / name)
        assert (tmp_path / "latest").resolve() == tmp_path / name


def test_a_place_that_cannot_be_written_is_said_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"), results.occupied(tmp_path / "file" / "run"):
        pass
