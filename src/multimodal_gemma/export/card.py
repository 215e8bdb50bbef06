"""The model card: what a stranger needs to know before using the model, told from the run itself.

Every figure is read from the artifacts; what they do not state is not told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from multimodal_gemma.export import licences
from multimodal_gemma.manifest import Manifest

_LOAD = """```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("model")
model = AutoModelForImageTextToText.from_pretrained("model", dtype="auto")
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
    "allowed": "**Images of the training split are in a benchmark, which this run allowed: "
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
    def language(self) -> licences.Base:
        """The language model it started from."""
        return licences.base("language model", str(self._setting("model.language") or ""))

    @property
    def vision(self) -> licences.Base:
        """The vision encoder it started from."""
        return licences.base("vision encoder", str(self._setting("model.vision") or ""))

    @property
    def data(self) -> licences.Base:
        """The conversations it learned from."""
        return licences.base("training data", str(self._setting("data.conversations") or ""))

    @property
    def gemma(self) -> bool:
        """Whether the Gemma terms apply."""
        return licences.is_gemma(self.language, self.text_config)

    def recipe(self) -> list[tuple[str, str]]:
        """Return the settings that make the recipe, as far as they are known."""
        found = [(key, self._setting(key)) for key in _RECIPE]
        return [(key, str(value)) for key, value in found if value is not None]

    def _setting(self, dotted: str) -> Any:
        value: Any = self.settings
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def write(story: Story) -> str:
    """Return README.md."""
    version = f", version {story.version} in its registry" if story.version else ""
    parts = [
        _front_matter(story),
        f"# {story.name}",
        f"A vision-language model of {story.parameters / 1e6:,.1f} million parameters{version}: {story.language.name} "
        "reads the image "
        f"features of {story.vision.name} through a two-layer projector. `model/` is a stock Llava folder "
        f"({story.dtype}){''.join(_BESIDE[name] for name in story.formats)}; `SHA256SUMS` covers every file "
        "(`sha256sum -c SHA256SUMS`).",
        "## Use",
        _LOAD,
        "## Scores",
        _scores(story.scores),
        _CONTAMINATION.get(str(story.scores.get("contamination", {}).get("status")), _CONTAMINATION["unknown"]),
        *_in_8_bits(story.in_8_bits),
        "## Limits",
        "Small models answer confidently where they are wrong: objects that often appear together are named when only "
        "one is there, "
        "and counts, text and fine detail are weak. The scores above hold for short answers about the benchmarks' "
        "images, in their "
        "language, and say nothing about other uses. Do not rely on an answer where a mistake would hurt somebody.",
        "## Data",
        _table(("what", "from"), [("conversations", _named(story.data)), *_counts(story.model.counts)]),
        "## Recipe",
        _table(("setting", "value"), story.recipe()) if story.recipe() else "The model folder states no configuration.",
        "## Lineage",
        "Each digest is the sha256 of an artifact's manifest, which names its files and inputs in turn.",
        _table(("artifact", "digest"), _lineage(story)),
        "## Licence",
        _licence(story),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(story: Story) -> str:
    lines = ["---", f"license: {licences.identifier(story.language, story.gemma)}"]
    lines += ["library_name: transformers", "pipeline_tag: image-text-to-text"]
    bases = [item.name for item in (story.language, story.vision) if item.hub]
    if bases:
        lines += ["base_model:", *[f"- {name}" for name in bases]]
    if story.data.hub:
        lines += ["datasets:", f"- {story.data.name}"]
    return "\n".join([*lines, "---"])


def _scores(scores: Mapping[str, Any]) -> str:
    rows = []
    for setting, score in (scores.get("pope") or {}).items():
        positives = score["tp"] + score["fn"]
        baseline = max(positives, score["count"] - positives) / max(score["count"], 1)
        note = f"F1 {score['f1']:.3f}, answers yes to {score['yes_ratio']:.0%}"
        rows.append((f"POPE {setting}, accuracy", _score(score), f"{baseline:.3f}", f"{score['count']:,}", note))
    if vqa := scores.get("vqa"):
        rows.append(("VQA v2, accuracy", _score(vqa), f"{vqa['majority_baseline']:.3f}", f"{vqa['count']:,}", ""))
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
    low, high = score["interval"]
    return f"{score['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def _counts(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), f"{count:,}") for name, count in sorted(counts.items())]


def _lineage(story: Story) -> list[tuple[str, str]]:
    rows = [("model", story.model.digest), ("evaluation", story.evaluation.digest)]
    rows += [(f"{name} (input of the model)", digest) for name, digest in sorted(story.model.inputs.items())]
    return [(name, f"`{digest}`") for name, digest in rows]


def _named(item: licences.Base) -> str:
    return f"{item.name} at {item.revision}" if item.revision else item.name


def _licence(story: Story) -> str:
    if story.gemma:
        return (
            f"Gemma is provided under and subject to the Gemma Terms of Use found at {licences.GEMMA_TERMS}, with use "
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
