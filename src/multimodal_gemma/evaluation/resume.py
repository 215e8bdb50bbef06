"""Answers kept as they come, so that a killed evaluation continues where it was.

One line an image, appended and flushed; the first line says which model and settings the answers belong to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from multimodal_gemma import files
from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation.answers import Answer

NAME = "answers.partial.jsonl"


class AnswerStore:
    """The answers of an unfinished evaluation.

    Args:
        folder: the evaluation's folder.
        identity: what the answers depend on: model, benchmarks, settings.

    Raises:
        InputError: the folder holds unfinished answers of something else, or cannot be written.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._path = folder / NAME
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
            self.answers[row["image"]] = {
                text: Answer(answer["text"], answer["p_yes"]) for text, answer in row["answers"].items()
            }
        files.write_text(self._path, "".join(f"{line}\n" for line in (kept or [header])))
        self._stream = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, image: str, answers: dict[str, Answer]) -> None:
        """Keep the answers to all questions about one image."""
        said = {text: {"text": answer.text, "p_yes": answer.p_yes} for text, answer in answers.items()}
        try:
            self._stream.write(json.dumps({"image": image, "answers": said}) + "\n")
            self._stream.flush()
        except OSError as error:
            raise files.unwritable(self._path, error) from error
        self.answers[image] = answers

    def discard(self) -> None:
        """Delete the file: its answers are in the finished predictions."""
        self._stream.close()
        self._path.unlink(missing_ok=True)

    def _whole_lines(self) -> list[str]:
        """Return the lines that were written to their end."""
        if not self._path.is_file():
            return []
        text = self._path.read_text(encoding="utf-8", errors="replace")
        return text[: text.rfind("\n") + 1].splitlines()
