"""What an export tells a stranger: model card, NOTICE and READMEs, written by templates from the run itself.

Every figure is read from the artifacts; what they do not state is not told. Training on top of a model does not make it
ours: Gemma's derivatives stay under the Gemma Terms of Use, and other bases and data bring terms of their own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from multimodal_gemma.data.choose import Share
from multimodal_gemma.evaluation.questions import seen
from multimodal_gemma.manifest import Manifest

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

TERMS = "GEMMA_TERMS.md"  # the copy that goes with an export
GEMMA_TERMS = "ai.google.dev/gemma/terms"
# Terms that are published with what is often built on; anything else sends its reader to look.
_KNOWN = {
    "liuhaotian/LLaVA-Instruct-150K": "CC BY 4.0, and to be used within the policy of OpenAI "
    "(https://openai.com/policies/terms-of-use), as its card says at commit 9d451dc",
    "openai/clip-": "MIT, as https://github.com/openai/CLIP states for the code and the weights that come with it; its "
    "card on the hub names no licence",
    "google/siglip-": "Apache-2.0, as its card says",
}
# What of the configuration makes the recipe; dotted keys.
_RECIPE = (
    "model.vision_feature_layer", "model.vision_policy", "model.projector_policy", "model.language_policy",
    "model.language_quantization", "model.lora.rank", "model.lora.alpha", "model.lora.dropout", "training.epochs",
    "training.max_steps", "training.batch_size", "training.projector_lr", "training.lora_lr",
    "training.weight_decay", "training.warmup_fraction", "training.augmentation", "training.seed",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Base:
    """A model or a dataset that a part of the result comes from."""

    part: str  # what it is to the result, e.g. "language model"
    name: str  # as people know it, e.g. "google/gemma-3-270m"
    revision: str = ""  # what was asked for; "" if there is none
    hub: bool = False  # it lies on the Hugging Face Hub under this name
    ours: bool = False  # it came with this project

    @property
    def known(self) -> str:
        """Its licence, where that is known."""
        return next((terms for name, terms in _KNOWN.items() if self.hub and self.name.startswith(name)), "")

    @property
    def place(self) -> str:
        """Where its licence is to be found."""
        kind = "datasets/" if self.part == "training data" else ""
        return f"at https://huggingface.co/{kind}{self.name}" if self.hub else "where you got it"


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


@dataclasses.dataclass(frozen=True)
class Story:
    """What the card is told from."""

    name: str  # the model's, e.g. the registered model's
    version: str  # in the registry; "" if it was not registered
    settings: Mapping[str, Any]  # the configuration that it was trained with
    text_config: Mapping[str, Any]  # the language model's part of config.json
    model: Manifest  # manifest of the model artifact
    evaluation: Manifest  # manifest of the evaluation artifact
    scores: Mapping[str, Any]  # metrics.json
    dtype: str  # of the shipped weights
    parameters: int  # how many there are
    formats: tuple[str, ...] = ("adapter",)  # folders beside the merged weights
    # How the 8-bit weights differ from the trained model; {} without them.
    in_8_bits: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def language(self) -> Base:
        """The language model it started from."""
        return base("language model", str(self.setting("model.language") or ""))

    @property
    def vision(self) -> Base:
        """The vision encoder it started from."""
        return base("vision encoder", str(self.setting("model.vision") or ""))

    @property
    def data(self) -> list[Base]:
        """The sets of conversations it learned from."""
        asked = self.setting("data.conversations") or []
        sets = [asked] if isinstance(asked, str) else asked  # one text, in a model of before there could be several
        return [base("training data", Share.parse(text).uri) for text in sets]

    @property
    def gemma(self) -> bool:
        """Whether the Gemma terms apply."""
        return is_gemma(self.language, self.text_config)

    def setting(self, dotted: str) -> Any:
        """Return a value of the configuration; None where it has none."""
        value: Any = self.settings
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def write(story: Story, *, hub: str = "") -> str:
    """Return README.md.

    Args:
        story: what it is told from.
        hub: `ORG/NAME` that the card is for, whose root holds what `model/` does in an export; "": the export itself.
    """
    sentence, clean = seen(story.scores), story.scores.get("contamination", {}).get("status") == "clean"
    recipe = {key: value for key in _RECIPE if (value := story.setting(key)) is not None}
    text = render("card", story, hub, sentence if clean else f"**{sentence}**", recipe)
    return f"---\n{_data(story, hub).to_yaml()}\n---\n\n{text}"


def notice(language: Base, vision: Base, data: Sequence[Base], gemma: bool, *, enclosed: bool = False) -> str:
    """Return the text of NOTICE; `enclosed` says that a copy of Gemma's terms goes with it."""
    return render("notice", language, [vision, *data], gemma, TERMS if enclosed else "")


def bases(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the locations of the base models with their revisions, as far as a run's configuration states them.

    Of a folder of this machine only its last name is told.
    """
    stated = settings.get("model") or {}
    found = {part: str(stated[part]) for part in ("vision", "language") if stated.get(part)}
    return {
        part: location if location.startswith(("hf://", "sample://", "https://")) else base(part, location).name
        for part, location in found.items()
    }


def render(name: str, *told: Any) -> str:
    """Return a text of texts.md.j2: "card", "notice", "adapter" or "space"."""
    text: str = getattr(_texts(), name)(*told)
    return text.strip() + "\n"


@functools.cache
def _texts() -> Any:
    from jinja2 import Environment

    source = resources.files(__package__).joinpath("texts.md.j2").read_text(encoding="utf-8")
    return Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(source).module


def _data(story: Story, hub: str) -> ModelCardData:
    """Return what the hub reads: licence, bases, data, and the scores as evaluation results."""
    from huggingface_hub import EvalResult, ModelCardData

    called = story.scores["names"]
    told = [
        ("pope", setting, metric, score[metric])
        for setting, score in (story.scores.get("pope") or {}).items()
        for metric in ("accuracy", "f1")
    ]
    if vqa := story.scores.get("vqa"):
        told.append(("vqa", None, "accuracy", vqa["accuracy"]))
    results = [
        EvalResult(
            task_type="visual-question-answering",
            dataset_type=kind,
            dataset_name=called[kind],
            dataset_config=setting,
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for kind, setting, metric, value in told
    ]
    return ModelCardData(
        license=identifier(story.language, story.gemma),
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=[one.name for one in (story.language, story.vision) if one.hub] or None,
        datasets=[one.name for one in story.data if one.hub] or None,
        model_name=hub.partition("/")[2] or story.name,
        eval_results=results or None,
    )
