"""A Space of the Hugging Face Hub: one app.py that a person can read and edit, and what it needs pinned beside it."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from multimodal_gemma import files

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
    hub = published.removeprefix("hf://") if published.startswith("hf://") else ""
    files.write_text(output / "app.py", _APP.read_text(encoding="utf-8").replace('"ORG/NAME"', f'"{hub or "model"}"'))
    files.write_text(output / "requirements.txt", "".join(f"{line}\n" for line in requirements()))
    files.write_text(output / "README.md", _readme(name, hub, licence))


def requirements() -> list[str]:
    """Return what the page needs, pinned to what is installed here."""
    pins = {name: importlib.metadata.version(name).partition("+")[0] for name in _PACKAGES}
    return sorted(f"{name}=={version}" for name, version in {**pins, "gradio": GRADIO}.items())


def _readme(name: str, hub: str, licence: str) -> str:
    lines = ["---", f"title: {name}", "sdk: gradio", f"sdk_version: {GRADIO}", "app_file: app.py"]
    lines += [f"python_version: '{'.'.join(platform.python_version_tuple()[:2])}'", f"license: {licence}"]
    lines += ["models:", f"- {hub}"] if hub else []
    whence = (
        f"It shows `{hub}`; the variable `MODEL` (`ORG/NAME@REVISION`) names another model or pins a revision."
        if hub
        else "Copy the export's `model/` beside `app.py`, or set the variable `MODEL` to `ORG/NAME@REVISION`."
    )
    return "\n".join([*lines, "---", "", f"# {name}", "", f"A chat about pictures. {whence}", ""])
