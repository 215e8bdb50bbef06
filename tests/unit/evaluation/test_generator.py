"""Shared prefixes must change nothing: every answer equals stock generate, question by question."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation.generator import StockGenerator, SuffixGenerator, obstacle
from multimodal_gemma.evaluation.prompts import common_prefix, stop_tokens
from tests.unit.evaluation import tiny

NEW = 8


def stock_answer(
    model: Any, processor: Any, image: Image.Image, question: str, stops: Sequence[int] = (2, 5)
) -> tuple[tuple[int, ...], torch.Tensor]:
    """Tokens and first logits of stock generate for one question, by transformers alone."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    keep = {"return_dict_in_generate": True, "output_logits": True}
    output = model.generate(**inputs, do_sample=False, max_new_tokens=NEW, eos_token_id=list(stops), **keep)
    tokens = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return tuple(token for token in tokens if token not in stops), output.logits[0][0]


def asked(images: Sequence[Image.Image]) -> list[tuple[Image.Image, list[str]]]:
    """Fewer questions for each further image, so that batches are ragged."""
    return [(image, tiny.QUESTIONS[: len(tiny.QUESTIONS) - index]) for index, image in enumerate(images)]


@functools.cache
def stock_answers(family: str) -> list[tuple[tuple[int, ...], torch.Tensor]]:
    """What stock generate says to all that `asked` asks."""
    model, processor = tiny.llava(family), tiny.processor()
    return [stock_answer(model, processor, image, question) for image, row in asked(tiny.images(4)) for question in row]


@pytest.mark.parametrize("family", ["gemma3", "qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("batch_tokens", [16_384, 130, 1], ids=["one batch", "split images", "one by one"])
def test_answers_equal_stock_generate(family: str, batch_tokens: int) -> None:
    torch.set_num_threads(1)
    model, processor, images = tiny.llava(family), tiny.processor(), tiny.images(4)
    assert obstacle(model, processor) is None
    generator = SuffixGenerator(model, processor, max_new_tokens=NEW, batch_tokens=batch_tokens)
    answers = [answer for row in generator.answer(asked(images)) for answer in row]
    expected = stock_answers(family)
    assert [answer.tokens for answer in answers] == [tokens for tokens, _ in expected]
    assert len({tokens for tokens, _ in expected}) > 4, "answers that hardly differ prove little"
    for answer, (_, logits) in zip(answers, expected, strict=True):
        odds = logits[[8, 9]].logsumexp(0) - logits[[10, 11]].logsumexp(0)  # Yes, yes against No, no
        assert answer.p_yes == pytest.approx(float(odds.sigmoid()), abs=1e-5)


def test_answers_of_the_packaged_bases_equal_stock_generate(bases: Path) -> None:
    """The sample's real tokenizer, chat template and window, joined as training joins them."""
    from multimodal_gemma import config
    from multimodal_gemma.model import assembly, processor

    reader = processor.build_processor(bases / "vision", bases / "language")
    vision, language = assembly.load_vision(bases / "vision"), assembly.load_language(bases / "language")
    model = assembly.assemble(vision, language, reader, config.compose("sample").model)
    assert obstacle(model, reader) is None
    questions = ["Is there a star in the image?", "What color is the heart?", "How many objects are there?"]
    pictures = tiny.images(3)
    generator = SuffixGenerator(model, reader, max_new_tokens=NEW)
    stops = model.generation_config.eos_token_id
    for image, answers in zip(pictures, generator.answer([(image, questions) for image in pictures]), strict=True):
        expected = [stock_answer(model, reader, image, question, stops)[0] for question in questions]
        assert [answer.tokens for answer in answers] == expected


def test_the_sliding_window_counts_positions_not_padding() -> None:
    """One word against twenty in a batch: padding pushes the short row's slots far beyond the window of 12."""
    model, processor, image = tiny.llava("gemma3"), tiny.processor(), tiny.images(1)[0]
    questions = ["dog ?", " ".join(tiny.WORDS.split()[:20])]
    answers = next(SuffixGenerator(model, processor, max_new_tokens=NEW).answer([(image, questions)]))
    assert [answer.tokens for answer in answers] == [stock_answer(model, processor, image, q)[0] for q in questions]


def test_stock_generator_gives_the_same_answers() -> None:
    model, processor, images = tiny.llava("llama"), tiny.processor(), tiny.images(2)
    fast = list(SuffixGenerator(model, processor, suffix=" ?", max_new_tokens=NEW).answer(asked(images)))
    slow = StockGenerator(model, processor, suffix=" ?", max_new_tokens=NEW, batch_tokens=120)
    for ours, stock in zip(fast, slow.answer(asked(images)), strict=True):
        assert [answer.tokens for answer in ours] == [answer.tokens for answer in stock]
        assert [answer.p_yes for answer in ours] == pytest.approx([answer.p_yes for answer in stock], abs=1e-5)


def test_eager_attention_gives_the_same_answers() -> None:
    model, processor, images = tiny.llava("gemma3"), tiny.processor(), tiny.images(2)
    before = list(SuffixGenerator(model, processor, max_new_tokens=NEW).answer(asked(images)))
    model.set_attn_implementation("eager")
    after = list(SuffixGenerator(model, processor, max_new_tokens=NEW).answer(asked(images)))
    assert [[answer.tokens for answer in row] for row in before] == [[answer.tokens for answer in row] for row in after]


def test_models_that_greedy_argmax_would_misrepresent_are_left_to_stock_generate() -> None:
    processor = tiny.processor()
    model = tiny.llava("llama")
    model.generation_config.repetition_penalty = 1.1
    assert "repetition_penalty=1.1" in str(obstacle(model, processor))
    model = tiny.llava("llama")
    processor.chat_template = "{{ bos_token }}{{ messages[0].content[1].text }}<image>"
    assert "image after the question" in str(obstacle(model, processor))


def test_the_end_of_turn_stops_an_answer_even_where_the_generation_configuration_forgets_it() -> None:
    model, processor = tiny.llava("llama"), tiny.processor()
    model.generation_config.eos_token_id = 2
    assert stop_tokens(model, processor) == [2, 5]


def test_a_question_that_contains_the_image_token_is_refused() -> None:
    generator = SuffixGenerator(tiny.llava("llama"), tiny.processor())
    with pytest.raises(InputError, match="holds 2 image tokens"):
        list(generator.answer([(tiny.images(1)[0], ["is <image> a dog ?"])]))


def test_common_prefix_stops_where_any_row_differs() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2, 3, 5]]) == 2
    assert common_prefix([[1, 2], [1, 2, 3]]) == 2
    assert common_prefix([[7, 8]]) == 2
