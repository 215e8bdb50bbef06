"""What ends a training before its end: SIGTERM, a loss that is no number, memory that does not suffice.

A spot node sends SIGTERM and takes itself away half a minute later. While the loop runs, the signal is only noted: the
loop saves a checkpoint after the step it is in and ends the process with 75, the code of sysexits.h for "try again
later". At any other time nothing would be lost, and the process ends at once with the same code.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from multimodal_gemma import files
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from multimodal_gemma.model.stream import Stream
    from multimodal_gemma.training.loop import Job

EXIT_CODE = 75  # EX_TEMPFAIL
REPLAY = "failed_step.json"
_NAMED = 8  # conversations that the sentence names; the file has all


class Watch:
    """Listens for SIGTERM inside a `with` block.

    Attributes:
        asked: SIGTERM came while it was deferred.
    """

    def __init__(self) -> None:
        self.asked = False
        self._deferring = False
        self._before: signal.Handlers | None = None

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():  # Python hears signals nowhere else
            self._before = signal.signal(signal.SIGTERM, self._heard)  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if not self._deferring:
            raise SystemExit(EXIT_CODE)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the signal inside the block; whoever runs it looks at `asked`."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False


def not_finite(
    job: Job, step: int, loss: float, norm: float, streams: Sequence[Sequence[int]], samples: np.ndarray
) -> InputError:
    """Write down which conversations a step had, and return the sentence.

    Args:
        job: what was trained.
        step: the failed one.
        loss: of the step.
        norm: of its gradient.
        streams: conversations of each of this process's streams.
        samples: conversations of all processes.
    """
    ids = job.train.ids
    place = job.folder / REPLAY
    files.write_json(
        place,
        {
            "step": step,
            "loss": str(loss),
            "gradient_norm": str(norm),
            "conversations": [ids[index] for index in samples],
            "streams": [[ids[index] for index in stream] for stream in streams],
            "how_to_replay": "Run the same command on the same output folder: it continues from the last checkpoint "
            f"and meets step {step} with these very conversations and random states again.",
        },
    )
    named = ", ".join(ids[index] for index in samples[:_NAMED])
    more = f" and {len(samples) - _NAMED} more" if len(samples) > _NAMED else ""
    what = (
        f"the loss of step {step} is {loss}" if not math.isfinite(loss) else f"the gradient of step {step} is no number"
    )
    return InputError(
        f"train: {what}. Its conversations: {named}{more}; {place} has them all and says how to replay the step. Look "
        "at them, or lower training.projector_lr and training.lora_lr; what was learnt until the last checkpoint is "
        "kept."
    )


@contextlib.contextmanager
def out_of_memory(stream: Stream, budget: int) -> Iterator[None]:
    """Turn a lack of memory inside the block into a sentence.

    Args:
        stream: what is computed.
        budget: positions that a stream may have.

    Raises:
        InputError: the memory of the GPU, or of the machine, does not suffice.
    """
    try:
        yield
    except RuntimeError as error:
        import torch  # not above: who only waits for a training listens for SIGTERM, too

        # PyTorch has a type of its own for a GPU alone.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        count, positions = len(stream.sample_indices), stream.positions
        advice = (
            f"Set training.batch_tokens={max(positions // 2, stream.longest)}"
            if count > 1 and positions // 2 < budget
            else "Set training.gradient_checkpointing=true, or prepare with a smaller data.max_text_tokens"
        )
        raise InputError(
            f"train: the memory does not suffice for {count} conversations of {positions:,} positions at once. "
            f"{advice}, and run the same command: it goes on from its last checkpoint, and what it learns stays the "
            "same."
        ) from None
