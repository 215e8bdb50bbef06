"""A Space of the Hugging Face Hub: the page of `mmgemma demo` as a folder that runs there.

A Space installs requirements.txt before it has the other files, and this package is on no registry. So what the page
needs of it lies beside app.py as plain source, found by following its imports, and everything else is pinned.
"""

from __future__ import annotations

import ast
import importlib.metadata
import platform
from pathlib import Path

import multimodal_gemma
from multimodal_gemma import files

FOLDER = "space"
GRADIO = "6.31.0"  # what the page was tested with; exporting needs no gradio
_ENTRY = ("multimodal_gemma.config.schema", "multimodal_gemma.serving.demo", "multimodal_gemma.serving.assistant")
_PACKAGES = (
    "accelerate", "jinja2", "huggingface-hub", "numpy", "pillow", "requests", "rich", "safetensors", "torch", "tqdm",
    "transformers",
)  # fmt: skip
_APP = '''"""A chat about pictures. The variable MODEL names another model: a folder, or ORG/NAME@REVISION."""

import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))
os.environ.setdefault("MMGEMMA_CACHE", str(Path.home() / ".cache" / "models"))

from multimodal_gemma import logs
from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.serving import demo

bundled = FOLDER / "model"
model = os.environ.get("MODEL") or (str(bundled) if bundled.is_dir() else "{model}")
host, port = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"), int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
logs.setup()
try:
    demo.run(Config(), model, host=host, port=port)
except InputError as error:
    sys.exit(str(error))
'''


def write(output: Path, *, name: str, published: str, licence: str) -> None:
    """Write app.py, requirements.txt, README.md and the source that the page needs.

    Args:
        output: the folder of the Space.
        name: the model's, for the title.
        published: `hf://ORG/NAME` that the model goes to; otherwise the Space needs MODEL or model/ beside app.py.
        licence: for the Hub, e.g. "gemma".
    """
    hub = published.removeprefix("hf://") if published.startswith("hf://") else ""
    files.write_text(output / "app.py", _APP.replace("{model}", hub or "model"))
    files.write_text(output / "requirements.txt", "".join(f"{line}\n" for line in requirements()))
    files.write_text(output / "README.md", _readme(name, hub, licence))
    package = Path(multimodal_gemma.__file__).parent
    for path in sorted(sources(package)):
        files.write_text(output / package.name / path.relative_to(package), path.read_text(encoding="utf-8"))


def requirements() -> list[str]:
    """Return what the page needs, pinned to what is installed here."""
    pins = {name: importlib.metadata.version(name).partition("+")[0] for name in _PACKAGES}
    return sorted(f"{name}=={version}" for name, version in {**pins, "gradio": GRADIO}.items())


def sources(package: Path) -> set[Path]:
    """Return the files of the package that the page can come to import."""
    found: set[Path] = set()
    waiting = list(_ENTRY)
    while waiting:
        name = waiting.pop()
        path = _file(package, name)
        if path is None or path in found:
            continue
        found.add(path)
        waiting += [name.rpartition(".")[0]] if "." in name else []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _file(package: Path, module: str) -> Path | None:
    """Return the file of a module of this package; None of another one, or of a name that is no module."""
    first, *rest = module.split(".")
    if first != package.name:
        return None
    place = package.joinpath(*rest)
    candidates = (place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


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
