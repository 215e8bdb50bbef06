"""Does this export still answer as the model that was trained? Run it beside the export: `python verify.py [FOLDER]`.

It needs torch, transformers, safetensors and Pillow, and nothing of the project that made the export: what it proves
is that the folder stands alone. It checks the sha256 of every file, loads model/ as stock transformers does, and
compares logits and greedy text with those of the trained model in references/.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

TOLERANCE = 1e-3  # of the logits' standard deviation: float32 sums in another order differ by less


def check_files(folder: Path) -> str:
    """Return what is wrong with the files that SHA256SUMS lists; "" if nothing."""
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        return "it has no SHA256SUMS, so it is no finished export"
    stated = {line[66:]: line[:64] for line in sums.read_text(encoding="utf-8").splitlines()}
    for name, digest in stated.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                return f"{name} differs from its sha256"
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    extra = sorted(there - set(stated) - {"SHA256SUMS", "manifest.json"})
    return f"{extra[0]} is not in SHA256SUMS" if extra else ""


def answers(folder: Path, references: Path, dtype: str | None = None) -> list[dict[str, Any]]:
    """Put the recorded prompts to a stock model folder, in float32.

    Args:
        folder: loadable by AutoModelForImageTextToText and AutoProcessor.
        references: folder with picture.png and prompts.json.
        dtype: round the weights to this precision first.

    Returns:
        For each prompt its logits at the last position (vocabulary,) and the greedy continuation's token ids and text.
    """
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    rounded = getattr(torch, dtype) if dtype else "auto"
    quantised = "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    wanted = torch.float32 if quantised else rounded  # int8 weights stay what they are
    model, report = AutoModelForImageTextToText.from_pretrained(folder, dtype=wanted, output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise SystemExit(f"the weights do not fit config.json: {report}")
    model = (model if quantised else model.float()).eval()
    with Image.open(references / "picture.png") as opened:
        picture = opened.convert("RGB")
    found = []
    for asked in json.loads((references / "prompts.json").read_text(encoding="utf-8")):
        content = ([{"type": "image"}] if asked["picture"] else []) + [{"type": "text", "text": asked["text"]}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        bos = processor.tokenizer.bos_token
        inputs = processor(
            images=[picture] if asked["picture"] else None,
            text=[prompt],
            add_special_tokens=bos is None or not prompt.startswith(bos),
            return_tensors="pt",
        )
        with torch.inference_mode():
            logits = model(**inputs).logits[0, -1].float()
            said = model.generate(**inputs, max_new_tokens=asked["max_new_tokens"], do_sample=False)
        tokens = said[0, inputs["input_ids"].shape[1] :].tolist()
        found.append({"logits": logits, "tokens": tokens, "text": processor.decode(tokens, skip_special_tokens=True)})
    return found


def difference(found: Any, known: Any) -> float:
    """Return the largest difference between two (vocabulary,) logits, in standard deviations of the known ones."""
    return float((found - known).abs().max() / known.std())


def compare(folder: Path, part: str = "model") -> tuple[str, dict[str, Any]]:
    """Return what differs from the references ("" if nothing), and the figures behind it.

    Args:
        folder: the export.
        part: its stock folder that is asked; references/ has its answers and logits.
    """
    from safetensors.torch import load_file

    references = folder / "references"
    if not (references / f"{part}.json").is_file():
        return f"it holds no references/{part}.json to compare with", {}
    expected = json.loads((references / f"{part}.json").read_text(encoding="utf-8"))
    logits = load_file(references / f"{part}.safetensors")
    found = answers(folder / part, references)
    worst = 0.0
    for number, (own, wanted) in enumerate(zip(found, expected, strict=True)):
        known = logits[str(number)]
        if own["logits"].shape != known.shape:
            return f"prompt {number + 1}: it has {len(own['logits'])} logits, not {len(known)}", {}
        worst = max(worst, difference(own["logits"], known))
        if not worst <= TOLERANCE:  # NaN is no small difference
            return f"prompt {number + 1}: its logits differ by {worst:.2g} standard deviations", {}
        if own["tokens"] != wanted["tokens"]:
            return f"prompt {number + 1}: it answers {own['text']!r}, not {wanted['text']!r}", {}
    return "", {"prompts": len(found), "logit_difference": worst}


def main(folder: Path) -> int:
    """Print the result as JSON; return 0 if the export is what it was."""
    wrong = check_files(folder)
    figures: dict[str, Any] = {}
    if not wrong:
        wrong, figures = compare(folder)
    if not wrong and (folder / "int8").is_dir():
        wrong = compare(folder, "int8")[0]
        wrong = f"int8: {wrong}" if wrong else ""
    loaded = sorted(name for name in sys.modules if name.partition(".")[0] == "multimodal_gemma")
    if not wrong and loaded:
        wrong = f"loading it imported {loaded[0]}"
    print(json.dumps({"wrong": wrong, **figures}))  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent))
