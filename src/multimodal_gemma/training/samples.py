"""What the model says of a few validation images while it learns: a loss tells little, a wrong answer tells much."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaProcessor

from multimodal_gemma import files
from multimodal_gemma.model.forward import Batch, SupervisedLoss

if TYPE_CHECKING:
    from accelerate import Accelerator

    from multimodal_gemma.data.processed import ProcessedDataset, Sample

NAME = "samples.jsonl"
_LONGEST = 32  # tokens of an answer


class Samples:
    """Asks the same first questions of the same validation images at every validation.

    Args:
        dataset: has the images and questions.
        processor: its tokenizer reads and writes.
        loss: the model.
        pictures: image indices to what `loss` takes of them.
        make_batch: split and sample indices to a micro-batch.
        accelerator: the precision to compute in.
        path: gets a line for each answer.
        count: how many images.
    """

    def __init__(
        self,
        dataset: ProcessedDataset,
        processor: LlavaProcessor,
        loss: SupervisedLoss,
        pictures: Callable[[Sequence[int]], Tensor],
        make_batch: Callable[..., Batch],
        accelerator: Accelerator,
        path: Path,
        count: int,
    ) -> None:
        self._dataset, self._processor, self._loss, self._pictures = dataset, processor, loss, pictures
        self._make_batch, self._accelerator, self._path = make_batch, accelerator, path
        self._split = dataset.split("val")
        with_image = np.flatnonzero(self._split.image_indices >= 0)
        _, first = np.unique(self._split.image_indices[with_image], return_index=True)
        self._rows = [int(row) for row in with_image[np.sort(first)][:count]]

    def forget_after(self, step: int) -> None:
        """Drop the answers that came after a checkpoint: a resumed run gives them again."""
        kept = files.read_jsonl(self._path, "samples") if self._path.is_file() else []
        files.write_jsonl(self._path, [row for row in kept if row["step"] <= step])

    @torch.no_grad()
    def ask(self, step: int) -> None:
        """Write down what the model answers now; the likeliest word each time, so that no random state moves."""
        self._loss.eval()
        lines = []
        # Generation has a new length with every token: compiling each would take longer than all answers.
        with torch.compiler.set_stance("force_eager"), self._accelerator.autocast():
            for row in self._rows:
                lines.append({"step": step, **self._answer(self._split[row])})
        with self._path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def _answer(self, sample: Sample) -> dict[str, Any]:
        tokenizer = self._processor.tokenizer
        begin = int(np.argmax(sample.supervised))
        ended = np.flatnonzero(~sample.supervised[begin:])
        end = begin + int(ended[0]) if len(ended) else len(sample.supervised)
        asked = Asked(sample.image_index, sample.input_ids[:begin], sample.supervised[:begin])
        if not (asked.input_ids == self._processor.image_token_id).any():  # the image comes later in this conversation
            asked.image_index = -1
        batch = self._make_batch([asked], [0]).to(self._accelerator.device)
        pictures = self._pictures(batch.image_indices) if batch.image_indices else None
        embeds = self._loss.embed(batch, pictures)
        tokens = self._loss.llava.generate(inputs_embeds=embeds, max_new_tokens=_LONGEST, do_sample=False)
        return {
            "image_index": sample.image_index,
            "question": tokenizer.decode(asked.input_ids, skip_special_tokens=True).strip(),
            "answer": tokenizer.decode(tokens[0], skip_special_tokens=True).strip(),
            "expected": tokenizer.decode(sample.input_ids[begin:end], skip_special_tokens=True).strip(),
        }


class Asked:
    """The part of a conversation up to its first answer."""

    def __init__(self, image_index: int, input_ids: np.ndarray, supervised: np.ndarray) -> None:
        self.image_index, self.input_ids, self.supervised = image_index, input_ids, supervised
