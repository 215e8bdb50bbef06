"""Puts every distinct question to a model, image by image, and keeps the answers as they come.

One line an image is appended and flushed, so that a killed evaluation continues where it was; the first line says which
model and settings the answers belong to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from multimodal_gemma import files
from multimodal_gemma.errors import InputError, Unusable
from multimodal_gemma.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from multimodal_gemma.data.pictures import Limits
    from multimodal_gemma.data.shards import ImageShards
    from multimodal_gemma.evaluation.generator import Generator

KEPT = "answers.partial.jsonl"
_AHEAD = 8  # images decoded before they are needed
_SHOWN = 3  # file names that an error lists


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer."""

    text: str  # what was generated, without special tokens and surrounding space
    # Probability of yes against no as the first token, in [0, 1]; None if the vocabulary has no such tokens.
    p_yes: float | None
    tokens: tuple[int, ...] = ()  # the generated token ids, up to and without the one that ends the answer


class AnswerStore:
    """The answers of an unfinished evaluation.

    Args:
        folder: the evaluation's folder.
        identity: what the answers depend on: model, benchmarks, settings.

    Raises:
        InputError: the folder holds unfinished answers of something else, or cannot be written.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._path = folder / KEPT
        header = json.dumps({"identity": identity}, sort_keys=True)
        kept = self._whole_lines()
        if kept and kept[0] != header:
            raise InputError(
                f"evaluate: {self._path} holds answers of another model, benchmark or setting. "
                "Delete it to begin anew, or choose another output folder."
            )
        self.answers: dict[str, dict[str, Answer]] = {}
        for line in kept[1:]:
            row = json.loads(line)
            self.answers.setdefault(row["image"], {}).update(
                {text: Answer(answer["text"], answer["p_yes"]) for text, answer in row["answers"].items()}
            )
        files.write_text(self._path, "".join(f"{line}\n" for line in (kept or [header])))
        self._stream = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk, which was said when the answers did not go in
            self._stream.close()

    def add(self, image: str, answers: dict[str, Answer]) -> None:
        """Keep answers about one image beside those that are there."""
        said = {text: {"text": answer.text, "p_yes": answer.p_yes} for text, answer in answers.items()}
        try:
            self._stream.write(json.dumps({"image": image, "answers": said}) + "\n")
            self._stream.flush()
        except OSError as error:
            raise files.unwritable(self._path, error) from error
        self.answers.setdefault(image, {}).update(answers)

    def _whole_lines(self) -> list[str]:
        """Return the lines that were written to their end."""
        if not self._path.is_file():
            return []
        text = self._path.read_text(encoding="utf-8", errors="replace")
        return text[: text.rfind("\n") + 1].split("\n")[:-1]


def require_images(asked: Mapping[str, Sequence[str]], shards: ImageShards) -> None:
    """Check that every image that is asked about is there.

    Raises:
        InputError: some are not; the sentence counts them and their questions.
    """
    missing = sorted(set(asked) - set(shards.names()))
    if missing:
        questions = sum(len(asked[image]) for image in missing)
        raise InputError(
            f"evaluate: {len(missing):,} of {len(asked):,} benchmark images are missing ({questions:,} questions), "
            f"e.g. {', '.join(missing[:_SHOWN])}. A score without them is not comparable: see missing.jsonl of the "
            "benchmarks, and download them again."
        )


def ask(
    asked: Mapping[str, Sequence[str]], shards: ImageShards, limits: Limits, generator: Generator, store: AnswerStore
) -> None:
    """Answer all distinct questions, by image file name, that the store does not know, and keep the answers in it.

    Raises:
        InputError: an image cannot be decoded, or an answer not kept.
    """
    left = [image for image, texts in asked.items() if not {*texts} <= store.answers.get(image, {}).keys()]
    total = sum(map(len, asked.values()))
    done = total - sum(len(asked[image]) for image in left)
    with Progress("evaluate", total, "question", done=done) as progress:
        pictures = ((image, asked[name]) for name, image in decoded(left, shards, limits))
        for name, answers in zip(left, generator.answer(pictures), strict=True):
            store.add(name, dict(zip(asked[name], answers, strict=True)))
            progress.advance(len(answers))


def decoded(names: Sequence[str], shards: ImageShards, limits: Limits) -> Iterator[tuple[str, Image]]:
    """Yield (name, RGB image) in order, some decoded ahead in threads while the model works.

    Raises:
        InputError: an image cannot be decoded; the sentence names it and says why.
    """
    waiting: deque[tuple[str, Future[Image]]] = deque()
    with ThreadPoolExecutor(max_workers=min(_AHEAD, os.cpu_count() or 1)) as pool:
        for name in names:
            waiting.append((name, pool.submit(_decode, name, shards.read(name), limits)))
            if len(waiting) > _AHEAD:
                ready, future = waiting.popleft()
                yield ready, future.result()
        for name, future in waiting:
            yield name, future.result()


def _decode(name: str, content: bytes, limits: Limits) -> Image:
    from multimodal_gemma.data.pictures import decode

    try:
        return decode(content, limits).image
    except Unusable as error:
        raise InputError(f"evaluate: benchmark image {name} cannot be used: {error}. Download it again.") from None
