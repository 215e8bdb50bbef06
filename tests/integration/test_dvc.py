"""The stages under DVC, where it is installed (beside this interpreter, on PATH, or as MMGEMMA_DVC names it)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from multimodal_gemma.data.processed import ProcessedDataset

ROOT = Path(__file__).parents[2]
BESIDE = Path(sys.executable).parent
DVC = os.environ.get("MMGEMMA_DVC") or shutil.which("dvc", path=f"{BESIDE}{os.pathsep}{os.environ.get('PATH', '')}")


@pytest.fixture
def project(shared: Path, tmp_path: Path) -> Path:
    """A DVC project of this repository's stages on the reference photographs."""
    if DVC is None:
        pytest.skip("dvc is not installed")
    folder, given = tmp_path / "project", shared / "coco-sample"
    folder.mkdir()
    shutil.copy(ROOT / "dvc.yaml", folder)
    (folder / "src").symlink_to(ROOT / "src")
    conversations = json.loads((given / "llava_instruct_sample.json").read_text())
    (tmp_path / "talk.json").write_text(json.dumps(conversations[:60]))
    places = {"conversations": tmp_path / "talk.json", "images": given / "train2017"}
    overrides = [f"data.{key}={place}" for key, place in places.items()]
    overrides += [f"benchmarks.pope={given / 'pope'}", f"benchmarks.vqa={given / 'vqa'}"]
    overrides += [f"benchmarks.images={given / 'train2017'}", "data.contamination=drop"]
    (folder / "params.yaml").write_text(yaml.safe_dump({"preset": "sample", "overrides": " ".join(overrides)}))
    dvc(folder, "init", "--no-scm", "--quiet")
    return folder


def dvc(folder: Path, *arguments: str) -> str:
    path = f"{BESIDE}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(DVC), *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def test_the_stages_run_on_a_folder_and_only_where_something_changed(project: Path, tmp_path: Path) -> None:
    dvc(project, "repro", "preprocess")
    first = ProcessedDataset(project / "dvc" / "processed").manifest
    assert first.counts["train"] > 0
    assert "Data and pipelines are up to date" in dvc(project, "repro", "preprocess")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["overrides"] += " data.limit=20"
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    said = dvc(project, "repro", "preprocess")
    assert "Running stage 'preprocess'" in said
    again = ProcessedDataset(project / "dvc" / "processed").manifest
    assert again.counts["train"] + again.counts["val"] == 20
    assert again.digest != first.digest
