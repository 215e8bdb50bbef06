"""A folder with a manifest is finished, and the manifest knows when it no longer tells the truth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from multimodal_gemma import manifest
from multimodal_gemma.errors import InputError


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "rows.bin").write_bytes(b"rows")
    (folder / "note.txt").write_text("note")
    manifest.write(folder, "raw-dataset", config={"limit": None}, inputs={"source": "abc"}, counts={"rows": 4})
    return folder


def test_every_file_is_named_with_its_sha256(artifact: Path) -> None:
    entries = manifest.read(artifact).files
    assert set(entries) == {"train/rows.bin", "note.txt"}
    assert entries["train/rows.bin"]["bytes"] == 4


def test_the_same_content_has_the_same_digest_anywhere(artifact: Path, tmp_path: Path) -> None:
    twin = tmp_path / "elsewhere" / "twin"
    (twin / "train").mkdir(parents=True)
    (twin / "train" / "rows.bin").write_bytes(b"rows")
    (twin / "note.txt").write_text("note")
    written = manifest.write(twin, "raw-dataset", config={"limit": None}, inputs={"source": "abc"}, counts={"rows": 4})
    assert written.digest == manifest.read(artifact).digest


def test_a_changed_input_is_another_artifact(artifact: Path) -> None:
    same = manifest.finished(artifact, "raw-dataset", config={"limit": None}, inputs={"source": "abc"})
    assert same is not None
    assert manifest.finished(artifact, "raw-dataset", config={"limit": None}, inputs={"source": "abd"}) is None
    assert manifest.finished(artifact, "raw-dataset", config={"limit": 5}, inputs={"source": "abc"}) is None


def test_an_unfinished_folder_is_not_finished(tmp_path: Path) -> None:
    assert manifest.finished(tmp_path, "model", config={}) is None
    with pytest.raises(InputError, match=r"not a finished model\. Run the stage"):
        manifest.read(tmp_path, "model")


@pytest.mark.parametrize(("name", "content"), [("note.txt", b"nota"), ("train/rows.bin", b"more rows")])
def test_a_file_edited_by_hand_is_found(artifact: Path, name: str, content: bytes) -> None:
    manifest.verify(artifact)
    (artifact / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} differs from its sha256"):
        manifest.verify(artifact)


def test_a_missing_file_is_found(artifact: Path) -> None:
    (artifact / "note.txt").unlink()
    with pytest.raises(InputError, match="note.txt is missing"):
        manifest.verify(artifact)


def test_a_newer_schema_is_refused(artifact: Path) -> None:
    path = artifact / manifest.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 2}))
    with pytest.raises(InputError, match="newer than the 1 known here. Update"):
        manifest.read(artifact)


def test_another_kind_is_refused(artifact: Path) -> None:
    with pytest.raises(InputError, match="is a raw-dataset, not a model"):
        manifest.read(artifact, "model")


def test_a_foreign_manifest_is_refused(artifact: Path) -> None:
    (artifact / manifest.NAME).write_text('{"schema_version": 1, "kind": "model"}')
    with pytest.raises(InputError, match="lacks fields"):
        manifest.read(artifact)
