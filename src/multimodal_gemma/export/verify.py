"""What a trained model answers, recorded beside its export, and asked again of the export in a clean process.

A conversion that loses a tensor's name still loads, and still talks. So the trained model's logits and words are
recorded before anything is converted, and nothing is published that does not repeat them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files, logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.export import verifier

if TYPE_CHECKING:
    from PIL.Image import Image

REFERENCES, SCRIPT = "references", "verify.py"
ROUNDING = 0.3  # of the logits' standard deviation: what eight bits may cost
_PROMPTS = (
    {"picture": True, "text": "Describe the image concisely.", "max_new_tokens": 24},
    {"picture": True, "text": "Is there a ball in the image?", "max_new_tokens": 8},
    {"picture": False, "text": "What color is the sky?", "max_new_tokens": 8},
)


def record(model: Path, output: Path, dtype: str) -> None:
    """Write references/ and verify.py into an export.

    Args:
        model: the trained stock folder.
        output: the export.
        dtype: precision of the export; the trained weights are rounded to it, and everything is computed in float32.
    """
    folder = output / REFERENCES
    with files.atomic_path(folder / "picture.png") as temporary:
        _picture().save(temporary, format="PNG")
    files.write_json(folder / "prompts.json", _PROMPTS)
    _keep(folder, "model", model, dtype)
    with files.atomic_path(output / SCRIPT) as temporary:
        shutil.copyfile(verifier.__file__, temporary)


def record_int8(output: Path) -> dict[str, Any]:
    """Record in references/ what an export's int8/ answers.

    Returns:
        How far that is from the trained model: `logit_difference` (standard deviations of the trained model's logits),
        `same_answers` and `prompts`.

    Raises:
        InputError: it differs by more than rounding can.
    """
    from safetensors.torch import load_file

    references = output / REFERENCES
    found = _keep(references, "int8", output / "int8")
    trained, logits = files.read_json(references / "model.json", "export"), load_file(references / "model.safetensors")
    furthest = max(verifier.difference(row["logits"], logits[str(number)]) for number, row in enumerate(found))
    if not furthest <= ROUNDING:  # NaN is no small difference
        raise InputError(
            f"export: the logits of int8/ differ from the trained model's by {furthest:.2g} standard deviations, more "
            f"than the {ROUNDING:g} that rounding may cost. Leave int8 out of export.formats."
        )
    same = sum(row["tokens"] == wanted["tokens"] for row, wanted in zip(found, trained, strict=True))
    return {"logit_difference": furthest, "same_answers": same, "prompts": len(found)}


def _keep(references: Path, part: str, model: Path, dtype: str | None = None) -> list[dict[str, Any]]:
    """Write what a model answers to the prompts of references/ beside them, for a part of the export; return it."""
    from safetensors.torch import save_file

    from multimodal_gemma.model.folders import quiet

    with quiet():
        found = verifier.answers(model, references, dtype)
    files.write_json(references / f"{part}.json", [{"tokens": row["tokens"], "text": row["text"]} for row in found])
    with files.atomic_path(references / f"{part}.safetensors") as temporary:
        save_file({str(number): row["logits"].contiguous() for number, row in enumerate(found)}, temporary)
    return found


def run(folder: Path) -> dict[str, Any]:
    """Verify an export in a process of its own that stock libraries alone run in.

    The script that runs is this project's own, not the one in the folder, which may come from anywhere.

    Returns:
        How many `prompts` were asked, and the `logit_difference`: the largest, in standard deviations of the logits.

    Raises:
        InputError: a file is missing or differs, the model does not load, or it answers otherwise than the trained one.
    """
    if not folder.is_dir():
        raise InputError(f"export: {folder} does not exist. Give the folder that `mmgemma export` wrote.")
    done = subprocess.run(
        [sys.executable, "-I", verifier.__file__, str(folder.resolve())],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode not in (0, 1) or not lines:
        reason = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise InputError(f"export: {folder} does not load by stock transformers ({reason.rstrip('.')}). Export again.")
    found: dict[str, Any] = json.loads(lines[-1])
    if found["wrong"]:
        raise InputError(f"export: {folder} is not what was exported: {found['wrong']}. Export the model again.")
    logs.get("export").info(
        f"{folder} verified by stock transformers: every sha256, {found['prompts']} prompts, logits within "
        f"{found['logit_difference']:.1g} standard deviations"
    )
    return found


def _picture() -> Image:
    """Draw a picture with things to name: the same bytes everywhere."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (160, 120), (214, 226, 240))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 80, 159, 119), fill=(96, 140, 80))
    draw.ellipse((20, 50, 60, 90), fill=(200, 40, 40))
    draw.rectangle((90, 40, 135, 95), fill=(40, 70, 190))
    draw.polygon([(70, 100), (82, 72), (94, 100)], fill=(240, 200, 40))
    return image
