"""The next step is made ready while this one is computed: its streams are composed, its features are on their way.

On a GPU a thread does this, and copies run on a CUDA stream of their own beside the computation. On a processor there
is nothing to gain: what is asked for is made when it is asked for.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from multimodal_gemma.errors import InputError
from multimodal_gemma.model.stream import Composer
from multimodal_gemma.training import schedule

if TYPE_CHECKING:
    from multimodal_gemma.model.stream import Stream
    from multimodal_gemma.training.features import Pictures
    from multimodal_gemma.training.loop import Job

T = TypeVar("T")


def ahead(items: Iterator[T], device: torch.device) -> Generator[T]:
    """Yield `items`, on a GPU each of them made while the one before is in use."""
    if device.type != "cuda":
        yield from items
        return
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        waiting = thread.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = thread.submit(next, items, None)
            yield item


@dataclasses.dataclass(frozen=True)
class Ready:
    """A stream and what was fetched for its images, on the device or on their way there.

    Attributes:
        stream: the conversations.
        fetched: of `Pictures.fetch`; None without images.
        sent: happens on the device when both are there; None on a processor.
    """

    stream: Stream
    fetched: Tensor | None
    sent: torch.cuda.Event | None

    def arrived(self) -> tuple[Stream, Tensor | None]:
        """Return both, for computation on the current CUDA stream."""
        if self.sent is not None:
            current = torch.cuda.current_stream()
            current.wait_event(self.sent)
            for tensor in (*_tensors(self.stream), *_tensors(self.stream.attention), self.fetched):
                if tensor is not None:
                    tensor.record_stream(current)  # else its memory is given to the next copy while it is being read
        return self.stream, self.fetched


class Sender:
    """Puts streams and pictures on a device.

    Args:
        device: the device.
        kernel: of the attention; see `attention.choose_kernel`.
        pictures: says what is fetched.
    """

    def __init__(self, device: torch.device, kernel: str, pictures: Pictures) -> None:
        self._device, self._kernel, self._pictures = device, kernel, pictures
        self._beside = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, stream: Stream, epoch: int | None) -> Ready:
        """Send a stream and its pictures as an epoch shows them; None: as they are."""
        fetched = self._pictures.fetch(stream.image_indices, epoch) if stream.image_indices else None
        if self._beside is None:
            return Ready(stream.to(self._device, self._kernel), fetched, None)
        with torch.cuda.stream(self._beside):
            moved = stream.to(self._device, self._kernel)
            if fetched is not None:
                fetched = fetched.pin_memory().to(self._device, non_blocking=True)
            return Ready(moved, fetched, self._beside.record_event())


@dataclasses.dataclass(frozen=True)
class Step:
    """An optimiser step, ready to be taken.

    Attributes:
        number: counted from 1.
        samples: its conversations, of all processes.
        supervised: tokens with a loss, of all processes.
        passes: what this process computes.
    """

    number: int
    samples: np.ndarray
    supervised: int
    passes: list[Ready]


def optimiser_steps(job: Job, sender: Sender, first: int, rank: int, ranks: int) -> Iterator[Step]:
    """Yield the steps of a training for one of its processes.

    Args:
        job: what is trained.
        sender: puts the streams on this process's device.
        first: the first of them, counted from 1.
        rank: which process, from 0.
        ranks: how many there are.

    Raises:
        InputError: a step has fewer conversations than there are processes.
    """
    train, training = job.train, job.training
    steps, an_epoch = schedule.plan_steps(training, len(train))
    composer = Composer(train, job.image_tokens, job.image_token_id)
    for epoch in itertools.count((first - 1) // an_epoch):
        order = schedule.epoch_steps(train.image_indices, training.batch_size, seed=training.seed, epoch=epoch)
        for step in range(max(first, epoch * an_epoch + 1), (epoch + 1) * an_epoch + 1):
            if step > steps:
                return
            samples = order[(step - 1) % an_epoch]
            if len(samples) < ranks:
                raise InputError(
                    f"train: step {step} has {len(samples)} conversations for {ranks} processes. Use fewer processes, "
                    "or another training.batch_size."
                )
            # Every process counts for all: nobody has to be asked.
            supervised = sum(int(train[int(index)].supervised[1:].sum()) for index in samples)
            share = schedule.share_of_rank(samples, train.image_indices, train.lengths, rank, ranks)
            streams = composer.streams(share, job.budget)
            yield Step(step, samples, supervised, [sender.send(stream, epoch) for stream in streams])


def _tensors(held: Any) -> list[Tensor]:
    """Return the tensors of a dataclass, those of its members included."""
    found = []
    for field in dataclasses.fields(held):
        value = getattr(held, field.name)
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple):
            found += [tensor for member in value for tensor in _tensors(member)]
    return found
