"""The language model's matrices in eight bits, by torchao, in a folder that stock transformers loads.

Only weights are rounded, each row by a scale of its own; what is computed stays in floating point. Embeddings, head,
encoder and projector are kept as they are: they are a small part of the work of an answer, and the scores hang on them.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multimodal_gemma.evaluation.questions import Row

FOLDER = "int8"
LIMIT = 0.3  # of the logits' standard deviation: what rounding may cost
# Under the names of a loaded model and under those of its file.
_KEPT = ("lm_head", "model.vision_tower", "model.multi_modal_projector", "vision_tower", "multi_modal_projector")


def require() -> None:
    """Check that torchao is there, before anything is computed.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("torchao") is None:
        raise InputError(
            "export: export.formats asks for int8, which torchao makes, and it is not installed. "
            "Install it: pip install 'multimodal-gemma[int8]'."
        )


def write(model: Path, output: Path) -> None:
    """Write a stock model folder whose language model's linear layers are int8.

    Args:
        model: stock folder in the precision that the other weights keep.
        output: the folder that is made.

    """
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForImageTextToText, TorchAoConfig

    from multimodal_gemma.model.folders import quiet

    rounding = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=list(_KEPT))
    with quiet():
        rounded = AutoModelForImageTextToText.from_pretrained(model, dtype="auto", quantization_config=rounding)
        rounded.save_pretrained(output)
    for path in output.glob("*.safetensors"):
        _sort_header(path)
    for path in model.iterdir():  # the processor, the chat template and how to generate
        if path.suffix in (".json", ".jinja", ".model") and not path.name.startswith(("config.", "model.")):
            shutil.copyfile(path, output / path.name)
    for path in output.iterdir():
        path.chmod(0o644)


def record(folder: Path) -> dict[str, Any]:
    """Record beside an export what int8/ answers to the prompts of references/, and how far that is from the model.

    Args:
        folder: the export, with int8/ and references/.

    Returns:
        `logit_difference` (standard deviations of the trained model's logits), `same_answers` and `prompts`.

    Raises:
        InputError: it differs by more than rounding can.
    """
    from safetensors.torch import load_file

    from multimodal_gemma.export import verifier, verify

    references = folder / verify.REFERENCES
    found = verify.keep(references, FOLDER, folder / FOLDER)
    trained = files.read_json(references / "model.json", "export")
    logits = load_file(references / "model.safetensors")
    furthest = max(verifier.difference(row["logits"], logits[str(number)]) for number, row in enumerate(found))
    if not furthest <= LIMIT:  # NaN is no small difference
        raise InputError(
            f"export: the logits of int8/ differ from the trained model's by {furthest:.2g} standard deviations, more "
            f"than the {LIMIT:g} that rounding may cost. Leave int8 out of export.formats."
        )
    same = sum(row["tokens"] == wanted["tokens"] for row, wanted in zip(found, trained, strict=True))
    return {"logit_difference": furthest, "same_answers": same, "prompts": len(found)}


def compare(eight: Sequence[Row], trained: Sequence[Row], *, confidence: float) -> dict[str, dict[str, Any]]:
    """Compare the scores of int8 with the trained model's on the very same questions.

    Args:
        eight: rows of the evaluation of int8.
        trained: rows of the trained model's.
        confidence: of the intervals.

    Returns:
        By benchmark, `pope_accuracy` and `vqa_accuracy`: that of both, their `difference` (int8 less trained) with its
        `interval` clustered by image, and how many `questions` about how many `images` were asked.
    """
    from multimodal_gemma.evaluation import questions

    found = {}
    for benchmark in ("pope", "vqa"):
        if both := questions.pairs(questions.of(eight, benchmark), trained):
            against = questions.difference(both, confidence=confidence)
            found[f"{benchmark}_accuracy"] = {
                "trained": sum(row["score"] for _, row in both) / len(both),
                "int8": sum(row["score"] for row, _ in both) / len(both),
                "difference": against.mean,
                "interval": list(against.interval or ()),
                "questions": len(both),
                "images": against.clusters,
            }
    return found


def _sort_header(path: Path) -> None:
    """Put what a safetensors file says about itself in order: it is written in another one each time."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    said = {"__metadata__": dict(sorted(header.pop("__metadata__").items()))}
    tensors = dict(sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0])))
    text = json.dumps({**said, **tensors}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with files.atomic_path(path) as temporary, path.open("rb") as old, temporary.open("wb") as new:
        old.seek(8 + length)
        new.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(old, new, 1 << 20)
