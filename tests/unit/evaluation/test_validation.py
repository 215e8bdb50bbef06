"""Held-out conversations: the loss of stock transformers, and a threshold that has not seen the benchmark."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from multimodal_gemma.evaluation import scoring, validation
from multimodal_gemma.evaluation.statistics import best_threshold, perplexity
from tests.unit.evaluation import tiny

TOKENS = 16  # an image's


class Split:
    """Conversations in memory, as `data.processed.Split` shows them."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples
        self.image_indices = np.array([s.image_index for s in samples])
        self.lengths = np.array([len(s.input_ids) + (TOKENS - 1) * (s.image_index >= 0) for s in samples])

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        return self.samples[row]


def dataset(samples: list[Any]) -> Any:
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    return SimpleNamespace(
        split=lambda name: Split(samples if name == "val" else []),
        image=lambda index: images[index],
        image_tokens=TOKENS,
        image_token_id=3,
        pad_token_id=0,
    )


def sample(tokenizer: Any, turns: list[tuple[str, str]], image: int) -> Any:
    ids, supervised = [1], [False]
    if image >= 0:
        ids, supervised = [*ids, 3], [False, False]
    for question, answer in turns:
        for text, learnt in ((question, False), (f"{answer} <eos>", True)):
            new = tokenizer.encode(text, add_special_tokens=False)
            ids, supervised = ids + new, supervised + [learnt] * len(new)
    return SimpleNamespace(image_index=image, input_ids=np.array(ids, np.int32), supervised=np.array(supervised))


def conversations() -> list[Any]:
    reader = tiny.tokenizer()
    return [
        sample(reader, [("is there a dog in the image ?", "yes"), ("what color ?", "w1 w2 w3")], 0),
        sample(reader, [("is there a cat ?", "No")], 1),
        sample(reader, [("dog ?", "w5 w6"), ("cat ?", "no w7"), ("car ?", "Yes")], -1),
    ]


@pytest.mark.parametrize("batch_tokens", [16_384, 1])
@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_loss_is_that_of_stock_transformers(family: str, batch_tokens: int) -> None:
    model, reader, data = tiny.llava(family), tiny.processor(), dataset(conversations())
    found = validation.validate(model, reader, data, batch_tokens=batch_tokens)
    assert found is not None
    total, count = 0.0, 0
    for item in conversations():  # one at a time, by stock transformers' own labels
        ids = [token for token in item.input_ids.tolist() for _ in range(TOKENS if token == 3 else 1)]
        learnt = np.repeat(item.supervised, [TOKENS if token == 3 else 1 for token in item.input_ids])
        labels = torch.where(torch.tensor(learnt), torch.tensor(ids), -100)[None]
        pixels = None
        if item.image_index >= 0:
            pixels = reader.image_processor(data.image(item.image_index), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            loss = model(input_ids=torch.tensor([ids]), pixel_values=pixels, labels=labels).loss
        tokens = int((labels[:, 1:] != -100).sum())
        total, count = total + float(loss) * tokens, count + tokens
    assert found.tokens == count
    assert found.loss == pytest.approx(total / count, rel=1e-5)
    assert validation.section(found, None)["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert (found.yes_answers, found.no_answers) == (2, 2)
    assert found.threshold is None, "four answers are too few to say where yes begins"


def test_an_empty_split_says_nothing() -> None:
    assert validation.validate(tiny.llava("llama"), tiny.processor(), dataset([]), batch_tokens=100) is None


def test_a_threshold_needs_answers_of_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "FEWEST", 2)
    found = validation.validate(tiny.llava("llama"), tiny.processor(), dataset(conversations()), batch_tokens=999)
    assert found is not None
    assert found.threshold is not None
    assert found.threshold.questions == 4


@pytest.mark.parametrize(
    ("p_yes", "is_yes", "value", "balanced"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], 0.25, 1.0),  # an over-cautious model: everything below one half
        ([0.6, 0.7, 0.8, 0.9], [0, 1, 0, 1], 0.65, 0.75),  # 0.65 and 0.85 are as good; the nearer to 0.5 wins
        ([0.9, 0.8, 0.2, 0.1, 0.1], [0, 0, 1, 1, 1], 0.0, 0.5),  # upside down: nothing beats a constant answer
    ],
)
def test_threshold_by_hand(p_yes: list[float], is_yes: list[int], value: float, balanced: float) -> None:
    found = best_threshold(np.array(p_yes), np.array(is_yes, bool))
    assert found.value == pytest.approx(value)
    assert found.balanced_accuracy == pytest.approx(balanced)


def test_pope_by_threshold_weighs_settings_alike() -> None:
    def row(benchmark: str, image: str, p_yes: float, label: str) -> dict[str, Any]:
        return {"benchmark": benchmark, "image_id": image, "p_yes": p_yes, "label": label}

    rows = [
        row("pope/random", "a", 0.4, "yes"),
        row("pope/random", "b", 0.1, "no"),
        row("pope/popular", "a", 0.4, "no"),
    ]
    section = {"threshold": {"value": 0.3}}
    found = scoring.at_threshold(rows, section, 0.95)
    assert found is not None
    assert found["accuracy"] == pytest.approx(0.5)  # 1.0 in random, 0.0 in popular
    assert found["yes_ratio"] == pytest.approx(0.75)
    assert scoring.at_threshold(rows, {"threshold": None}, 0.95) is None


def test_perplexity_beyond_a_float_is_infinite_and_never_passes_the_gate() -> None:
    assert perplexity(1000.0) == math.inf
    assert math.isnan(perplexity(math.nan))
