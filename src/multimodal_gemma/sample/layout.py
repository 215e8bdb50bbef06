"""The sample as a folder in the public layout: what a download of LLaVA-Instruct, POPE and VQA v2 looks like on disk.

llava_instruct_sample.json            conversations, one a training scene
images/000000000001.jpg …             training scenes; held-out ones from 000000900001 on
pope/coco_pope_{setting}.json         questions on held-out scenes, one JSON object a line
vqa/questions.json, annotations.json  questions on held-out scenes
instances/objects.json                what is in them
"""

import json
import random
from pathlib import Path

from multimodal_gemma.sample.benchmarks import POPE_SETTINGS, pope_lines, vqa_files
from multimodal_gemma.sample.conversations import conversation
from multimodal_gemma.sample.scenes import KINDS, generate_distinct

FIRST_TRAIN_ID = 1
FIRST_HELD_OUT_ID = 900_001


def write_sample(folder: Path, *, train_scenes: int, held_out_scenes: int, seed: int) -> None:
    """Write the sample; the same arguments give the same bytes.

    Args:
        folder: where to write; made if it is missing.
        train_scenes: scenes with conversations, at most 900,000.
        held_out_scenes: scenes with benchmark questions; no arrangement of theirs is ever trained on, with any seed.
        seed: names the scenes, the questions and their wording.

    Raises:
        ValueError: more training scenes than there are ids below the held-out ones.
    """
    if train_scenes > FIRST_HELD_OUT_ID - FIRST_TRAIN_ID:
        raise ValueError(f"sample: {train_scenes:,} training scenes, at most {FIRST_HELD_OUT_ID - FIRST_TRAIN_ID:,}")
    from multimodal_gemma.sample.drawing import to_jpeg  # Pillow, only where something is drawn

    training = dict(enumerate(generate_distinct(seed, train_scenes, "train"), start=FIRST_TRAIN_ID))
    held_out = dict(enumerate(generate_distinct(seed, held_out_scenes, "held_out"), start=FIRST_HELD_OUT_ID))
    for name in ("images", "pope", "vqa", "instances"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for image_id, scene in (training | held_out).items():
        (folder / "images" / file_name(image_id)).write_bytes(to_jpeg(scene))

    rng = random.Random(f"conversations/{seed}")
    entries = [
        {"id": f"{image_id:012d}", "image": file_name(image_id), "conversations": conversation(scene, rng)}
        for image_id, scene in training.items()
    ]
    _write_text(folder / "llava_instruct_sample.json", json.dumps(entries, indent=1))

    by_name = {file_name(image_id): scene for image_id, scene in held_out.items()}
    for setting in POPE_SETTINGS:
        rng = random.Random(f"pope/{seed}")  # the same present kinds in each setting
        lines = pope_lines(by_name, list(training.values()), setting, rng)
        _write_text(folder / "pope" / f"coco_pope_{setting}.json", "".join(json.dumps(line) + "\n" for line in lines))
    questions, annotations = vqa_files(held_out, random.Random(f"vqa/{seed}"))
    _write_text(folder / "vqa" / "questions.json", json.dumps(questions))
    _write_text(folder / "vqa" / "annotations.json", json.dumps(annotations))
    seen = {name: {"objects": scene.kinds, "captions": []} for name, scene in by_name.items()}
    _write_text(folder / "instances" / "objects.json", json.dumps({"categories": KINDS, "images": seen}))


def file_name(image_id: int) -> str:
    """Return the twelve-digit name by which COCO calls an image."""
    return f"{image_id:012d}.jpg"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
