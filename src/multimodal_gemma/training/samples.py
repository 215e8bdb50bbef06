"""What the model says of a few validation images while it learns: a loss tells little, a wrong answer tells much."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaProcessor

from multimodal_gemma import files
from multimodal_gemma.model import attention
from multimodal_gemma.model.forward import SupervisedLoss
from multimodal_gemma.model.stream import Composer

if TYPE_CHECKING:
    from accelerate import Accelerator

    from multimodal_gemma.data.processed import ProcessedDataset, Sample
    from multimodal_gemma.training.features import Pictures

NAME = "samples.jsonl"
_LONGEST = 32  # tokens of an answer
# What the templates of model.chat write around a question besides control tokens.
_ROLES = re.compile(r"\A(user\s+|USER: )|\s*(model|assistant|ASSISTANT:)\Z")


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A conversation up to its first answer."""

    image_index: int
    input_ids: np.ndarray
    supervised: np.ndarray


class Samples:
    """Asks the same first questions of the same validation images before the first step and at every validation.

    Args:
        dataset: has the images and questions.
        processor: its tokenizer reads and writes.
        loss: the model.
        pictures: what `loss` takes of images.
        accelerator: the precision to compute in.
        path: gets a line for each answer.
        count: how many images.
    """

    def __init__(
        self,
        dataset: ProcessedDataset,
        processor: LlavaProcessor,
        loss: SupervisedLoss,
        pictures: Pictures,
        accelerator: Accelerator,
        path: Path,
        count: int,
    ) -> None:
        self._processor, self._loss, self._pictures = processor, loss, pictures
        self._accelerator, self._path = accelerator, path
        split = dataset.split("val")
        with_image = np.flatnonzero(split.image_indices >= 0)
        _, first = np.unique(split.image_indices[with_image], return_index=True)
        self._samples = [split[int(row)] for row in with_image[np.sort(first)][:count]]
        self._asked = [self._question(sample) for sample in self._samples]
        self._composer = Composer(self._asked, dataset.image_tokens, dataset.image_token_id)

    def begin(self, step: int) -> None:
        """Drop the answers that came after a checkpoint, which a resumed run gives again; at step 0 ask the start."""
        kept = files.read_jsonl(self._path, "samples") if self._path.is_file() else []
        files.write_jsonl(self._path, [row for row in kept if row["step"] <= step] if step else [])
        if not step:
            self.ask(0)

    @torch.no_grad()
    def ask(self, step: int) -> None:
        """Write down what the model answers now; the likeliest word each time, so that no random state moves."""
        if not self._asked:
            return
        self._loss.eval()
        with self._as_stock(), self._accelerator.autocast():
            tokens = self._answers()
        decode = self._processor.tokenizer.decode
        lines = [
            {
                "step": step,
                "image_index": sample.image_index,
                "question": _ROLES.sub("", decode(asked.input_ids, skip_special_tokens=True).strip()),
                "answer": decode(said, skip_special_tokens=True).strip(),
                "expected": decode(_first_answer(sample), skip_special_tokens=True).strip(),
            }
            for sample, asked, said in zip(self._samples, self._asked, tokens, strict=True)
        ]
        with self._path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def _question(self, sample: Sample) -> _Asked:
        begin = int(np.argmax(sample.supervised))
        ids = sample.input_ids[:begin]
        shown = bool((ids == self._processor.image_token_id).any())  # else the image comes later in the conversation
        return _Asked(sample.image_index if shown else -1, ids, sample.supervised[:begin])

    def _answers(self) -> Tensor:
        """Return what stock generation says to all questions at once, (questions, words)."""
        device = self._accelerator.device
        rows = []
        for number in range(len(self._asked)):
            stream = self._composer.stream([number]).to(device)
            pictures = None
            if stream.image_indices:
                pictures = self._pictures.finish(self._pictures.fetch(stream.image_indices, None).to(device))
            rows.append(self._loss.embed(stream, pictures))  # (positions, D)
        width = max(map(len, rows))
        embeds = rows[0].new_zeros((len(rows), width, rows[0].shape[1]))
        mask = torch.zeros(embeds.shape[:2], dtype=torch.int64, device=device)
        for number, row in enumerate(rows):  # padded on the left: answers begin side by side
            embeds[number, width - len(row) :], mask[number, width - len(row) :] = row, 1
        tokens: Tensor = self._loss.llava.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=_LONGEST, do_sample=False
        )
        return tokens

    @contextlib.contextmanager
    def _as_stock(self) -> Iterator[None]:
        """Let the language model attend as in stock Llava inside the block, uncompiled: each word has a new length."""
        language = self._loss.llava.model.language_model
        language.set_attn_implementation("sdpa")
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            attention.use_streams(language)


def _first_answer(sample: Sample) -> np.ndarray:
    begin = int(np.argmax(sample.supervised))
    ended = np.flatnonzero(~sample.supervised[begin:])
    return sample.input_ids[begin : begin + int(ended[0]) if len(ended) else None]
