"""What the passes over images and over conversations have in common when a processed dataset is made.

Images come first, because a conversation whose image turns out to be unusable is left out; conversations then
stream through the tokenizer into their split. Pixels and tokens pass through; only names and figures are held in
memory.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gemma import files
from multimodal_gemma.data.conversations import Conversation
from multimodal_gemma.data.image_names import image_id
from multimodal_gemma.data.parallel import available_cores
from multimodal_gemma.data.processed_writer import writing
from multimodal_gemma.data.split import split_of, text_key

if TYPE_CHECKING:
    from transformers import LlavaProcessor

    from multimodal_gemma.config.schema import DataConfig


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


def split(conversation: Conversation, data: DataConfig) -> str:
    """Return the split that a conversation belongs to."""
    key = text_key(conversation.id) if conversation.image is None else image_id(conversation.image)
    return split_of(key, fraction=data.validation_fraction, seed=data.split_seed)


def workers_for(data: DataConfig, items: int, many: int) -> int:
    """Return how many processes shall work on `items`; below `many` starting them takes longer than the work."""
    if data.workers is not None:
        return data.workers
    return available_cores() if items >= many else 1
