"""`mmgemma ask`: one question about one picture, answered on standard output as it is generated."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from multimodal_gemma import logs
from multimodal_gemma.serving import pictures

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config


def run(config: Config, location: str, picture: str, question: str, *, out: TextIO | None = None) -> str:
    """Ask a model.

    Args:
        config: sections serving, evaluation (device and precision), data (limits of a picture) and registry.
        location: the model: a folder, models:/NAME@ALIAS, s3://, or a name on the hub.
        picture: path of a file, or an https:// address.
        question: what is asked.
        out: where the answer is written; standard output.

    Returns:
        The answer.

    Raises:
        InputError: picture, question or model cannot be used.
    """
    out = out or sys.stdout
    seen = pictures.read(picture, config)  # before the model is loaded: a mistake should be told at once
    if seen.note:
        logs.get("ask").warning(seen.note)
    from multimodal_gemma.serving.assistant import Assistant, Sampling

    assistant = Assistant.load(location, config)
    settings = config.serving
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p)
    answer = ""
    for piece in assistant.stream(seen.image, question, sampling):
        piece = piece if answer else piece.lstrip()
        answer += piece
        out.write(piece)
        out.flush()
    out.write("\n")
    return answer.strip()
