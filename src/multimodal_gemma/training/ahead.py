"""The next step is made ready while this one is computed: its stream is composed, its features are on their way.

On a GPU a thread does this, and copies run on a CUDA stream of their own beside the computation. On a processor there
is nothing to gain: what is asked for is made when it is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from multimodal_gemma.model.stream import Stream
    from multimodal_gemma.training.features import Pictures

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
