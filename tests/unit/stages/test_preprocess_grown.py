"""Data that grows, and attempts that were cut short: what was made is found again, and the end has the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multimodal_gemma import config, files, locks, manifest
from multimodal_gemma.config import Config
from multimodal_gemma.data import pixels, prepare, tokens
from multimodal_gemma.data.processed import ProcessedDataset
from multimodal_gemma.data.sources.web import LOOPBACK_VARIABLE
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import preprocess
from multimodal_gemma.stages.summary import Summary
from tests.unit.data import making
from tests.unit.data.serving import serve

NAMES = [f"{number:012d}.jpg" for number in range(1, 201)]
BEFORE, ADDED = 180, 20


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "A_SLICE", 8)
    monkeypatch.setattr(tokens, "A_SLICE", 16)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return making.base_models(tmp_path_factory.mktemp("models") / "models")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Publishes conversations about the first so many pictures as a raw dataset."""
    folder = tmp_path_factory.mktemp("raw")

    def publish(count: int) -> Path:
        if not (folder / str(count)).exists():
            said = [making.conversation(name, ("What is it?", f"It is {name}.")) for name in NAMES[:count]]
            making.raw_dataset(folder / str(count), said, making.pictures(NAMES[:count]))
        return folder / str(count)

    return publish


def settings(*overrides: str) -> Config:
    return config.compose("sample", ["data.validation_fraction=0.1", "data.workers=1", *overrides])


def work(summary: Summary) -> tuple[float, float]:
    """Return how many pictures and conversations were made, and how many were found."""
    return summary.numbers["made_items"], summary.numbers["found_items"]


def same_files(one: Path, other: Path) -> bool:
    """Tell whether two datasets have the same files; what the page holds is no part of a dataset."""
    return manifest.verify(one).files == manifest.verify(other).files and _names(one) == _names(other)


def _killed(*_: object) -> None:
    raise SystemExit(137)


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_of_data_that_grew_or_shrank_only_what_is_new_is_made(
    raw: Callable[[int], Path], models: Path, tmp_path: Path
) -> None:
    first = preprocess.run(settings(), raw(BEFORE), models, None, tmp_path / "out")
    assert work(first) == (2 * BEFORE, 0)
    again = preprocess.run(settings(), raw(BEFORE + ADDED), models, None, tmp_path / "out")
    made, found = work(again)
    assert 2 * ADDED <= made <= 2 * ADDED + 8 + 16  # what is new, and the slices that it joined
    assert made + found == 2 * (BEFORE + ADDED)
    fresh = preprocess.run(settings(), raw(BEFORE + ADDED), models, None, tmp_path / "fresh")
    assert again.digest == fresh.digest != first.digest
    assert same_files(tmp_path / "out", tmp_path / "fresh")
    assert preprocess.run(settings(), raw(BEFORE + ADDED), models, None, tmp_path / "out").cached
    back = preprocess.run(settings(), raw(BEFORE), models, None, tmp_path / "out")
    assert back.digest == first.digest
    assert work(back)[0] <= 8 + 16


def test_an_attempt_that_was_cut_short_continues_with_its_slices(
    raw: Callable[[int], Path], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = preprocess.run(settings(), raw(BEFORE), models, None, tmp_path / "undisturbed")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(prepare.Preparation, "_write_conversations", _killed)
        preprocess.run(settings(), raw(BEFORE), models, None, tmp_path / "out")
    assert not (tmp_path / "out" / manifest.NAME).exists()
    for name in ("pixels/x.arrow", "pixels/.y.arrow.z.tmp", "tokens/0.arrow", ".x.tmp"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"half")
    again = preprocess.run(settings(), raw(BEFORE), models, None, tmp_path / "out")
    assert again.digest == undisturbed.digest
    assert work(again) == (BEFORE, BEFORE)
    assert same_files(tmp_path / "out", tmp_path / "undisturbed")


def test_what_does_not_shape_a_slice_leaves_it_alone(raw: Callable[[int], Path], models: Path, tmp_path: Path) -> None:
    def made(*overrides: str) -> tuple[float, float]:
        return work(preprocess.run(settings(*overrides), raw(BEFORE), models, None, tmp_path / "out"))

    assert made() == (2 * BEFORE, 0)
    assert made("data.split_seed=7") == (0, 2 * BEFORE)
    assert made("data.max_text_tokens=99") == (BEFORE, BEFORE)
    assert made("data.max_text_tokens=99", "data.max_image_pixels=1000000") == (BEFORE, BEFORE)


def test_a_slice_that_was_edited_by_hand_is_made_again(
    raw: Callable[[int], Path], models: Path, tmp_path: Path
) -> None:
    preprocess.run(settings(), raw(BEFORE), models, None, tmp_path / "out")
    edited = sorted((tmp_path / "out" / "pixels").glob("*.arrow"))[0]
    content = bytearray(edited.read_bytes())
    content[len(content) // 2] ^= 1
    edited.write_bytes(content)
    made = preprocess.run(settings(), raw(BEFORE + ADDED), models, None, tmp_path / "out")
    assert made.digest == preprocess.run(settings(), raw(BEFORE + ADDED), models, None, tmp_path / "fresh").digest


class DeadlyJob(pixels.PixelJob):
    """A slice with a picture on which the decoder crashes."""

    def _row(self, content: bytes) -> tuple[object, ...]:
        if content == making.pictures(NAMES)[NAMES[4]]:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super()._row(content)


def test_a_decoder_that_crashes_names_the_picture(
    raw: Callable[[int], Path],
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(pixels, "PixelJob", DeadlyJob)
    made = preprocess.run(settings("data.max_missing_fraction=0.1"), raw(40), models, None, tmp_path / "out")
    assert f"({NAMES[4]}) ends the process that decodes it" in caplog.text
    lost = files.read_jsonl(tmp_path / "out" / "dropped.jsonl", "dropped")
    assert {(row["what"], row["image"], row["kind"]) for row in lost} == {
        ("image", NAMES[4], "crashes-decoder"),
        ("conversation", NAMES[4], "image-crashes-decoder"),
    }
    assert (made.numbers["lost_images"], made.numbers["images"]) == (1, 39)
    assert NAMES[4] not in ProcessedDataset(tmp_path / "out").file_names


def test_the_next_pod_takes_what_the_last_one_made_from_the_store(
    raw: Callable[[int], Path], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its pictures, on a disk that went with it; the successor makes and fetches nothing twice."""
    monkeypatch.setenv(LOOPBACK_VARIABLE, "1")
    kept = settings("data.work_uri=s3://bucket/run")
    with serve() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(prepare.Preparation, "_write_conversations", _killed)
            preprocess.run(kept, raw(40), models, None, tmp_path / "lost")
        stored = {path for path in server.files if path.startswith("/bucket/run/slices/")}
        assert len(stored) == 2 * 5  # 5 slices of 8 pictures, each with its sha256
        server.asked.clear()
        made = preprocess.run(kept, raw(40), models, None, tmp_path / "out")
        assert work(made) == (40, 40)
        fetched = {path: count for (method, path), count in server.asked.items() if method == "GET" and path in stored}
        assert fetched == dict.fromkeys(stored, 1)
        put = [path for method, path in server.asked if method == "PUT"]
        assert len(put) == 2 * 3  # of tokens, 16 conversations each
        server.asked.clear()
        assert work(preprocess.run(kept, raw(40), models, None, tmp_path / "third")) == (0, 80)
        assert not [path for method, path in server.asked if method == "PUT"]
    assert made.digest == preprocess.run(settings(), raw(40), models, None, tmp_path / "alone").digest


def test_two_runs_into_one_folder_are_refused(raw: Callable[[int], Path], models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locks.only_writer(out, "preprocess"), pytest.raises(InputError, match="another process is writing to .*out"):
        preprocess.run(settings(), raw(40), models, None, out)
    assert not preprocess.run(settings(), raw(40), models, None, out).cached


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, which 200 images of 9,408 bytes do not fit into."""
    mount = shutil.which("mount")
    folder = tmp_path / "small"
    folder.mkdir()
    asked = [str(mount), "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(asked, check=False, capture_output=True, timeout=60).returncode:
        pytest.skip("a small file system can only be mounted by the root user of a machine")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=60)


def test_a_disk_that_fills_up_is_a_sentence_and_whole_slices_are_kept(
    raw: Callable[[int], Path], models: Path, tmp_path: Path, small_disk: Path
) -> None:
    with pytest.raises(InputError, match="the disk is full. Free some space and run again; what is finished is kept"):
        preprocess.run(settings(), raw(200), models, None, small_disk / "out")
    assert not (small_disk / "out" / manifest.NAME).exists()
    assert not list(small_disk.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True, timeout=60)
    again = preprocess.run(settings(), raw(200), models, None, small_disk / "out")
    assert work(again)[1] > 0
    assert again.digest == preprocess.run(settings(), raw(200), models, None, tmp_path / "out").digest
