"""From a question to the tokens a model is asked with, by its own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multimodal_gemma.errors import InputError

_PROBE = "What is this?"


class Prompter:
    """Renders questions about one image by a processor's chat template.

    Args:
        processor: stock processor with a chat template.
        suffix: appended to every question, e.g. a request for a short answer.
    """

    def __init__(self, processor: Any, *, suffix: str = "") -> None:
        self._processor, self._suffix = processor, suffix

    def messages(self, question: str) -> list[dict[str, Any]]:
        """Return the chat messages that ask `question` about an image."""
        content = [{"type": "image"}, {"type": "text", "text": f"{question}{self._suffix}"}]
        return [{"role": "user", "content": content}]

    def render(self, question: str) -> str:
        """Return the prompt up to where the answer begins."""
        return str(self._processor.apply_chat_template(self.messages(question), add_generation_prompt=True))

    def image_first(self) -> bool:
        """Tell whether the image stands before the question, so that its tokens are shared by all questions."""
        before, _, _ = self.render(_PROBE).partition(_PROBE)
        return self._processor.image_token in before

    def adds_special_tokens(self, prompt: str) -> bool:
        """Tell whether the tokenizer must add its BOS: transformers' own rule for templates that write none."""
        bos = self._processor.tokenizer.bos_token
        return bos is None or not prompt.startswith(bos)

    def tokenize(self, questions: Sequence[str], image_token_id: int) -> list[list[int]]:
        """Return the token ids of each prompt, the image still one placeholder.

        Raises:
            InputError: a prompt holds no placeholder, or more than one.
        """
        prompts = [self.render(question) for question in questions]
        special = self.adds_special_tokens(prompts[0])
        rows: list[list[int]] = self._processor.tokenizer(prompts, add_special_tokens=special)["input_ids"]
        for question, ids in zip(questions, rows, strict=True):
            if ids.count(image_token_id) != 1:
                raise InputError(
                    f"evaluate: the prompt of the question {question!r} holds {ids.count(image_token_id)} image "
                    "tokens, not 1. Check the model's chat template, and that no question contains the image token."
                )
        return rows


def stop_tokens(model: Any, processor: Any) -> list[int]:
    """Return the ids that end an answer: those of the generation configuration, and the chat template's end of turn."""
    configured = model.generation_config.eos_token_id
    ids = {configured} if isinstance(configured, int) else set(configured or [])
    return sorted((ids | {processor.tokenizer.eos_token_id, end_of_turn(processor)}) - {None})


def common_prefix(rows: Sequence[list[int]]) -> int:
    """Return how many leading ids all rows share."""
    first, last = min(rows), max(rows)  # the two that differ earliest, in lexical order
    shared = 0
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        shared += 1
    return shared


def end_of_turn(processor: Any) -> int | None:
    """Return the special token that the template writes right after an assistant's words, if it writes one."""
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _PROBE}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": _PROBE}]}
    rendered = str(processor.apply_chat_template([question, answer], add_generation_prompt=False))
    tokenizer = processor.tokenizer
    after = tokenizer.encode(rendered.rpartition(_PROBE)[2].lstrip(), add_special_tokens=False)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return next((token for token in after[:1] if token in special), None)
