"""How large, how quick to load and how quick to answer is each format of an export? One process per format.

    python benchmarks/serving.py [EXPORT] [--bases FOLDER] [--json]

Needs torch, transformers and Pillow; peft for the adapter, torchao for int8. What cannot be measured is said. The
baseline is what a script does that loads the model in float32 for every question.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT = "Describe the image concisely."
ROWS = {
    "naive": "float32, loaded for each question",
    "float32": "model/ in float32",
    "model": "model/ as it is",
    "int8": "int8/",
    "adapter": "adapter/ on its base models",
}


def main() -> int:
    """Measure every format in a process of its own, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", nargs="?", type=Path, help="default: the export of ./runs/latest")
    parser.add_argument("--bases", type=Path, help="folder with vision/ and language/, for the adapter")
    parser.add_argument("--tokens", type=int, default=32, help="length of an answer (default: 32)")
    parser.add_argument("--repeats", type=int, default=5, help="the quickest of so many is taken (default: 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: every core")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=list(ROWS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.export or latest()
    if not (folder / "model" / "config.json").is_file():
        print(f"{folder} is no export: it has no model/config.json.", file=sys.stderr)
        return 2
    if arguments.one:
        print(json.dumps(measure(arguments.one, folder, arguments)))
        return 0
    rows, left_out = [], {}
    for name in ROWS:
        if reason := obstacle(name, folder, arguments.bases):
            left_out[name] = reason
            continue
        command = [sys.executable, __file__, str(folder), "--one", name, "--threads", str(arguments.threads)]
        command += ["--tokens", str(arguments.tokens), "--repeats", str(arguments.repeats)]
        command += ["--bases", str(arguments.bases)] if arguments.bases else []
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        if done.returncode:
            left_out[name] = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            continue
        rows.append({"format": name, **json.loads(done.stdout.splitlines()[-1])})
    naive = next((row["question_s"] for row in rows if row["format"] == "naive"), None)
    for row in rows:
        row["times_naive"] = naive / row["question_s"] if naive else None
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads} threads"
    said = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "tokens": arguments.tokens, "rows": rows}
    print(json.dumps({**said, "left_out": left_out}, indent=1) if arguments.json else table(said, left_out))
    return 0


def latest() -> Path:
    """Return the export of the latest run, as its summary names it."""
    summary = Path("runs/latest/summary.json")
    stated = json.loads(summary.read_text()).get("export") if summary.is_file() else None
    return Path(stated or "runs/latest/export")


def obstacle(name: str, folder: Path, bases: Path | None) -> str:
    """Return why a format cannot be measured here; "" if it can."""
    if name in ("int8", "adapter") and not (folder / name).is_dir():
        return f"the export has no {name}/ (export.formats)"
    needed = {"int8": "torchao", "adapter": "peft"}.get(name)
    if needed and importlib.util.find_spec(needed) is None:
        return f"{needed} is not installed"
    return "give its base models with --bases" if name == "adapter" and bases is None else ""


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Load one format and let it answer.

    Returns:
        `megabytes` on disk, `load_s`, `first_token_s`, `tokens_per_s` after the first, `question_s` for a whole answer
        and `peak_mb` of memory.
    """
    import torch
    from transformers import AutoProcessor

    torch.set_num_threads(arguments.threads)
    place = folder / ("int8" if name == "int8" else "model")
    processor = AutoProcessor.from_pretrained(folder / "model")
    inputs = asked(processor)
    load(name, folder, arguments.bases)  # what is imported on the way is no part of loading
    loads = []
    for _ in range(min(arguments.repeats, 3)):
        begun = time.perf_counter()
        model = load(name, folder, arguments.bases)
        loads.append(time.perf_counter() - begun)
    load_s = min(loads)  # the quickest: what other processes take is not the format's
    inputs = inputs.to(dtype=model.dtype)
    answer(model, inputs, 2)
    first = min(answer(model, inputs, 1) for _ in range(arguments.repeats))
    whole = min(answer(model, inputs, arguments.tokens) for _ in range(arguments.repeats))
    sizes = (
        [place] if name != "adapter" else [folder / "adapter", arguments.bases / "vision", arguments.bases / "language"]
    )
    return {
        "megabytes": sum(path.stat().st_size for root in sizes for path in root.glob("*.safetensors")) / 1e6,
        "load_s": load_s,
        "first_token_s": first,
        "tokens_per_s": (arguments.tokens - 1) / (whole - first),
        "question_s": whole + (load_s if name == "naive" else 0),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def load(name: str, folder: Path, bases: Path | None) -> Any:
    """Load a format by stock libraries."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

    if name != "adapter":
        dtype = torch.float32 if name in ("naive", "float32") else "auto"
        return AutoModelForImageTextToText.from_pretrained(
            folder / ("int8" if name == "int8" else "model"), dtype=dtype
        ).eval()
    from peft import PeftModel
    from safetensors.torch import load_file

    assert bases is not None
    config = AutoConfig.from_pretrained(folder / "model")
    llava = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    vision = AutoModel.from_pretrained(bases / "vision", dtype=torch.float32)
    language = AutoModelForCausalLM.from_pretrained(bases / "language", dtype=torch.float32)
    llava.model.vision_tower.load_state_dict(getattr(vision, "vision_model", vision).state_dict(), strict=False)
    llava.model.language_model.load_state_dict(language.model.state_dict())
    llava.lm_head.load_state_dict(language.lm_head.state_dict())
    llava.model.multi_modal_projector.load_state_dict(load_file(folder / "adapter" / "projector.safetensors"))
    return PeftModel.from_pretrained(llava, folder / "adapter").eval()


def asked(processor: Any) -> Any:
    """Return the inputs of one question about a drawn picture."""
    from PIL import Image

    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    picture = Image.effect_mandelbrot((480, 320), (-2, -1, 1, 1), 50).convert("RGB")
    return processor(images=[picture], text=[prompt], add_special_tokens=False, return_tensors="pt")


def answer(model: Any, inputs: Any, tokens: int) -> float:
    """Return the seconds of an answer of exactly so many tokens."""
    import torch

    begun = time.perf_counter()
    with torch.inference_mode():
        model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return time.perf_counter() - begun


def table(said: dict[str, Any], left_out: dict[str, str]) -> str:
    """Return what was measured as a table for docs."""
    lines = [
        f"{said['date']}, {said['machine']}, answers of {said['tokens']} tokens:",
        "",
        "| format | MB | load, s | first token, ms | tokens/s | question, s | times naive | peak memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in said["rows"]:
        lines.append(
            f"| {ROWS[row['format']]} | {row['megabytes']:.1f} | {row['load_s']:.2f} "
            f"| {row['first_token_s'] * 1e3:.0f} "
            f"| {row['tokens_per_s']:.0f} | {row['question_s']:.2f} | {row['times_naive']:.1f} | {row['peak_mb']:.0f} |"
        )
    lines += ["", *(f"Not measured: {ROWS[name]}: {reason}." for name, reason in left_out.items())]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    sys.exit(main())
