"""Gemma's terms go with every Gemma, and with nothing else."""

from __future__ import annotations

import pytest

from multimodal_gemma.export import card

GEMMA = {"model_type": "gemma3_text"}
QWEN = {"model_type": "qwen2"}
TERMS = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"


@pytest.mark.parametrize(
    ("location", "text_config", "gemma", "identifier"),
    [
        ("hf://google/gemma-3-270m@main", GEMMA, True, "gemma"),
        ("file:///models/my-base", GEMMA, True, "gemma"),  # renamed, and still a Gemma
        ("file:///models/gemma-tuned", QWEN, True, "gemma"),  # says so itself
        ("sample://language", GEMMA, False, "apache-2.0"),  # the architecture, none of the weights
        ("hf://Qwen/Qwen2.5-0.5B@main", QWEN, False, "other"),
        ("", {}, False, "other"),
    ],
)
def test_which_terms_apply(location: str, text_config: dict[str, str], gemma: bool, identifier: str) -> None:
    base = card.base("language model", location)
    assert card.is_gemma(base, text_config) is gemma
    assert card.identifier(base, gemma) == identifier
    text = card.notice(base, card.base("vision encoder", "hf://openai/clip@1"), [base], gemma)
    assert (TERMS in text) is gemma
    assert "openai/clip: check its licence at https://huggingface.co/openai/clip" in text


def test_a_changed_gemma_says_that_it_was_changed() -> None:
    base = card.base("language model", "hf://google/gemma-3-270m@main")
    text = card.notice(base, base, [base], gemma=True)
    assert "Modification notice" in text
    assert "prohibited_use_policy" in text


def test_another_base_sends_its_user_to_its_own_licence() -> None:
    base = card.base("language model", "hf://Qwen/Qwen2.5-0.5B@main")
    assert "https://huggingface.co/Qwen/Qwen2.5-0.5B" in card.notice(base, base, [base], gemma=False)


def test_published_terms_are_stated() -> None:
    data = card.base("training data", "hf://datasets/liuhaotian/LLaVA-Instruct-150K@main/llava_instruct_150k.json")
    vision = card.base("vision encoder", "hf://openai/clip-vit-large-patch14@1")
    text = card.notice(card.base("language model", "sample://language"), vision, [data], gemma=False)
    assert "LLaVA-Instruct-150K: CC BY 4.0, and to be used within the policy of OpenAI" in text
    assert "clip-vit-large-patch14: MIT" in text or "clip-vit-large-patch14 is MIT" in text or "MIT, as" in text


def test_places_of_the_machine_are_not_told() -> None:
    base = card.base("language model", "file:///home/someone/secret/my-base")
    assert base.name == "my-base"
    data = card.base("training data", "hf://datasets/liuhaotian/LLaVA-Instruct-150K@main/llava_instruct_150k.json")
    assert (data.name, data.revision) == ("liuhaotian/LLaVA-Instruct-150K", "main")
