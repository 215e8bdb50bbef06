"""Take the pictures of the report and of MLflow anew: `.venv/bin/python docs/pictures/take.py [RUNS]`.

Needs Chromium, and runs that `make run` has made: the report is the latest one's, the version in MLflow the champion.
Those of the pipelines UI (kfp-*.png) come from a cluster, by hand.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--hide-scrollbars")
COLOURS = 64  # of the palette: screens have few, and a picture stays below 100 KB
PATIENCE = 180  # seconds that MLflow may take to start
DRAWN = 60_000  # milliseconds of the page's own clock: MLflow's pages draw themselves


def shoot(address: str, name: str, width: int, height: int, *, cut: int | None = None) -> None:
    """Write a picture of a page's upper part, so many pixels wide and high; of these only the left `cut` ones."""
    browser = next((found for kind in ("chromium", "google-chrome") if (found := shutil.which(kind))), None)
    if browser is None:
        sys.exit("pictures: neither chromium nor google-chrome is installed. Install one.")
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw.png"
        place = [f"--user-data-dir={scratch}/profile", f"--screenshot={raw}", f"--window-size={width},{height}"]
        place += [f"--virtual-time-budget={DRAWN}"] if address.startswith("http") else []
        subprocess.run([browser, *QUIET, *place, address], check=True, capture_output=True)
        with Image.open(raw) as picture:
            left = picture.convert("RGB").crop((0, 0, cut or width, height))
            left.quantize(COLOURS, dither=Image.Dither.NONE).save(HERE / name, optimize=True)


@contextlib.contextmanager
def mlflow(store: Path) -> Iterator[str]:
    """Serve the local runs' MLflow inside the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{store}"]
    server = subprocess.Popen(
        [*command, "--workers", "1", "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10).close()
                break
            time.sleep(1)
        else:
            sys.exit(f"pictures: MLflow did not start within {PATIENCE} s.")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def champion(address: str, model: str) -> str:
    """Return the version that is champion."""
    asked = f"{address}/api/2.0/mlflow/registered-models/alias?name={model}&alias=champion"
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return str(json.load(answer)["model_version"]["version"])


def main() -> None:
    """Take the upper part of the report, and of the champion's page in MLflow."""
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs").resolve()
    report = runs / "latest" / "report.html"
    if not report.is_file():
        sys.exit(f"pictures: {report} does not exist. Run make run first.")
    shoot(report.resolve().as_uri(), "report.png", 900, 430)
    model = json.loads((runs / "latest" / "summary.json").read_text())["registry"]["name"]
    with mlflow(runs / "mlflow" / "mlflow.db") as address:
        version = champion(address, model)
        shoot(f"{address}/#/models/{model}/versions/{version}", "mlflow-version.png", 1280, 540, cut=945)


if __name__ == "__main__":
    main()
