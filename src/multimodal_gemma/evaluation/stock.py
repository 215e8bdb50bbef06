"""Answers through a model's own processor and stock `generate`: for any image-text-to-text folder, at its own speed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from multimodal_gemma.evaluation.asking import Answer, YesOrNo
from multimodal_gemma.evaluation.prompts import Prompter, stop_tokens

if TYPE_CHECKING:
    from PIL.Image import Image


class StockGenerator:
    """Answers by `generate`, the questions of one image as a left-padded batch.

    Args:
        model: any stock image-text-to-text model in eval mode.
        processor: its stock processor with a chat template.
        suffix: appended to each question.
        max_new_tokens: longest answer, tokens.
        batch_tokens: positions that a batch may hold, padding and answers counted.
    """

    def __init__(
        self, model: Any, processor: Any, *, suffix: str = "", max_new_tokens: int = 16, batch_tokens: int = 16_384
    ) -> None:
        self._model, self._processor = model, processor
        self._prompter = Prompter(processor, suffix=suffix)
        self._new, self._budget = max_new_tokens, batch_tokens
        self._stops = stop_tokens(model, processor)
        self._yes_or_no = YesOrNo(processor.tokenizer)

    @torch.inference_mode()
    def answer(self, asked: Iterable[tuple[Image, Sequence[str]]]) -> Iterator[list[Answer]]:
        """Yield, for each image in turn, the answers to its questions in their order."""
        for image, questions in asked:
            prompts = [self._prompter.render(question) for question in questions]
            length = self._inputs(image, [max(prompts, key=len)])["input_ids"].shape[1]
            step = max(1, self._budget // (length + self._new))
            answers: list[Answer] = []
            for start in range(0, len(prompts), step):
                answers += self._generate(image, prompts[start : start + step])
            yield answers

    def _inputs(self, image: Image, prompts: list[str]) -> Any:
        inputs = self._processor(
            images=[[image] for _ in prompts],
            text=prompts,
            padding=True,
            padding_side="left",
            add_special_tokens=self._prompter.adds_special_tokens(prompts[0]),
            return_tensors="pt",
        )
        return inputs.to(self._model.device, self._model.dtype)

    def _generate(self, image: Image, prompts: list[str]) -> list[Answer]:
        inputs = self._inputs(image, prompts)
        tokenizer = self._processor.tokenizer
        output = self._model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self._new,
            eos_token_id=self._stops,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._stops[0],
            return_dict_in_generate=True,
            output_logits=True,
        )
        p_yes = self._yes_or_no.probability(output.logits[0])
        said = [self._spoken(row) for row in output.sequences[:, inputs["input_ids"].shape[1] :].tolist()]
        texts = tokenizer.batch_decode(said, skip_special_tokens=True)
        return [Answer(text.strip(), p, tuple(row)) for text, p, row in zip(texts, p_yes, said, strict=True)]

    def _spoken(self, row: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(row) if token in self._stops), len(row))
        return row[:end]
