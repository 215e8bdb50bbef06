"""Take the picture of the report anew, from the latest local run: `.venv/bin/python docs/pictures/take.py [RUNS]`.

Needs Chromium and a run that `make run` has made. Those of the pipelines UI (kfp-*.png) come from a cluster, by hand.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--hide-scrollbars")
COLOURS = 64  # of the palette: screens have few, and a picture stays below 100 KB


def shoot(address: str, name: str, width: int, height: int) -> None:
    """Write a picture of a page's upper part, so many pixels wide and high."""
    browser = next((found for kind in ("chromium", "google-chrome") if (found := shutil.which(kind))), None)
    if browser is None:
        sys.exit("pictures: neither chromium nor google-chrome is installed. Install one.")
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw.png"
        place = [f"--user-data-dir={scratch}/profile", f"--screenshot={raw}", f"--window-size={width},{height}"]
        subprocess.run([browser, *QUIET, *place, address], check=True, capture_output=True)
        with Image.open(raw) as picture:
            picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(HERE / name, optimize=True)


def main() -> None:
    """Take the upper part of the report."""
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs").resolve()
    report = runs / "latest" / "report.html"
    if not report.is_file():
        sys.exit(f"pictures: {report} does not exist. Run make run first.")
    shoot(report.resolve().as_uri(), "report.png", 900, 430)


if __name__ == "__main__":
    main()
