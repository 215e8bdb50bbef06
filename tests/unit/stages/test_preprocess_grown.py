"""Data that grows, and attempts that were cut short: what was made is found again, and the end has the same bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multimodal_gemma import cli, config, files, locks, manifest
from multimodal_gemma.config import Config
from multimodal_gemma.data import conversation_blocks, image_blocks
from multimodal_gemma.data.images import ImageChunk, ImageOutcome
from multimodal_gemma.data.processed import ProcessedDataset
from multimodal_gemma.data.tokenize import TokenizeChunk
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import download, preprocess
from tests.unit.data import making

NAMES = [f"{number:012d}.jpg" for number in range(1, 201)]
BEFORE, ADDED = 180, 20


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_blocks, "A_BLOCK", 8)
    monkeypatch.setattr(conversation_blocks, "A_BLOCK", 16)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return making.base_models(tmp_path_factory.mktemp("models") / "models")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(making.image_bytes((number, 90, 255 - number)))
    return folder


@pytest.fixture
def source(pictures: Path, tmp_path: Path) -> Callable[[list[str]], Config]:
    """Publishes conversations about some of the pictures and returns the configuration that reads them."""

    def publish(names: list[str]) -> Config:
        path = tmp_path / "talk.json"
        path.write_text(json.dumps([making.conversation(name, ("What is it?", f"It is {name}.")) for name in names]))
        places = [f"data.conversations={path}", f"data.images={pictures}", "data.shard_bytes=20000"]
        return config.compose("sample", [*places, "data.validation_fraction=0.1"])

    return publish


class Work:
    """Counts what is really decoded and tokenized; can end the process, as SIGKILL would, at a given image."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.images = self.conversations = 0
        self.dies_at: int | None = None
        decode, tokenize = ImageChunk.__call__, TokenizeChunk.__call__

        def counted_images(chunk: ImageChunk, items: list[tuple[str, bytes]]) -> list[ImageOutcome]:
            if self.dies_at is not None and self.images + len(items) > self.dies_at:
                raise SystemExit(137)
            self.images += len(items)
            return decode(chunk, items)

        def counted_conversations(chunk: TokenizeChunk, items: list[object]) -> object:
            self.conversations += len(items)
            return tokenize(chunk, items)  # type: ignore[arg-type]

        patch.setattr(ImageChunk, "__call__", counted_images)
        patch.setattr(TokenizeChunk, "__call__", counted_conversations)

    def taken(self) -> tuple[int, int]:
        """Return images and conversations since the last call."""
        found = self.images, self.conversations
        self.images = self.conversations = 0
        return found


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


def same_files(one: Path, other: Path) -> bool:
    """Tell whether two datasets have the same files; what the page and the history hold is no part of a dataset."""
    manifest.verify(one)
    return manifest.verify(one).files == manifest.verify(other).files and _names(one) == _names(other)


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_of_data_that_grew_only_what_is_new_is_made(
    source: Callable[[list[str]], Config], models: Path, tmp_path: Path, work: Work
) -> None:
    before = source(NAMES[:BEFORE])
    raw = download.run(before, "dataset", tmp_path / "raw").digest
    first = preprocess.run(before, tmp_path / "raw", models, None, tmp_path / "out")
    assert work.taken() == (BEFORE, BEFORE)
    grown = source(NAMES)
    assert download.run(grown, "dataset", tmp_path / "raw").digest != raw
    again = preprocess.run(grown, tmp_path / "raw", models, None, tmp_path / "out")
    images, conversations = work.taken()
    assert ADDED <= images <= ADDED + 4 * 8  # what is new, and the block that the new images joined
    assert ADDED <= conversations <= ADDED + 4 * 16
    assert (again.numbers["images"], again.digest == first.digest) == (len(NAMES), False)
    fresh = preprocess.run(grown, tmp_path / "raw", models, None, tmp_path / "fresh")
    assert work.taken() == (len(NAMES), len(NAMES))
    assert again.digest == fresh.digest
    assert same_files(tmp_path / "out", tmp_path / "fresh")
    assert again.facts["extends"] == first.digest
    assert "extends" not in fresh.facts
    history = files.read_json(tmp_path / "out" / "history.json", "history")
    assert history["made"] == {"images": images, "conversations": conversations}
    assert history["reused"]["images"] == len(NAMES) - images
    assert preprocess.run(grown, tmp_path / "raw", models, None, tmp_path / "out").cached


def test_blocks_of_another_folder_serve_as_well(
    source: Callable[[list[str]], Config], models: Path, tmp_path: Path, work: Work
) -> None:
    """A pipeline gives every run new folders; the command takes the former one by --base."""
    before = source(NAMES[:BEFORE])
    download.run(before, "dataset", tmp_path / "raw")
    first = preprocess.run(before, tmp_path / "raw", models, None, tmp_path / "first")
    grown = source(NAMES)
    download.run(grown, "dataset", tmp_path / "raw")
    work.taken()
    folders = [str(tmp_path / name) for name in ("raw", "out", "first")]
    settings = [f"data.conversations={tmp_path / 'talk.json'}", "data.validation_fraction=0.1"]
    code = cli.main(["preprocess", folders[0], str(models), folders[1], f"--base={folders[2]}", *settings])
    assert code == 0
    assert work.taken()[0] < BEFORE / 2
    shutil.rmtree(tmp_path / "first")
    dataset = ProcessedDataset(tmp_path / "out")
    assert sorted(dataset.file_names) == NAMES
    fresh = preprocess.run(grown, tmp_path / "raw", models, None, tmp_path / "fresh")
    assert dataset.manifest.digest == fresh.digest
    assert files.read_json(tmp_path / "out" / "history.json", "history")["extends"] == first.digest
    with pytest.raises(InputError, match="does not exist; a finished processed-dataset is needed"):
        preprocess.run(grown, tmp_path / "raw", models, None, tmp_path / "other", tmp_path / "first")


def test_of_data_that_shrank_nothing_stays_behind(
    source: Callable[[list[str]], Config], models: Path, tmp_path: Path, work: Work
) -> None:
    download.run(source(NAMES), "dataset", tmp_path / "all")
    preprocess.run(source(NAMES), tmp_path / "all", models, None, tmp_path / "out")
    fewer = source([*NAMES[:60], *NAMES[70:]])
    download.run(fewer, "dataset", tmp_path / "fewer")
    preprocess.run(fewer, tmp_path / "fewer", models, None, tmp_path / "out")
    preprocess.run(fewer, tmp_path / "fewer", models, None, tmp_path / "fresh")
    assert same_files(tmp_path / "out", tmp_path / "fresh")


def test_an_attempt_that_was_killed_continues_with_its_finished_blocks(
    source: Callable[[list[str]], Config], models: Path, tmp_path: Path, work: Work
) -> None:
    settings = source(NAMES)
    download.run(settings, "dataset", tmp_path / "raw")
    undisturbed = preprocess.run(settings, tmp_path / "raw", models, None, tmp_path / "undisturbed")
    work.taken()
    work.dies_at = 120
    with pytest.raises(SystemExit):
        preprocess.run(settings, tmp_path / "raw", models, None, tmp_path / "out")
    work.dies_at = None
    done, _ = work.taken()
    assert not (tmp_path / "out" / manifest.NAME).exists()
    assert preprocess.run(settings, tmp_path / "raw", models, None, tmp_path / "out").digest == undisturbed.digest
    rest, _ = work.taken()
    assert done > 90
    assert rest <= len(NAMES) - done + 4 * 8 + 16  # one block was half made, and one chunk was on its way
    assert same_files(tmp_path / "out", tmp_path / "undisturbed")


def test_what_an_attempt_left_half_done_is_removed(
    source: Callable[[list[str]], Config], models: Path, tmp_path: Path, work: Work
) -> None:
    settings = source(NAMES)
    download.run(settings, "dataset", tmp_path / "raw")
    made = preprocess.run(settings, tmp_path / "raw", models, None, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "undisturbed")
    (tmp_path / "out" / manifest.NAME).unlink()
    for name in ("images/data-00001.arrow", "train/.data-0a.arrow.x.tmp", "records/images-0a.parquet", ".x.tmp"):
        (tmp_path / "out" / name).write_bytes(b"half")
    again = preprocess.run(settings, tmp_path / "raw", models, None, tmp_path / "out")
    assert again.digest == made.digest
    assert same_files(tmp_path / "out", tmp_path / "undisturbed")


def test_other_text_settings_leave_the_images_alone(
    source: Callable[[list[str]], Config], models: Path, tmp_path: Path, work: Work
) -> None:
    settings = source(NAMES)
    download.run(settings, "dataset", tmp_path / "raw")
    preprocess.run(settings, tmp_path / "raw", models, None, tmp_path / "out")
    work.taken()
    settings.data.max_text_tokens = 99
    preprocess.run(settings, tmp_path / "raw", models, None, tmp_path / "out")
    assert work.taken() == (0, len(NAMES))
    settings.data.max_image_pixels -= 1
    preprocess.run(settings, tmp_path / "raw", models, None, tmp_path / "out")
    assert work.taken() == (len(NAMES), 0)


def test_a_block_that_was_edited_by_hand_is_made_again(
    source: Callable[[list[str]], Config], models: Path, tmp_path: Path, work: Work
) -> None:
    settings = source(NAMES[:BEFORE])
    download.run(settings, "dataset", tmp_path / "raw")
    preprocess.run(settings, tmp_path / "raw", models, None, tmp_path / "out")
    grown = source(NAMES)
    download.run(grown, "dataset", tmp_path / "raw")
    shard = sorted((tmp_path / "out" / "images").glob("*.arrow"))[0]
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    preprocess.run(grown, tmp_path / "raw", models, None, tmp_path / "out")
    preprocess.run(grown, tmp_path / "raw", models, None, tmp_path / "fresh")
    assert same_files(tmp_path / "out", tmp_path / "fresh")


def test_two_runs_into_one_folder_are_refused(
    source: Callable[[list[str]], Config], models: Path, tmp_path: Path
) -> None:
    settings = source(NAMES[:20])
    download.run(settings, "dataset", tmp_path / "raw")
    out = tmp_path / "out"
    with locks.only_writer(out, "preprocess"), pytest.raises(InputError, match="another process is writing to .*out"):
        preprocess.run(settings, tmp_path / "raw", models, None, out)
    assert not preprocess.run(settings, tmp_path / "raw", models, None, out).cached


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, which 200 images of 9,408 bytes do not fit into."""
    mount = shutil.which("mount")
    folder = tmp_path / "small"
    folder.mkdir()
    asked = [str(mount), "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(asked, check=False, capture_output=True, timeout=300).returncode:
        pytest.skip("a small file system can only be mounted by the root user of a machine")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=300)


def test_a_disk_that_fills_up_is_a_sentence_and_whole_blocks_are_kept(
    source: Callable[[list[str]], Config], models: Path, tmp_path: Path, work: Work, small_disk: Path
) -> None:
    settings = source(NAMES)
    download.run(settings, "dataset", tmp_path / "raw")
    with pytest.raises(InputError, match="the disk is full. Free some space and run again; what is finished is kept"):
        preprocess.run(settings, tmp_path / "raw", models, None, small_disk / "out")
    assert not (small_disk / "out" / manifest.NAME).exists()
    assert not list(small_disk.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True, timeout=300)
    work.taken()
    again = preprocess.run(settings, tmp_path / "raw", models, None, small_disk / "out")
    assert 0 < work.taken()[0] < len(NAMES)
    assert again.digest == preprocess.run(settings, tmp_path / "raw", models, None, tmp_path / "out").digest
