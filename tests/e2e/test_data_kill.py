"""Machines die at any moment: a stage that is killed and started again ends with the bytes of an undisturbed one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from multimodal_gemma.data.sources.web import LOOPBACK_VARIABLE
from tests.unit.data import making
from tests.unit.data.serving import Server, serve

IMAGES, KILLS = 300, 20

# A process that imports everything once, and forks children that run the stage; it kills each one somewhere on its way.
KILLER = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import minio, pyarrow.parquet, requests, transformers
from multimodal_gemma import config, manifest
from multimodal_gemma.data import downloads, pixels, report, tokens
from multimodal_gemma.model import processor
from multimodal_gemma.stages import download, preprocess

stage, base, overrides, kills = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
settings = config.compose("sample", overrides)
pixels.A_SLICE = tokens.A_SLICE = 8  # so that a kill falls between slices, too

def run(output):
    if stage == "download":
        download.run(settings, "dataset", output)
    else:
        preprocess.run(settings, base / "raw", base / "models", None, output)

def child(output):
    pid = os.fork()
    if not pid:
        try:
            run(output)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return pid

start = time.monotonic()
_, status = os.waitpid(child(base / "undisturbed"), 0)
assert status == 0, status
took = time.monotonic() - start
wanted = manifest.verify(base / "undisturbed").digest
output, hits, left, digests = base / "killed", 0, [], set()
while hits < kills:
    pid = child(output)
    time.sleep(random.uniform(0, took))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    hits += os.WIFSIGNALED(status)
    assert os.WIFSIGNALED(status) or status == 0, status
    left.append(sum(1 for _ in output.rglob("*")))
    if (output / manifest.NAME).is_file() and not os.WIFSIGNALED(status) or random.random() < 0.1:
        _, status = os.waitpid(child(output), 0)
        assert status == 0, status
        digests.add(manifest.verify(output).digest)
        shutil.rmtree(output)
_, status = os.waitpid(child(output), 0)
assert status == 0, status
digests.add(manifest.verify(output).digest)
names = sorted(path.relative_to(output).as_posix() for path in output.rglob("*"))
same = sorted(path.relative_to(base / "undisturbed").as_posix() for path in (base / "undisturbed").rglob("*"))
print(json.dumps({"wanted": wanted, "found": sorted(digests), "kills": hits, "seconds": took, "left": left,
                  "same_names": names == same}))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    numbers = np.random.default_rng(0)
    with serve() as running:
        names = [f"{number:012d}.jpg" for number in range(1, IMAGES + 1)]
        for name in names:
            coarse = numbers.integers(0, 255, (12, 16, 3), np.uint8)
            picture = Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)
            stream = io.BytesIO()
            picture.save(stream, "JPEG", quality=90)
            running.files[f"/images/{name}"] = stream.getvalue()
        said = [making.conversation(name) for name in names]
        running.files["/talk.json"] = json.dumps(said).encode()
        running.latency = 0.02
        yield running


def killed(stage: str, base: Path, overrides: list[str]) -> dict[str, Any]:
    base.mkdir(exist_ok=True)
    environment = {**os.environ, LOOPBACK_VARIABLE: "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLER, stage, str(base), json.dumps(overrides), str(KILLS)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def settings(server: Server) -> list[str]:
    places = [f"data.conversations={server.url}/talk.json", f"data.images={server.url}/images"]
    return [*places, "data.shard_bytes=3200000", "data.workers=1", "data.validation_fraction=0.1"]


def test_download_killed_at_random_points_ends_the_same(server: Server, tmp_path: Path) -> None:
    result = killed("download", tmp_path, settings(server))
    assert result["found"] == [result["wanted"]]
    assert result["kills"] == KILLS
    assert result["same_names"]


def test_preprocess_killed_at_random_points_ends_the_same(server: Server, tmp_path: Path) -> None:
    making.base_models(tmp_path / "models")
    images = {path.removeprefix("/images/"): body for path, body in server.files.items() if path.endswith(".jpg")}
    few = dict(sorted(images.items())[:80])
    making.raw_dataset(tmp_path / "raw", json.loads(server.files["/talk.json"])[:80], few)
    result = killed("preprocess", tmp_path, settings(server))
    assert result["found"] == [result["wanted"]]
    assert result["kills"] == KILLS
    assert result["same_names"]
