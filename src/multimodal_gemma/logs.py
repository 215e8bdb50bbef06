"""One line a decision or a stage, with the figures a person would ask for next."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

_ROOT = "multimodal_gemma"
_CHATTY = ("torchao", "torch.utils._pytree")  # what they warn of when they are imported is nothing a user can mend


def get(name: str) -> logging.Logger:
    """Return the logger of a part, e.g. `get("preprocess")`."""
    return logging.getLogger(f"{_ROOT}.{name}")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        part = record.name.removeprefix(f"{_ROOT}.")
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"{self.formatTime(record, '%H:%M:%S')} {part}: {mark}{record.getMessage()}"


class _StandardError(logging.StreamHandler):
    """Writes to whatever standard error is at that moment: a notebook or a test exchanges it."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """Ignore the stream of the moment when the handler was made."""


def setup(*, quiet: bool = False) -> None:
    """Send this project's log lines to standard error; calling it twice changes nothing."""
    logger = logging.getLogger(_ROOT)
    if not logger.handlers:
        handler = _StandardError()
        handler.setFormatter(_Formatter())
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
