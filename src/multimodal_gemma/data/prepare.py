"""From a raw dataset to the files of a processed one: the steps that the stage takes one after another.

Pictures come first, because a conversation whose picture turns out to be unusable is left out. Pixels and tokens lie in
slices that worker processes write; here only names, digests, thumbnails and figures are held. Between the steps it is
found out whether the dataset would be refused rather than trained on: an empty split, too many lost images.
"""

from __future__ import annotations

import dataclasses
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gemma import files, logs, manifest
from multimodal_gemma.data import contamination, conversations, pixels, processed, tokens
from multimodal_gemma.data.choose import TRAIN, VALIDATION, eldest, split_of, text_key
from multimodal_gemma.data.conversations import Conversation
from multimodal_gemma.data.pictures import THUMBNAIL_BYTES, Limits, Lookalikes, resizer_of
from multimodal_gemma.data.shards import ImageShards, image_id
from multimodal_gemma.data.slices import Slices
from multimodal_gemma.data.statistics import Statistics
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from transformers import LlavaProcessor

    from multimodal_gemma.config.schema import DataConfig

PROCESSOR, RECORD, STATISTICS = "processor", "dropped.jsonl", "statistics.json"
TOKENS, LOOKS = "tokens", "looks"  # folders of slices, beside processed.PIXELS
_HERE = 20_000  # conversations; starting worker processes for fewer takes longer than the work
_LARGE = 100_000  # pictures from which on it is said what they take on the disk


class Preparation:
    """Everything of a processed dataset but its page and its manifest.

    Args:
        data: shapes the result.
        raw: a raw-dataset artifact.
        benchmarks: a benchmarks artifact to keep out of the data; None if there is none.

    Raises:
        InputError: an input is damaged, a benchmark asks about the images, or a split will be empty: all that is known
            before the work.
    """

    def __init__(self, data: DataConfig, raw: Path, benchmarks: Path | None) -> None:
        manifest.verify(raw, "raw-dataset")
        self.figures = Statistics()
        if (raw / conversations.SETS).is_file():
            self.figures.sets = files.read_json(raw / conversations.SETS, "sets")
        self._data, self._raw, self._benchmarks = data, raw, benchmarks
        self._given, shards = conversations.load(raw), ImageShards(raw)
        known = {name: shards.sha256(name) for name in shards.names()}
        self._found = contamination.check(self._given, known, benchmarks, data.contamination)
        self._kept = [one for one in self._given if not self._found.drops(one)]
        self._names = conversations.image_names(self._kept)
        missing = files.read_jsonl(raw / "missing.jsonl", "missing images")
        reasons = dict.fromkeys(self._names, "it is not in the raw dataset")
        reasons |= {row["file_name"]: str(row["reason"]) for row in missing}
        self._digests = {name: known[name] for name in self._names if name in known}  # sha256 by file name
        self._lost = {name: ("missing", reasons[name]) for name in self._names if name not in known}  # by file name
        self._indices: dict[str, int] = {}  # number of each stored picture, by sha256
        self._places: list[tuple[str, str, int, int]] = []  # of each: one of its names, sha256, slice, row
        self._lookalikes: dict[str, str] = {}  # the benchmark's picture that shows the same, by file name
        self._eldest: dict[str, str] = {}  # see `choose.eldest`
        self._check_plan()

    def write(self, models: Path, slices: Slices) -> dict[str, Any]:
        """Write the processor, pixels, tokens, both splits, the figures and the record of what was left out.

        Args:
            models: a base-models artifact, whose tokenizer and image processor are used.
            slices: of the dataset's folder, which holds nothing else.

        Returns:
            The facts for the manifest.

        Raises:
            InputError: too many images are unusable, they show a benchmark's, or a split comes out empty.
        """
        output, policy = slices.folder, self._data.contamination
        processor, facts = save_processor(models, output / PROCESSOR, self._data.image_fit)
        self.figures.image_tokens = facts["image_tokens"]
        for one in self._given:
            if self._found.drops(one):
                reason = "a benchmark asks about its image"
                self.figures.drop("conversation", one.id, one.image or "", "contaminated", reason)
        names = self._make_pictures(processor, slices)
        contamination.check_lookalikes(self._lookalikes, policy)
        self._check_losses(output / RECORD)
        self._write_conversations(slices)
        self.figures.write_dropped(output / RECORD)
        self._check_splits()
        files.write_json(output / STATISTICS, self.figures.to_json())
        compared = {
            "status": "allowed" if self._lookalikes and policy == "allow" else self._found.status,
            "images": self._found.images,
            "lookalikes": self._lookalikes,
            "dropped": self._found.dropped,
        }
        return {**facts, "pixels": self._data.pixels, "slices": names, "contamination": compared}

    def counts(self) -> dict[str, int]:
        """Return the counts for the manifest."""
        groups = self.figures.groups()
        by_reason: dict[str, int] = {}
        for group in groups:
            what, kind = group["what"], group["kind"]
            name = f"dropped_{what}s_{kind}" if what != "turns" else "cut_conversations"
            by_reason[name.replace("-", "_")] = group["count"]
        train, validation = self.figures.splits["train"], self.figures.splits["val"]
        return {
            "conversations": len(self._given),
            "train": len(train.turns),
            "val": len(validation.turns),
            "images": len(self._places),
            "image_names": len(self._digests),
            "near_copies": len(self._eldest),
            "moved_near_copies": sum(self._side_of(one) != self._side_of(first) for one, first in self._eldest.items()),
            "moved_images": self.figures.moved_images,
            "train_images": len(train.images),
            "val_images": len(validation.images),
            "lost_images": len(self._lost),
            "contaminated_images": len(self._found.images),
            "lookalike_images": len(self._lookalikes),
            "dropped_conversations": sum(group["count"] for group in groups if group["what"] == "conversation"),
            "not_drawn_conversations": sum(told["not_drawn"] for told in self.figures.sets.values()),
            **dict(sorted(by_reason.items())),
        }

    def _side_of(self, digest: str) -> str:
        return split_of(f"image:{digest}", fraction=self._data.validation_fraction, seed=self._data.split_seed)

    def _side(self, conversation: Conversation) -> str:
        if conversation.image is None:
            key, data = text_key(conversation), self._data
            return split_of(key, fraction=data.validation_fraction, seed=data.split_seed)
        digest = self._digests[conversation.image]
        return self._side_of(self._eldest.get(digest, digest))

    def _make_pictures(self, processor: LlavaProcessor, slices: Slices) -> list[str]:
        """Decode and resize each picture once, compare it with the benchmarks' and the others; return the slices."""
        data = self._data
        limits = Limits(data.max_image_bytes, data.max_image_pixels)
        how = pixels.Picturing(resizer_of(processor.image_processor), limits, data.pixels)
        names: dict[str, list[str]] = {}
        for name, digest in self._digests.items():
            names.setdefault(digest, []).append(name)
        if len(names) > _LARGE and data.pixels == "raw":
            size = len(names) * how.resizer.side**2 * 3 / 1e9
            logs.get("preprocess").info(
                f"the pixels of {len(names):,} pictures take {size:,.0f} GB; data.pixels=jpeg takes about a fifth of it"
            )
        jobs = pixels.plan(self._raw, names.keys(), how, processed.PIXELS)
        slices.ensure(processed.PIXELS, jobs, "image")
        benchmark_names, known = self._looks(how, slices)
        looks = [np.empty((0, THUMBNAIL_BYTES), np.uint8)]
        for number, job in enumerate(jobs):
            thumbnails = pixels.thumbnails_of([slices.folder / job.name])
            same = iter(known.match(thumbnails).tolist())
            kept = []
            for row, told in enumerate(pixels.records_of(slices.folder / job.name)):
                digest = told["sha256"]
                if told["kind"]:
                    self._lost.update(dict.fromkeys(names[digest], (told["kind"], told["reason"])))
                    continue
                if (found := next(same)) >= 0:
                    self._lookalikes.update(dict.fromkeys(names[digest], benchmark_names[found]))
                kept.append(found < 0 or data.contamination != "drop")
                if kept[-1]:
                    self._indices[digest] = len(self._places)
                    self._places.append((names[digest][0], digest, number, row))
                    self.figures.add_image(told["format"], told["mode"], told["width"], told["height"])
            looks.append(thumbnails[np.array(kept, bool)])
        self._eldest = eldest([digest for _, digest, *_ in self._places], Lookalikes(np.concatenate(looks)).groups())
        self.figures.near_copies = len(self._eldest)
        processed.write_images(slices.folder, self._places)
        for name, (kind, reason) in sorted(self._lost.items()):
            self.figures.drop("image", name, name, kind, reason)
        return [Path(job.name).name for job in jobs]

    def _looks(self, how: pixels.Picturing, slices: Slices) -> tuple[list[str], Lookalikes]:
        """Return names and looks of the benchmarks' pictures, in the geometry of the dataset's."""
        jobs, names = [], {}
        if self._benchmarks is not None:
            jobs = pixels.plan(self._benchmarks, None, dataclasses.replace(how, kept="none"), LOOKS)
            names = {digest: name for name, digest in ImageShards(self._benchmarks).digests()}
        slices.ensure(LOOKS, jobs, "image of a benchmark")
        paths = [slices.folder / job.name for job in jobs]
        told = [names[row["sha256"]] for path in paths for row in pixels.records_of(path) if not row["kind"]]
        return told, Lookalikes(pixels.thumbnails_of(paths))

    def _write_conversations(self, slices: Slices) -> None:
        """Tokenize each conversation and write it into its split, if its picture is there."""
        first = self._data.image_position == "first"
        placed = [conversations.image_first(one) if first else one for one in self._kept]
        self.figures.moved_images = sum(one is not other for one, other in zip(placed, self._kept, strict=True))
        processor = slices.folder / PROCESSOR
        tokenizer = tokens.Tokenizer(processor, tokens.digest_of_processor(processor), self._data.max_text_tokens)
        jobs = tokens.plan(placed, tokenizer, TOKENS)
        slices.ensure(TOKENS, jobs, "conversation", at_once=_HERE)
        paths = [slices.folder / job.name for job in jobs]
        kept: dict[str, list[tuple[int, int, processed.Row]]] = {name: [] for name in processed.SPLITS}
        for number, (job, path) in enumerate(zip(jobs, paths, strict=True)):
            for row, (one, told) in enumerate(zip(job.conversations, tokens.records_of(path), strict=True)):
                image, turns, length = one.image or "", len(one.turns), told["length"]
                if left := self._left_out(one, told):
                    self.figures.drop("conversation", one.id, image, *left)
                    continue
                if cut := turns - told["turns"]:
                    self.figures.drop("turns", one.id, image, "cut", f"{cut} of {turns} turns are cut from its end")
                index, side = self._indices[self._digests[image]] if image else -1, self._side(one)
                self.figures.add_conversation(side, one, length, told["supervised"], told["turns"], index)
                kept[side].append(
                    (number, row, processed.Row(one.id, image and image_id(image), index, length, one.set))
                )
        for name, rows in kept.items():
            found = tokens.read(paths, [place[:2] for place in rows])
            processed.write_split(slices.folder / name, [row for _, _, row in rows], found)

    def _left_out(self, conversation: Conversation, told: dict[str, Any]) -> tuple[str, str] | None:
        """Return why a conversation is left out, as a word and in words; None if it is not."""
        image = conversation.image
        if image in self._lost:
            kind, reason = self._lost[image]
            return f"image-{kind}", reason
        if image is not None and self._digests[image] not in self._indices:
            return "contaminated", f"its image shows the same picture as {self._lookalikes[image]} of a benchmark"
        return (told["kind"], told["reason"]) if told["kind"] else None

    def _check_plan(self) -> None:
        """Find out before the work that a split will be empty."""
        if not self._kept:
            raise InputError(
                "preprocess: zero usable conversations: a benchmark asks about every image. "
                "Give other conversations, or keep these with data.contamination=allow."
            )
        there = [one for one in self._kept if one.image not in self._lost]
        if not there:
            return  # too many are lost, which is said with the list of them
        held_out = sum(self._side(one) == VALIDATION for one in there)
        if self._data.validation_fraction > 0 and not held_out:
            raise self._empty(VALIDATION, len({one.image for one in self._kept}))
        if held_out == len(there):
            raise self._empty(TRAIN)

    def _check_losses(self, record: Path) -> None:
        """Compare the images that cannot be used with data.max_missing_fraction; if they are too many, list them."""
        lost, named = len(self._lost), len(self._names)
        if not lost or lost / named <= self._data.max_missing_fraction:
            return
        self.figures.write_dropped(record)
        first = min(self._lost)
        enough = Context(prec=2, rounding=ROUND_CEILING).create_decimal(Decimal(lost / named))
        raise InputError(
            f"preprocess: {lost:,} of {named:,} images cannot be used ({lost / named:.2%}, allowed "
            f"{self._data.max_missing_fraction:.2%}). First: {first} ({self._lost[first][1]}). The list: {record}. "
            f"Allow more with data.max_missing_fraction={enough:f}."
        )

    def _check_splits(self) -> None:
        """Check that every split has something in it after all that was dropped."""
        train, validation = self.figures.splits["train"], self.figures.splits["val"]
        if not train.turns and not validation.turns:
            reasons = sorted({item.kind for item in self.figures.dropped if item.what == "conversation"})
            raise InputError(
                f"preprocess: zero usable conversations; all were dropped ({', '.join(reasons)}). "
                f"{RECORD} in the output folder has the reason of each one."
            )
        if not train.turns:
            raise self._empty(TRAIN)
        if self._data.validation_fraction > 0 and not validation.turns:
            raise self._empty(VALIDATION, len(train.images))

    def _empty(self, split: str, images: int = 0) -> InputError:
        share = f"data.validation_fraction={self._data.validation_fraction:g}"
        if split == TRAIN:
            return InputError(
                f"preprocess: zero usable conversations in the training split: {share} holds every image out. "
                "Give a smaller fraction or more data."
            )
        copies = self.figures.near_copies
        together = f" ({copies:,} are near copies of others, which stand on one side)" if copies else ""
        return InputError(
            f"preprocess: the validation split has zero images: {share} draws none of {images:,}{together}. "
            "Give a larger fraction, another data.split_seed, or 0 to train without validation."
        )


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
