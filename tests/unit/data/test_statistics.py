from __future__ import annotations

import numpy as np

from multimodal_gemma.data.conversations import Conversation, Turn
from multimodal_gemma.data.report import THUMBNAILS, page
from multimodal_gemma.data.statistics import Statistics, distribution

FACTS = {"image_tokens": 16, "image_size": 8, "contamination": {"status": "clean"}}


def gathered() -> Statistics:
    """Two conversations on one image and one without, one image that was lost."""
    statistics = Statistics(image_tokens=16)
    statistics.add_image("JPEG", "RGB", 640, 480)
    turns = [Turn("user", "Is it red?"), Turn("assistant", "yes"), Turn("user", "Why?"), Turn("assistant", "it is so")]
    whole = Conversation("one", "1.jpg", turns)
    statistics.add_conversation("train", whole, 5, 2, 4, 0)
    statistics.add_conversation("train", whole, 3, 1, 2, 0)
    text = Conversation("text", None, turns[:2])
    statistics.add_conversation("val", text, 2, 1, 2, -1)
    statistics.drop("image", "<b>.jpg", "<b>.jpg", "corrupt", "it is corrupt")
    return statistics


def test_figures_are_those_counted_by_hand() -> None:
    value = gathered().to_json()
    train, val = value["splits"]["train"], value["splits"]["val"]
    assert (train["conversations"], train["images"], train["text_only"]) == (2, 1, 0)
    assert (val["conversations"], val["images"], val["text_only"]) == (1, 0, 1)
    assert (train["text_tokens"]["min"], train["text_tokens"]["max"]) == (2, 4)  # 5 and 3 tokens, less the placeholder
    assert train["positions"]["sum"] == (5 - 1 + 16) + (3 - 1 + 16)
    assert val["positions"]["sum"] == 2
    assert train["supervised_tokens"]["sum"] == 3
    assert train["turns"]["mean"] == 3
    assert value["answers"]["count"] == 4  # a turn that was cut is not counted
    assert value["answers"]["most_frequent"][0] == ["yes", 3]
    assert value["images"]["formats"] == {"JPEG": 1}
    assert value["dropped"] == [
        {
            "what": "image",
            "kind": "corrupt",
            "count": 1,
            "examples": [{"id": "<b>.jpg", "image": "<b>.jpg", "reason": "it is corrupt"}],
        }
    ]


def test_a_histogram_counts_every_value_once() -> None:
    values = [1, 1, 2, 100]
    histogram = distribution(values)["histogram"]
    assert sum(histogram["counts"]) == 4
    assert (histogram["edges"][0], histogram["edges"][-1]) == (1, 101)
    assert distribution([]) == {"count": 0}


def test_the_page_escapes_names_from_the_data_and_needs_nothing_else() -> None:
    html = page(gathered(), FACTS, [np.zeros((8, 8, 3), np.uint8)])
    assert "&lt;b&gt;.jpg" in html
    assert "<b>.jpg" not in html
    assert "<script" not in html
    assert "src='http" not in html
    assert "href='http" not in html


def test_the_page_of_a_large_dataset_stays_small() -> None:
    """40,000 conversations of every length, odd answers, long reasons, and photographs that JPEG cannot shrink."""
    numbers = np.random.default_rng(0)
    statistics = Statistics(image_tokens=256)
    for number in range(40_000):
        turns = [Turn("user", "?"), Turn("assistant", f"answer {number % 20_000}")] * (1 + number % 4)
        whole = Conversation(str(number), "1.jpg", turns)
        statistics.add_conversation("train", whole, 10 + number % 1_000, 5 + number % 300, len(turns), number)
        if number % 2:
            statistics.add_image("JPEG", "RGB", 100 + number % 900, 100 + number % 700)
        if number % 8 == 0:
            statistics.drop("conversation", str(number), "", f"reason-{number % 20}", "because " * 50)
    pictures = [numbers.integers(0, 256, (384, 384, 3), np.uint8) for _ in range(THUMBNAILS)]
    statistics.add_conversation("val", whole, 10, 5, 2, 0)
    size = len(page(statistics, {**FACTS, "image_size": 384}, pictures).encode())
    assert 60 * 2_000 < size < 2_000_000  # the pictures are in it
