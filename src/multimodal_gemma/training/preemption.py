"""What happens when the machine is wanted back.

A spot node sends SIGTERM and takes itself away half a minute later. While the loop runs, the signal is only noted: the
loop saves a checkpoint after the step it is in and ends the process with 75, the code of sysexits.h for "try again
later". At any other time nothing would be lost, and the process ends at once with the same code.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL


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
