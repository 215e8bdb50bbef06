"""Small raw datasets, base models and benchmarks, written as the stages before preprocess leave them."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from multimodal_gemma import files, manifest
from multimodal_gemma.data import conversations as talk
from multimodal_gemma.data import formats
from multimodal_gemma.data.shards import write_image_shards, write_names


def image_bytes(colour: tuple[int, int, int] = (200, 40, 40), size: tuple[int, int] = (40, 30)) -> bytes:
    """Return a JPEG of one colour, whose bytes differ from those of any other colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "JPEG", comment=repr(colour).encode())
    return stream.getvalue()


def pictures(names: list[str]) -> dict[str, bytes]:
    """Return a picture of its own for each name."""
    return {name: image_bytes((number, 0, 0)) for number, name in enumerate(names)}


def conversation(
    name: str | None, *pairs: tuple[str, str], identity: str | None = None, tag: str = "<image>\n"
) -> dict[str, Any]:
    """Return a conversation in the published format; the tag stands before the first question."""
    said = []
    for number, (question, answer) in enumerate(pairs or (("What is it?", "It is red."),)):
        said.append({"from": "human", "value": (tag if name and not number else "") + question})
        said.append({"from": "gpt", "value": answer})
    value: dict[str, Any] = {"id": identity or name or "text", "conversations": said}
    return value if name is None else {**value, "image": name}


def raw_dataset(
    folder: Path, conversations: list[dict[str, Any]], images: dict[str, bytes], missing: dict[str, str] | None = None
) -> Path:
    """Write a raw-dataset artifact of published conversations; two names may have the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.json")
    path.write_text(json.dumps(conversations), encoding="utf-8")
    talk.write(folder / talk.FILE, published(path))
    write_image_shards(folder, sorted(images.items()))
    write_names(folder, {name: hashlib.sha256(content).hexdigest() for name, content in images.items()})
    rows = [{"file_name": name, "reason": reason} for name, reason in sorted((missing or {}).items())]
    files.write_jsonl(folder / "missing.jsonl", rows)
    manifest.write(folder, "raw-dataset", config={})
    return folder


def published(path: Path) -> list[talk.Conversation]:
    """Read the right conversations of a published file."""
    rows = formats.read(path, path.name)
    return [row.read for row in rows if isinstance(row.read, talk.Conversation)]


def benchmarks(folder: Path, images: list[str], vqa_ids: tuple[int, ...] = ()) -> Path:
    """Write a benchmarks artifact that asks POPE questions about `images` and VQA questions about `vqa_ids`."""
    (folder / "pope").mkdir(parents=True)
    rows = [
        {"question_id": number, "image": name, "text": "Is there a car in the image?", "label": "no"}
        for number, name in enumerate(images, start=1)
    ]
    for setting in ("random", "popular", "adversarial"):
        files.write_jsonl(folder / "pope" / f"coco_pope_{setting}.json", rows)
    if vqa_ids:
        (folder / "vqa").mkdir()
        questions = [{"question_id": number, "image_id": number, "question": "What is it?"} for number in vqa_ids]
        answers = [{"answer_id": number, "answer": "cat"} for number in range(1, 11)]
        annotations = [
            {
                "question_id": number,
                "image_id": number,
                "answers": answers,
                "answer_type": "other",
                "question_type": "what",
            }
            for number in vqa_ids
        ]
        files.write_json(folder / "vqa" / "questions.json", {"data_subtype": "val2014", "questions": questions})
        files.write_json(folder / "vqa" / "annotations.json", {"annotations": annotations})
    manifest.write(folder, "benchmarks", config={})
    return folder


def base_models(folder: Path, kind: str = "clip", image_size: int = 56) -> Path:
    """Write a base-models artifact without weights: a small encoder's geometry and the sample's tokenizer."""
    from transformers import CLIPImageProcessor, SiglipImageProcessor

    from multimodal_gemma.sample.tokenizer import VOCABULARY_SIZE, write_tokenizer

    vision, language = folder / "vision", folder / "language"
    language.mkdir(parents=True)
    write_tokenizer(language)
    files.write_json(language / "config.json", {"model_type": "gemma3_text", "vocab_size": VOCABULARY_SIZE})
    if kind == "clip":
        crop = {"height": image_size, "width": image_size}
        CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=crop).save_pretrained(vision)
    else:
        SiglipImageProcessor(size={"height": image_size, "width": image_size}).save_pretrained(vision)
    shape = {"image_size": image_size, "patch_size": 14, "hidden_size": 32, "num_attention_heads": 4}
    files.write_json(vision / "config.json", {"model_type": f"{kind}_vision_model", **shape})
    manifest.write(folder, "base-models", config={})
    return folder
