"""The passes that make a processed dataset: processor, images, conversations.

Images come first, because a conversation whose image turns out to be unusable is left out; conversations then
stream through the tokenizer into their split. Pixels and tokens pass through; only names and figures are held in
memory.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gemma import files, progress
from multimodal_gemma.data.conversations import Conversation
from multimodal_gemma.data.decode import Limits
from multimodal_gemma.data.image_names import image_id
from multimodal_gemma.data.images import ImageChunk, ImageOutcome
from multimodal_gemma.data.lookalikes import Lookalikes
from multimodal_gemma.data.parallel import available_cores, ordered_map
from multimodal_gemma.data.processed_writer import TableWriter, conversation_features, image_features, writing
from multimodal_gemma.data.resize import resizer_of
from multimodal_gemma.data.shards import ImageShards
from multimodal_gemma.data.split import TRAIN, VALIDATION, split_of, text_key
from multimodal_gemma.data.statistics import Statistics
from multimodal_gemma.data.statistics_report import THUMBNAILS
from multimodal_gemma.data.tokenize import Outcome, TokenizeChunk, Tokenizer

if TYPE_CHECKING:
    from transformers import LlavaProcessor

    from multimodal_gemma.config.schema import DataConfig

# Starting processes costs seconds; below these counts one process is done sooner.
_MANY_IMAGES, _MANY_CONVERSATIONS = 3_000, 20_000
_IMAGES_A_CHUNK, _CONVERSATIONS_A_CHUNK = 16, 256
_COMPARED = 64  # images compared with the benchmarks' at once


def save_processor(models: Path, folder: Path) -> tuple[LlavaProcessor, dict[str, Any]]:
    """Join the base models' tokenizer and image processor, and save them.

    Args:
        models: a base-models artifact.
        folder: where the processor goes.

    Returns:
        The processor, and the facts by which a later stage recognises it.
    """
    from multimodal_gemma.model.folders import vision_facts
    from multimodal_gemma.model.processor import build_processor, end_of_turn

    processor = build_processor(models / "vision", models / "language")
    with writing(folder):
        processor.save_pretrained(folder)
    vision, tokenizer = vision_facts(models / "vision"), processor.tokenizer
    return processor, {
        "image_tokens": vision.image_tokens,
        "image_size": vision.image_size,
        "image_token_id": int(processor.image_token_id),
        "pad_token_id": int(tokenizer.pad_token_id),
        "eos_token_id": int(tokenizer.eos_token_id),
        "end_of_turn_id": int(tokenizer.convert_tokens_to_ids(end_of_turn(processor))),
        "tokenizer_digest": files.sha256_file(folder / "tokenizer.json"),
        "chat_template_digest": files.digest_of(processor.chat_template),
    }


@dataclasses.dataclass
class Images:
    """What became of the images that conversations name.

    Attributes:
        indices: row of each stored image, by file name.
        lost: (kind, reason) of each image that is not stored, by file name.
        thumbnails: some of the stored ones, uint8 (side, side, 3).
        lookalikes: the benchmark image that shows the same picture, by file name; stored unless they are left out.
    """

    indices: dict[str, int]
    lost: dict[str, tuple[str, str]]
    thumbnails: list[np.ndarray]
    lookalikes: dict[str, str]


def write_images(
    data: DataConfig,
    raw: Path,
    names: list[str],
    processor: LlavaProcessor,
    statistics: Statistics,
    folder: Path,
    benchmarks: Path | None = None,
) -> Images:
    """Decode and resize each named image once and store it; record each that cannot be.

    Args:
        data: limits and workers.
        raw: a raw-dataset artifact.
        names: the images that are wanted, ascending.
        processor: its image processor's geometry is followed.
        statistics: receives every image.
        folder: where the table goes.
        benchmarks: a benchmarks artifact whose images the dataset's must not look like; None if there is none.
    """
    resizer = resizer_of(processor.image_processor)
    shards = ImageShards(raw)
    stored = [name for name in names if name in shards]
    told = {row["file_name"]: str(row["reason"]) for row in files.read_jsonl(raw / "missing.jsonl", "missing images")}
    lost = {name: ("missing", told.get(name, "it is not in the raw dataset")) for name in names if name not in shards}
    images = Images({}, lost, [], {})
    work = ImageChunk(resizer, Limits(data.max_image_bytes, data.max_image_pixels))
    wanted = set(stored)
    items = ((name, content) for name, content in shards.iterate() if name in wanted)
    known = _benchmark_images(benchmarks, work, data)
    outcomes = ordered_map(work, items, workers=_workers(data, len(stored), _MANY_IMAGES), chunk=_IMAGES_A_CHUNK)
    step = -(-len(stored) // THUMBNAILS) or 1
    with TableWriter(folder, image_features()) as table:
        for outcome, lookalike in _compared(progress.track(outcomes, "preprocess", len(stored), "image"), known):
            name = outcome.file_name
            if outcome.kind:
                images.lost[name] = (outcome.kind, outcome.reason)
                continue
            if lookalike:
                images.lookalikes[name] = lookalike
                if data.contamination == "drop":
                    continue
            if table.rows % step == 0:
                images.thumbnails.append(np.frombuffer(outcome.pixels, np.uint8).reshape(resizer.side, resizer.side, 3))
            images.indices[name] = table.rows
            table.add({"image_id": image_id(name), "file_name": name, "pixels": outcome.pixels}, len(outcome.pixels))
            statistics.add_image(outcome)
    for name, (kind, reason) in sorted(images.lost.items()):
        statistics.drop("image", name, name, kind, reason)
    return images


def _benchmark_images(folder: Path | None, work: ImageChunk, data: DataConfig) -> Lookalikes:
    """Return the benchmarks' images in the geometry of the dataset's."""
    shards = ImageShards(folder) if folder is not None else None
    items = shards.iterate() if shards is not None else iter(())
    workers = _workers(data, len(shards) if shards is not None else 0, _MANY_IMAGES)
    outcomes = ordered_map(work, items, workers=workers, chunk=_IMAGES_A_CHUNK)
    return Lookalikes({outcome.file_name: outcome.thumbnail for outcome in outcomes if not outcome.kind})


def _compared(outcomes: Iterator[ImageOutcome], known: Lookalikes) -> Iterator[tuple[ImageOutcome, str]]:
    """Yield each outcome with the benchmark image that shows the same picture, "" for none."""
    while group := list(itertools.islice(outcomes, _COMPARED)):
        usable = [outcome for outcome in group if not outcome.kind]
        found = dict(zip(map(id, usable), known.match([outcome.thumbnail for outcome in usable]), strict=True))
        for outcome in group:
            yield outcome, found.get(id(outcome), "")


def write_conversations(
    data: DataConfig, conversations: list[Conversation], images: Images, statistics: Statistics, output: Path
) -> None:
    """Tokenize each conversation whose image is stored into its split; record each that is left out or cut.

    Args:
        data: split, text limit and workers.
        conversations: in the order in which they shall stand.
        images: what became of their images.
        statistics: receives every conversation.
        output: the dataset's folder; processor/ is there already.
    """
    usable = []
    for conversation in conversations:
        if conversation.image in images.lost:
            kind, reason = images.lost[conversation.image]
            statistics.drop("conversation", conversation.id, conversation.image, f"image-{kind}", reason)
        elif conversation.image is not None and conversation.image not in images.indices:
            reason = f"its image shows the same picture as {images.lookalikes[conversation.image]} of a benchmark"
            statistics.drop("conversation", conversation.id, conversation.image, "contaminated", reason)
        else:
            usable.append(conversation)
    digest = files.digest_of([files.sha256_file(path) for path in sorted((output / "processor").iterdir())])
    work = TokenizeChunk(Tokenizer(output / "processor", digest, data.max_text_tokens))
    workers = _workers(data, len(usable), _MANY_CONVERSATIONS)
    outcomes = ordered_map(work, usable, workers=workers, chunk=_CONVERSATIONS_A_CHUNK)
    features = conversation_features()
    with TableWriter(output / TRAIN, features) as train, TableWriter(output / VALIDATION, features) as validation:
        tables = {TRAIN: train, VALIDATION: validation}
        counted = progress.track(outcomes, "preprocess", len(usable), "conversation")
        for conversation, outcome in zip(usable, counted, strict=True):
            name = split(conversation, data)
            _write(conversation, outcome, images.indices, statistics, name, tables[name])


def split(conversation: Conversation, data: DataConfig) -> str:
    """Return the split that a conversation belongs to."""
    key = text_key(conversation.id) if conversation.image is None else image_id(conversation.image)
    return split_of(key, fraction=data.validation_fraction, seed=data.split_seed)


def _write(
    conversation: Conversation,
    outcome: Outcome,
    indices: dict[str, int],
    statistics: Statistics,
    name: str,
    table: TableWriter,
) -> None:
    image, tokenized = conversation.image, outcome.tokenized
    if tokenized is None:
        statistics.drop("conversation", conversation.id, image or "", outcome.kind, outcome.reason)
        return
    if tokenized.turns < len(conversation.turns):
        reason = f"{len(conversation.turns) - tokenized.turns} of {len(conversation.turns)} turns are cut from its end"
        statistics.drop("turns", conversation.id, image or "", "cut", reason)
    index = -1 if image is None else indices[image]
    row = {
        "id": conversation.id,
        "image_id": "" if image is None else image_id(image),
        "image_index": index,
        "input_ids": tokenized.input_ids,
        "supervised": tokenized.supervised,
    }
    table.add(row, 8 * len(tokenized.input_ids))
    statistics.add_conversation(name, conversation, tokenized, index)


def _workers(data: DataConfig, items: int, many: int) -> int:
    if data.workers is not None:
        return data.workers
    return available_cores() if items >= many else 1
