"""The model card and the NOTICE: what a stranger needs to know before using the model, told from the run itself.

Every figure is read from the artifacts; what they do not state is not told. Training on top of a model does not make it
ours: Gemma's derivatives stay under the Gemma Terms of Use, and other bases and data bring terms of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from multimodal_gemma.data.choose import Share
from multimodal_gemma.manifest import Manifest

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

TERMS = "GEMMA_TERMS.md"  # the copy that goes with an export
GEMMA_TERMS = "ai.google.dev/gemma/terms"
# The sentence that section 3.1 of the terms asks for, word by word.
_GEMMA_NOTICE = f"Gemma is provided under and subject to the Gemma Terms of Use found at {GEMMA_TERMS}"
_GEMMA_POLICY = "ai.google.dev/gemma/prohibited_use_policy"


# Terms that are published with what is often built on; anything else sends its reader to look.
_KNOWN = {
    "liuhaotian/LLaVA-Instruct-150K": "CC BY 4.0, and to be used within the policy of OpenAI "
    "(https://openai.com/policies/terms-of-use), as its card says at commit 9d451dc",
    "openai/clip-": "MIT, as https://github.com/openai/CLIP states for the code and the weights that come with it; its "
    "card on the hub names no licence",
    "google/siglip-": "Apache-2.0, as its card says",
}


_LOAD = """```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("PLACE")
model = AutoModelForImageTextToText.from_pretrained("PLACE", dtype="auto")
content = [{"type": "image"}, {"type": "text", "text": "What is in the image?"}]
prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(images=Image.open("photograph.jpg"), text=prompt, add_special_tokens=False, return_tensors="pt")
inputs = inputs.to(model.device, dtype=model.dtype)
answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(processor.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```"""
_BESIDE = {
    "adapter": ", `adapter/` holds what was trained",
    "int8": ", `int8/` is the same with 8-bit weights",
    "space": ", `space/` is a page to try it on",
}
_CONTAMINATION = {
    "clean": "No image of the training split is in a benchmark.",
    "contaminated": "**Images of the training split are in a benchmark: the scores overstate what the model can do.**",
    "allowed": "**{hits} of the benchmarks' images are in the training split, which this run allowed: "
    "the scores overstate what the model can do.**",
    "unknown": "**It is unknown whether training images are in a benchmark.**",
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


@dataclasses.dataclass(frozen=True)
class Story:
    """What the card is told from.

    Attributes:
        name: the model's, e.g. the registered model's.
        version: in the registry; "" if it was not registered.
        settings: the configuration that it was trained with.
        text_config: the language model's part of config.json.
        model: manifest of the model artifact.
        evaluation: manifest of the evaluation artifact.
        scores: metrics.json.
        dtype: of the shipped weights.
        parameters: how many there are.
        formats: folders beside the merged weights.
        in_8_bits: how the 8-bit weights differ from the trained model; {} without them.
    """

    name: str
    version: str
    settings: Mapping[str, Any]
    text_config: Mapping[str, Any]
    model: Manifest
    evaluation: Manifest
    scores: Mapping[str, Any]
    dtype: str
    parameters: int
    formats: tuple[str, ...] = ("adapter",)
    in_8_bits: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def language(self) -> Base:
        """The language model it started from."""
        return base("language model", str(self._setting("model.language") or ""))

    @property
    def vision(self) -> Base:
        """The vision encoder it started from."""
        return base("vision encoder", str(self._setting("model.vision") or ""))

    @property
    def data(self) -> list[Base]:
        """The sets of conversations it learned from."""
        asked = self._setting("data.conversations") or []
        sets = [asked] if isinstance(asked, str) else asked  # one text, in a model of before there could be several
        return [base("training data", Share.parse(text).uri) for text in sets]

    @property
    def gemma(self) -> bool:
        """Whether the Gemma terms apply."""
        return is_gemma(self.language, self.text_config)

    def recipe(self) -> list[tuple[str, str]]:
        """Return the settings that make the recipe, as far as they are known."""
        found = [(key, self._setting(key)) for key in _RECIPE]
        return [(key, str(value)) for key, value in found if value is not None]

    def _setting(self, dotted: str) -> Any:
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
    from huggingface_hub import ModelCard

    return str(ModelCard(f"---\n{_data(story, hub).to_yaml()}\n---\n\n{_text(story, hub)}")) + "\n"


def _text(story: Story, hub: str) -> str:
    version = f", version {story.version} in its registry" if story.version else ""
    root = "The root" if hub else "`model/`"
    checks = "" if hub else "; `SHA256SUMS` covers every file (`sha256sum -c SHA256SUMS`, `python verify.py`)"
    status = story.scores.get("contamination", {})
    parts = [
        f"# {story.name}",
        f"A vision-language model of {story.parameters / 1e6:,.1f} million parameters{version}: {story.language.name} "
        "reads the image "
        f"features of {story.vision.name} through a two-layer projector. {root} is a stock Llava folder "
        f"({story.dtype}){''.join(_BESIDE[name] for name in story.formats if not (hub and name == 'space'))}{checks}.",
        "## Use",
        _LOAD.replace("PLACE", hub or "model"),
        "Generation is greedy, as it was scored; transformers 5 and 4.57 load it. The line break behind the picture is "
        "the chat template's.",
        "## Scores",
        _scores(story.scores),
        _CONTAMINATION.get(str(status.get("status")), _CONTAMINATION["unknown"]).format(
            hits=f"{len(status.get('images', [])):,}"
        ),
        *_in_8_bits(story.in_8_bits),
        "## Limits",
        "Small models answer confidently where they are wrong: objects that often appear together are named when only "
        "one is there, "
        "and counts, text and fine detail are weak. The scores above hold for short answers about the benchmarks' "
        "images, in their "
        "language, and say nothing about other uses. Do not rely on an answer where a mistake would hurt somebody.",
        "## Data",
        _table(("what", "from"), [("conversations", _named(one)) for one in story.data] + _counts(story.model.counts)),
        "## Recipe",
        _table(("setting", "value"), story.recipe()) if story.recipe() else "The model folder states no configuration.",
        "## Lineage",
        "Each digest is the sha256 of an artifact's manifest, which names its files and inputs in turn.",
        _table(("artifact", "digest"), _lineage(story)),
        "## Licence",
        _licence(story),
    ]
    return "\n\n".join(parts) + "\n"


def _data(story: Story, hub: str) -> ModelCardData:
    """Return what the hub reads: licence, bases, data, and the scores as evaluation results."""
    from huggingface_hub import EvalResult, ModelCardData

    called, results = story.scores["names"], []
    for setting, score in (story.scores.get("pope") or {}).items():
        results += [
            EvalResult(
                task_type="visual-question-answering",
                dataset_type="pope",
                dataset_name=called["pope"],
                dataset_config=setting,
                metric_type=metric,
                metric_value=round(score[metric], 4),
            )
            for metric in ("accuracy", "f1")
        ]
    if vqa := story.scores.get("vqa"):
        results.append(
            EvalResult(
                task_type="visual-question-answering",
                dataset_type="vqa",
                dataset_name=called["vqa"],
                metric_type="accuracy",
                metric_value=round(vqa["accuracy"], 4),
            )
        )
    bases = [one.name for one in (story.language, story.vision) if one.hub]
    return ModelCardData(
        license=identifier(story.language, story.gemma),
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=bases or None,
        datasets=[one.name for one in story.data if one.hub] or None,
        model_name=hub.partition("/")[2] or story.name,
        eval_results=results or None,
    )


def _scores(scores: Mapping[str, Any]) -> str:
    rows, called = [], scores["names"]
    for setting, score in (scores.get("pope") or {}).items():
        positives = score["tp"] + score["fn"]
        baseline = max(positives, score["count"] - positives) / max(score["count"], 1)
        note = f"F1 {score['f1']:.3f}, answers yes to {score['yes_ratio']:.0%}"
        rows.append(
            (f"{called['pope']}, {setting}, accuracy", _score(score), f"{baseline:.3f}", f"{score['count']:,}", note)
        )
    if vqa := scores.get("vqa"):
        rows.append(
            (f"{called['vqa']}, accuracy", _score(vqa), f"{vqa['majority_baseline']:.3f}", f"{vqa['count']:,}", "")
        )
    if told := scores.get("chair"):
        recall = told["recall"]["value"]
        note = f"lower is better; names {recall:.0%} of the objects that are there" if recall is not None else ""
        value = {"accuracy": told["chair_i"]["value"], "interval": told["chair_i"]["interval"]}
        if value["accuracy"] is not None:
            rows.append(("objects invented in descriptions (CHAIRi)", _score(value), "", f"{told['captions']:,}", note))
    if not rows:
        return "No benchmark was asked."
    note = "Intervals are clustered by image; the baseline always gives the commonest answer."
    return note + "\n\n" + _table(("benchmark", "score [interval]", "baseline", "questions", ""), rows)


def _in_8_bits(found: Mapping[str, Any]) -> list[str]:
    """Return a section about the 8-bit weights; nothing without them."""
    if not found:
        return []
    told = (
        "`int8/` holds the language model's linear layers in 8 bits; to load it, `pip install torchao`. Logits differ "
        f"from the trained model's by at most {found['logit_difference']:.2g} standard deviations on the recorded "
        f"prompts, and {found['same_answers']} of {found['prompts']} answers are the same."
    )
    rows = [
        (
            name.replace("_", " "),
            f"{pair['trained']:.3f}",
            f"{pair['int8']:.3f}",
            f"{pair['difference']:+.3f} [{pair['interval'][0]:+.3f}, {pair['interval'][1]:+.3f}]",
            f"{pair['questions']:,}",
            f"{pair['images']:,}",
        )
        for name, pair in found.get("scores", {}).items()
    ]
    table = [_table(("score", "trained", "int8", "difference [interval]", "questions", "images"), rows)] if rows else []
    return ["## In 8 bits", told, *table]


def _score(score: Mapping[str, Any]) -> str:
    interval = score["interval"]  # None: of fewer than ten images
    return f"{score['accuracy']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _counts(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), f"{count:,}") for name, count in sorted(counts.items())]


def _lineage(story: Story) -> list[tuple[str, str]]:
    rows = [("model", story.model.digest), ("evaluation", story.evaluation.digest)]
    rows += [(f"{name} (input of the model)", digest) for name, digest in sorted(story.model.inputs.items())]
    return [(name, f"`{digest}`") for name, digest in rows]


def _named(item: Base) -> str:
    return f"{item.name} at {item.revision}" if item.revision else item.name


def _licence(story: Story) -> str:
    if story.gemma:
        return (
            f"Gemma is provided under and subject to the Gemma Terms of Use found at {GEMMA_TERMS}, with use "
            "restrictions "
            "(section 3.2). They hold for this model too, which is a modified Gemma; see `NOTICE`, and pass it on with "
            "the model."
        )
    if story.language.ours:
        return "Apache-2.0: the base models and the data are the sample's own. See `NOTICE`."
    return "The licences of the base models and of the data apply; see `NOTICE` for what to check."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def notice(language: Base, vision: Base, data: Sequence[Base], gemma: bool, *, enclosed: bool = False) -> str:
    """Return the text of NOTICE; `enclosed` says that a copy of Gemma's terms goes with it."""
    lines, copy = ["NOTICE", ""], f" ({TERMS})" if enclosed else ""
    if gemma:
        lines += [
            f"{_GEMMA_NOTICE}.",
            "",
            "Modification notice: this is a Model Derivative of Gemma, and its weights were modified.",
            "The language model was fine-tuned, and joined with an encoder and a projector that are not Google's.",
            "",
            f"Use is restricted by section 3.2 of these terms and by the policy at {_GEMMA_POLICY}.",
            f"Whoever passes this model on, changed or not, passes on a copy of the terms{copy} and of this file.",
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
    lines += ["", *[_other(item) for item in (vision, *data) if not item.ours]]
    return "\n".join(lines).rstrip() + "\n"


def _other(item: Base) -> str:
    known = next((terms for name, terms in _KNOWN.items() if item.hub and item.name.startswith(name)), None)
    if known:
        return f"The {item.part} is {item.name}: {known}."
    return f"The {item.part} is {item.name}: check its licence{_at(item)}."


def _at(item: Base) -> str:
    if not item.hub:
        return " where you got it"
    kind = "datasets/" if item.part == "training data" else ""
    return f" at https://huggingface.co/{kind}{item.name}"
