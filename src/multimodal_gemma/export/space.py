"""A Space of the Hugging Face Hub: one app.py that a person can read and edit, and what it needs pinned beside it."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from multimodal_gemma import files
from multimodal_gemma.export import card

FOLDER = "space"
GRADIO = "6.31.0"  # what the page was tested with; exporting needs no gradio
_PACKAGES = ("pillow", "torch", "transformers")
_APP = Path(__file__).with_name("space_app.py")


def write(output: Path, *, name: str, published: str, licence: str) -> None:
    """Write app.py, requirements.txt and README.md.

    Args:
        output: the folder of the Space.
        name: the model's, for the title.
        published: `hf://ORG/NAME` that the model goes to; otherwise the Space needs MODEL or model/ beside app.py.
        licence: for the Hub, e.g. "gemma".
    """
    from huggingface_hub import SpaceCardData

    hub = published.removeprefix("hf://") if published.startswith("hf://") else ""
    python = ".".join(platform.python_version_tuple()[:2])
    front = SpaceCardData(
        title=name, sdk="gradio", sdk_version=GRADIO, app_file="app.py", python_version=python, license=licence,
        models=[hub] if hub else None,
    ).to_yaml()  # fmt: skip
    # What is installed here, without a local version such as 2.13.0+cpu.
    pins = {package: importlib.metadata.version(package).partition("+")[0] for package in _PACKAGES}
    lines = sorted(f"{package}=={version}\n" for package, version in {**pins, "gradio": GRADIO}.items())
    files.write_text(output / "app.py", _APP.read_text(encoding="utf-8").replace('"ORG/NAME"', f'"{hub or "model"}"'))
    files.write_text(output / "requirements.txt", "".join(lines))
    files.write_text(output / "README.md", f"---\n{front}\n---\n\n{card.render('space', name, hub)}")
