"""Puts every distinct question to a model, image by image, with a progress bar, and continues after a kill."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from multimodal_gemma.data.decode import Limits, UnusableImage, decode
from multimodal_gemma.data.shards import ImageShards
from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation.answers import Answer, Generator
from multimodal_gemma.evaluation.resume import AnswerStore
from multimodal_gemma.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

_AHEAD = 8  # images decoded before they are needed
_SHOWN = 3  # file names that an error lists


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
) -> dict[str, dict[str, Answer]]:
    """Answer all questions about all images.

    Args:
        asked: distinct questions by image file name.
        shards: the images.
        limits: what an image may cost to decode.
        generator: answers in the order in which it is asked.
        store: keeps the answers; images that it knows are not asked about again.

    Returns:
        Answers by image and question.

    Raises:
        InputError: an image cannot be decoded.
    """
    left = [image for image in asked if image not in store.answers]
    total = sum(map(len, asked.values()))
    done = total - sum(len(asked[image]) for image in left)
    with Progress("evaluate", total, "question", done=done) as progress:
        pictures = ((image, asked[name]) for name, image in decoded(left, shards, limits))
        for name, answers in zip(left, generator.answer(pictures), strict=True):
            store.add(name, dict(zip(asked[name], answers, strict=True)))
            progress.advance(len(answers))
    return store.answers


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
    try:
        return decode(content, limits).image
    except UnusableImage as error:
        raise InputError(f"evaluate: benchmark image {name} cannot be used: {error}. Download it again.") from None
