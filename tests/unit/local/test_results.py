"""Every run has a folder of its own, and the latest can be found."""

import pytest

from multimodal_gemma.errors import InputError
from multimodal_gemma.local import results


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
    with pytest.raises(InputError, match="cannot be written"):
        results.choose(tmp_path / "file" / "runs", "sample")
