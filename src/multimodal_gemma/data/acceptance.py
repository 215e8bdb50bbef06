"""When a dataset is refused rather than trained on: empty splits, too many lost images."""

from __future__ import annotations

from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_gemma.data.conversations import Conversation
from multimodal_gemma.data.prepare import Pictures
from multimodal_gemma.data.split import VALIDATION
from multimodal_gemma.data.statistics import Statistics
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import DataConfig


def check_plan(conversations: list[Conversation], pictures: Pictures, data: DataConfig) -> None:
    """Find out before the work that a split will be empty.

    Args:
        conversations: what is left after the comparison with the benchmarks.
        pictures: which of theirs are there.
        data: the split's keys.

    Raises:
        InputError: nothing is left, or a split gets nothing.
    """
    if not conversations:
        raise InputError(
            "preprocess: zero usable conversations: a benchmark asks about every image. "
            "Give other conversations, or keep these with data.contamination=allow."
        )
    there = [one for one in conversations if one.image not in pictures.lost]
    if not there:
        return  # too many are lost, which is said with the list of them
    held_out = sum(pictures.side(conversation, data) == VALIDATION for conversation in there)
    if data.validation_fraction > 0 and not held_out:
        raise _no_validation(len({conversation.image for conversation in conversations}), data)
    if held_out == len(there):
        raise _no_training(data)


def check_losses(pictures: Pictures, named: int, data: DataConfig, figures: Statistics, record: Path) -> None:
    """Compare the images that cannot be used with data.max_missing_fraction.

    Args:
        pictures: what became of the images.
        named: distinct images that conversations name.
        data: the allowed fraction.
        figures: what was dropped so far; written to `record` if it is too much, so that it can be looked up.
        record: the dropped.jsonl.

    Raises:
        InputError: more are lost than allowed; the sentence has the first one and where the list is.
    """
    lost = len(pictures.lost)
    if not lost or lost / named <= data.max_missing_fraction:
        return
    figures.write_dropped(record)
    first = min(pictures.lost)
    raise InputError(
        f"preprocess: {lost:,} of {named:,} images cannot be used ({lost / named:.2%}, allowed "
        f"{data.max_missing_fraction:.2%}). First: {first} ({pictures.lost[first][1]}). The list: {record}. "
        f"Allow more with data.max_missing_fraction={_rounded_up(lost / named)}."
    )


def check_splits(figures: Statistics, data: DataConfig) -> None:
    """Check that every split has something in it after all that was dropped.

    Raises:
        InputError: nothing is usable, or a split is empty.
    """
    train, validation = figures.splits["train"], figures.splits["val"]
    if not train.turns and not validation.turns:
        reasons = sorted({item.kind for item in figures.dropped if item.what == "conversation"})
        raise InputError(
            f"preprocess: zero usable conversations; all were dropped ({', '.join(reasons)}). "
            "dropped.jsonl in the output folder has the reason of each one."
        )
    if not train.turns:
        raise _no_training(data)
    if data.validation_fraction > 0 and not validation.turns:
        raise _no_validation(len(train.images), data, figures.near_copies)


def _no_validation(images: int, data: DataConfig, copies: int = 0) -> InputError:
    together = f" ({copies:,} are near copies of others, which stand on one side)" if copies else ""
    return InputError(
        "preprocess: the validation split has zero images: "
        f"data.validation_fraction={data.validation_fraction:g} draws none of {images:,}{together}. "
        "Give a larger fraction, another data.split_seed, or 0 to train without validation."
    )


def _no_training(data: DataConfig) -> InputError:
    return InputError(
        "preprocess: zero usable conversations in the training split: "
        f"data.validation_fraction={data.validation_fraction:g} holds every image out. "
        "Give a smaller fraction or more data."
    )


def _rounded_up(fraction: float) -> str:
    """Return the fraction with two significant digits, never below itself."""
    return f"{Context(prec=2, rounding=ROUND_CEILING).create_decimal(Decimal(fraction)):f}"
