"""Whose terms the weights are under.

Training on top of a model does not make it ours: Gemma's derivatives stay under the Gemma Terms of Use, and other bases
and data bring terms of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

GEMMA_TERMS = "ai.google.dev/gemma/terms"
# The sentence that section 3.1 of the terms asks for, word by word.
_GEMMA_NOTICE = f"Gemma is provided under and subject to the Gemma Terms of Use found at {GEMMA_TERMS}"
_GEMMA_POLICY = "ai.google.dev/gemma/prohibited_use_policy"


@dataclasses.dataclass(frozen=True)
class Base:
    """A model or a dataset that a part of the result comes from.

    Attributes:
        part: what it is to the result, e.g. "language model".
        name: as people know it, e.g. "google/gemma-3-270m".
        revision: what was asked for; "" if there is none.
        hub: it lies on the Hugging Face Hub under this name.
        ours: it came with this project.
    """

    part: str
    name: str
    revision: str = ""
    hub: bool = False
    ours: bool = False


def base(part: str, location: str) -> Base:
    """Read a configured location; of a folder only its last name is told."""
    parsed = urlsplit(location)
    if parsed.scheme == "sample":
        return Base(part, "the sample's own", ours=True)
    if parsed.scheme == "hf":
        rest = location.removeprefix("hf://").removeprefix("datasets/")
        name, _, after = rest.partition("@")
        return Base(part, "/".join(name.split("/")[:2]), after.partition("/")[0], hub=True)
    if parsed.scheme in ("http", "https"):
        return Base(part, f"{parsed.hostname}{parsed.path}")
    return Base(part, unquote(parsed.path).rstrip("/").rpartition("/")[2] or "unknown")


def is_gemma(language: Base, text_config: Mapping[str, Any]) -> bool:
    """Return whether the language model is one of Google's Gemmas or comes from one.

    A renamed folder is judged by its architecture. The sample's base shares the architecture but none of the weights.
    """
    if language.ours:
        return False
    return "gemma" in language.name.lower() or str(text_config.get("model_type", "")).startswith("gemma")


def identifier(language: Base, gemma: bool) -> str:
    """Return the licence field of a model card."""
    if gemma:
        return "gemma"
    return "apache-2.0" if language.ours else "other"


def notice(language: Base, vision: Base, data: Base, gemma: bool) -> str:
    """Return the text of NOTICE."""
    lines = ["NOTICE", ""]
    if gemma:
        lines += [
            f"{_GEMMA_NOTICE}.",
            "",
            "Modification notice: this is a Model Derivative of Gemma, and its weights were modified.",
            "The language model was fine-tuned, and joined with an encoder and a projector that are not Google's.",
            "",
            f"Use is restricted by section 3.2 of these terms and by the policy at {_GEMMA_POLICY}.",
            "Whoever passes this model on, changed or not, passes on a copy of the terms and of this file.",
        ]
    elif language.ours:
        lines += ["The language model is the sample's own and comes under this project's licence, Apache-2.0."]
    else:
        lines += [
            f"The language model is derived from {language.name}: its licence applies to this model.",
            f"Check it before you use or pass on this model{_at(language)}.",
            "",
            "Modification notice: its weights were modified.",
            "It was fine-tuned, and joined with a vision encoder and a projector.",
        ]
    lines += ["", *[_other(item) for item in (vision, data) if not item.ours]]
    return "\n".join(lines).rstrip() + "\n"


def _other(item: Base) -> str:
    return f"The {item.part} is {item.name}: check its licence{_at(item)}."


def _at(item: Base) -> str:
    if not item.hub:
        return " where you got it"
    kind = "datasets/" if item.part == "training data" else ""
    return f" at https://huggingface.co/{kind}{item.name}"
