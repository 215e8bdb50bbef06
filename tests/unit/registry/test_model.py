"""What the registered model says to a request that holds no picture or no question."""

from __future__ import annotations

import base64
import io

import pandas
import pytest

from multimodal_gemma.registry import model
from tests.unit.evaluation import tiny


@pytest.fixture
def served() -> model.VisionLanguageModel:
    made = model.VisionLanguageModel()
    made.model, made.processor = tiny.llava("llama"), tiny.processor()
    return made


def encoded() -> str:
    stream = io.BytesIO()
    tiny.images(1)[0].save(stream, "PNG")
    return base64.encodebytes(stream.getvalue()).decode()  # with line breaks, as `base64` writes it


def test_base64_may_have_line_breaks(served: model.VisionLanguageModel) -> None:
    text = encoded()
    assert "\n" in text.strip()
    asked = pandas.DataFrame({"image": [text, text.replace("\n", "")], "question": ["dog ?", "dog ?"]})
    first, second = served.predict(None, asked, {"max_new_tokens": 4})
    assert first == second


@pytest.mark.parametrize(
    ("image", "question", "said"),
    [
        (None, "dog ?", "row 0: there is no image"),
        ("", "dog ?", "row 0: there is no image"),
        (float("nan"), "dog ?", "row 0: there is no image"),
        ("?", "dog ?", "row 0: the image is no base64"),
        ("good", None, "row 0: there is no question"),
        ("good", " ", "row 0: there is no question"),
    ],
)
def test_what_is_missing_is_named(
    served: model.VisionLanguageModel, image: object, question: object, said: str
) -> None:
    asked = pandas.DataFrame({"image": [encoded() if image == "good" else image], "question": [question]}, dtype=object)
    with pytest.raises(ValueError, match=said):
        served.predict(None, asked)
