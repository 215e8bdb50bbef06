"""From a raw dataset to a processed one: the steps that the stage takes one after another.

Pictures come first, because a conversation whose picture turns out to be unusable is left out. Pixels and tokens lie in
slices that worker processes write; here only names, digests, thumbnails and figures are held. Between the steps it is
found out whether the dataset would be refused rather than trained on: an empty split, too many lost images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gemma import files, logs
from multimodal_gemma.data import pixels, processed, tokens
from multimodal_gemma.data.choose import TRAIN, VALIDATION, eldest, split_of, text_key
from multimodal_gemma.data.conversations import Conversation, image_first
from multimodal_gemma.data.pictures import THUMBNAIL_BYTES, Limits, Lookalikes, resizer_of
from multimodal_gemma.data.shards import ImageShards, image_id
from multimodal_gemma.data.slices import Slices
from multimodal_gemma.data.statistics import Statistics
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from transformers import LlavaProcessor

    from multimodal_gemma.config.schema import DataConfig

TOKENS, LOOKS = "tokens", "looks"  # folders of slices, beside processed.PIXELS
_HERE = 20_000  # conversations; starting worker processes for fewer takes longer than the work
_LARGE = 100_000  # pictures from which on it is said what they take on the disk


def save_processor(models: Path, folder: Path, image_fit: str = "stock") -> tuple[LlavaProcessor, dict[str, Any]]:
    """Join the base models' tokenizer and image processor, and save them.

    Args:
        models: a base-models artifact.
        folder: where the processor goes.
        image_fit: data.image_fit.

    Returns:
        The processor, and the facts by which a later stage recognises it.
    """
    from multimodal_gemma.model import processor as stock
    from multimodal_gemma.model.folders import vision_facts

    processor = stock.build_processor(models / "vision", models / "language", image_fit)
    try:
        stock.save_processor(processor, folder)
    except OSError as error:
        raise files.unwritable(folder, error) from error
    vision, tokenizer = vision_facts(models / "vision"), processor.tokenizer
    return processor, {
        "image_tokens": vision.image_tokens,
        "image_size": vision.image_size,
        "image_token_id": int(processor.image_token_id),
        "pad_token_id": int(tokenizer.pad_token_id),
        "eos_token_id": int(tokenizer.eos_token_id),
        "end_of_turn_id": int(tokenizer.convert_tokens_to_ids(stock.end_of_turn(processor))),
        "tokenizer_digest": files.sha256_file(folder / "tokenizer.json"),
        "chat_template_digest": files.digest_of(processor.chat_template),
    }


@dataclasses.dataclass
class Pictures:
    """What became of the pictures that conversations name.

    Attributes:
        digests: sha256 by file name, of all that the raw dataset has.
        lost: (kind, reason) of each that cannot be used, by file name.
        indices: number of each stored picture, by sha256.
        slices: file names of the slices that hold pixels.
        places: (one of its file names, sha256, slice, row) of each stored picture.
        lookalikes: the benchmark's picture that shows the same, by file name; stored unless it is left out for that.
        eldest: the picture whose split its near copies follow, by sha256; see `choose.eldest`.
    """

    digests: dict[str, str]
    lost: dict[str, tuple[str, str]]
    indices: dict[str, int] = dataclasses.field(default_factory=dict)
    slices: list[str] = dataclasses.field(default_factory=list)
    places: list[tuple[str, str, int, int]] = dataclasses.field(default_factory=list)
    lookalikes: dict[str, str] = dataclasses.field(default_factory=dict)
    eldest: dict[str, str] = dataclasses.field(default_factory=dict)

    def index(self, conversation: Conversation) -> int:
        """Return the number of a conversation's picture, -1 for text only."""
        return -1 if conversation.image is None else self.indices[self.digests[conversation.image]]

    def side(self, conversation: Conversation, data: DataConfig) -> str:
        """Return the split that a conversation belongs to."""
        if conversation.image is None:
            return split_of(text_key(conversation), fraction=data.validation_fraction, seed=data.split_seed)
        digest = self.digests[conversation.image]
        return _side(self.eldest.get(digest, digest), data)

    def moved(self, data: DataConfig) -> int:
        """Return how many pictures are on another side than they would be without their near copies."""
        return sum(_side(one, data) != _side(other, data) for one, other in self.eldest.items())


def _side(digest: str, data: DataConfig) -> str:
    return split_of(f"image:{digest}", fraction=data.validation_fraction, seed=data.split_seed)


def named(raw: Path, names: Sequence[str], known: dict[str, str]) -> Pictures:
    """Return which of the pictures that conversations name the raw dataset has.

    Args:
        raw: a raw-dataset artifact.
        names: that conversations give, ascending.
        known: sha256 by name, of the raw dataset.
    """
    told = {row["file_name"]: str(row["reason"]) for row in files.read_jsonl(raw / "missing.jsonl", "missing images")}
    absent = {name: told.get(name, "it is not in the raw dataset") for name in names if name not in known}
    digests = {name: known[name] for name in names if name in known}
    return Pictures(digests, {name: ("missing", reason) for name, reason in absent.items()})


def make_pictures(
    data: DataConfig,
    raw: Path,
    benchmarks: Path | None,
    pictures: Pictures,
    processor: LlavaProcessor,
    slices: Slices,
    statistics: Statistics,
) -> None:
    """Decode and resize each picture once, compare it with the benchmarks' and the others, record each that is lost.

    Args:
        data: limits, workers, and how pixels are kept.
        raw: a raw-dataset artifact.
        benchmarks: a benchmarks artifact whose pictures the dataset's must not show; None if there is none.
        pictures: those that are wanted; receives the rest.
        processor: its image processor's geometry is followed.
        slices: of the dataset's folder.
        statistics: receives every picture.
    """
    limits = Limits(data.max_image_bytes, data.max_image_pixels)
    how = pixels.Picturing(resizer_of(processor.image_processor), limits, data.pixels)
    wanted = set(pictures.digests.values())
    if len(wanted) > _LARGE and data.pixels == "raw":
        size = len(wanted) * how.resizer.side**2 * 3 / 1e9
        logs.get("preprocess").info(
            f"the pixels of {len(wanted):,} pictures take {size:,.0f} GB; data.pixels=jpeg takes about a fifth of it"
        )
    jobs = pixels.plan(raw, wanted, how, processed.PIXELS)
    slices.ensure(processed.PIXELS, jobs, "image")
    benchmarks_names, known = _looks(benchmarks, how, slices)
    names: dict[str, list[str]] = {}
    for name, digest in pictures.digests.items():
        names.setdefault(digest, []).append(name)
    looks = [np.empty((0, THUMBNAIL_BYTES), np.uint8)]
    for number, job in enumerate(jobs):
        thumbnails = pixels.thumbnails_of([slices.folder / job.name])
        same = iter(known.match(thumbnails).tolist())
        kept = []
        for row, told in enumerate(pixels.records_of(slices.folder / job.name)):
            digest = told["sha256"]
            if told["kind"]:
                pictures.lost.update(dict.fromkeys(names[digest], (told["kind"], told["reason"])))
                continue
            if (found := next(same)) >= 0:
                pictures.lookalikes.update(dict.fromkeys(names[digest], benchmarks_names[found]))
            kept.append(found < 0 or data.contamination != "drop")
            if not kept[-1]:
                continue
            pictures.indices[digest] = len(pictures.places)
            pictures.places.append((names[digest][0], digest, number, row))
            statistics.add_image(told["format"], told["mode"], told["width"], told["height"])
        looks.append(thumbnails[np.array(kept, bool)])
        pictures.slices.append(Path(job.name).name)
    groups = Lookalikes(np.concatenate(looks)).groups()
    pictures.eldest = eldest([digest for _, digest, *_ in pictures.places], groups)
    statistics.near_copies = len(pictures.eldest)
    processed.write_images(slices.folder, pictures.places)
    for name, (kind, reason) in sorted(pictures.lost.items()):
        statistics.drop("image", name, name, kind, reason)


def _looks(benchmarks: Path | None, how: pixels.Picturing, slices: Slices) -> tuple[list[str], Lookalikes]:
    """Return names and looks of the benchmarks' pictures, in the geometry of the dataset's."""
    jobs = []
    if benchmarks is not None:
        jobs = pixels.plan(benchmarks, None, dataclasses.replace(how, kept="none"), LOOKS)
    slices.ensure(LOOKS, jobs, "image of a benchmark")
    paths = [slices.folder / job.name for job in jobs]
    names = {digest: name for name, digest in ImageShards(benchmarks).digests()} if benchmarks is not None else {}
    told = [names[row["sha256"]] for path in paths for row in pixels.records_of(path) if not row["kind"]]
    return told, Lookalikes(pixels.thumbnails_of(paths))


def write_conversations(
    data: DataConfig,
    conversations: Sequence[Conversation],
    pictures: Pictures,
    slices: Slices,
    statistics: Statistics,
) -> None:
    """Tokenize each conversation and write it into its split, if its picture is there; record each left out or cut.

    Args:
        data: split, text limit and workers.
        conversations: in the order in which they shall stand.
        pictures: what became of those.
        slices: of the dataset's folder; processor/ is there already.
        statistics: receives every conversation.
    """
    placed = [image_first(one) if data.image_position == "first" else one for one in conversations]
    statistics.moved_images = sum(one is not other for one, other in zip(placed, conversations, strict=True))
    processor = slices.folder / "processor"
    tokenizer = tokens.Tokenizer(processor, tokens.digest_of_processor(processor), data.max_text_tokens)
    jobs = tokens.plan(placed, tokenizer, TOKENS)
    slices.ensure(TOKENS, jobs, "conversation", at_once=_HERE)
    kept: dict[str, list[tuple[int, int, processed.Row]]] = {name: [] for name in processed.SPLITS}
    for number, job in enumerate(jobs):
        for row, (conversation, told) in enumerate(
            zip(job.conversations, tokens.records_of(slices.folder / job.name), strict=True)
        ):
            image, turns = conversation.image or "", len(conversation.turns)
            if left := _left_out(conversation, told, pictures):
                statistics.drop("conversation", conversation.id, image, *left)
                continue
            if cut := turns - told["turns"]:
                statistics.drop("turns", conversation.id, image, "cut", f"{cut} of {turns} turns are cut from its end")
            name, index = pictures.side(conversation, data), pictures.index(conversation)
            length, identity = told["length"], image and image_id(image)
            statistics.add_conversation(name, conversation, length, told["supervised"], told["turns"], index)
            item = processed.Row(conversation.id, identity, index, length, conversation.set)
            kept[name].append((number, row, item))
    for name, rows in kept.items():
        found = tokens.read([slices.folder / job.name for job in jobs], [place[:2] for place in rows])
        processed.write_split(slices.folder / name, [row for _, _, row in rows], found)


def _left_out(conversation: Conversation, told: dict[str, Any], pictures: Pictures) -> tuple[str, str] | None:
    """Return why a conversation is left out, as a word and in words; None if it is not."""
    image = conversation.image
    if image in pictures.lost:
        kind, reason = pictures.lost[image]
        return f"image-{kind}", reason
    if image is not None and pictures.digests[image] not in pictures.indices:
        return "contaminated", f"its image shows the same picture as {pictures.lookalikes[image]} of a benchmark"
    return (told["kind"], told["reason"]) if told["kind"] else None


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
        raise _empty(VALIDATION, len({conversation.image for conversation in conversations}), data)
    if held_out == len(there):
        raise _empty(TRAIN, 0, data)


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
    enough = Context(prec=2, rounding=ROUND_CEILING).create_decimal(Decimal(lost / named))
    raise InputError(
        f"preprocess: {lost:,} of {named:,} images cannot be used ({lost / named:.2%}, allowed "
        f"{data.max_missing_fraction:.2%}). First: {first} ({pictures.lost[first][1]}). The list: {record}. "
        f"Allow more with data.max_missing_fraction={enough:f}."
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
        raise _empty(TRAIN, 0, data)
    if data.validation_fraction > 0 and not validation.turns:
        raise _empty(VALIDATION, len(train.images), data, figures.near_copies)


def _empty(split: str, images: int, data: DataConfig, copies: int = 0) -> InputError:
    share = f"data.validation_fraction={data.validation_fraction:g}"
    if split == TRAIN:
        return InputError(
            f"preprocess: zero usable conversations in the training split: {share} holds every image out. "
            "Give a smaller fraction or more data."
        )
    together = f" ({copies:,} are near copies of others, which stand on one side)" if copies else ""
    return InputError(
        f"preprocess: the validation split has zero images: {share} draws none of {images:,}{together}. "
        "Give a larger fraction, another data.split_seed, or 0 to train without validation."
    )
