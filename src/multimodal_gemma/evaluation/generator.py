"""Short answers to many questions about few images, at a fraction of the work, and equal to stock `generate`.

Questions about one image share nearly all of their prompt: hundreds of image tokens, then a dozen of words. The encoder
and the shared prefix run once an image; its keys and values are repeated for that image's questions, which then run as
one right-padded batch of suffixes, and decode greedily together. Images with few questions share a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, LlavaForConditionalGeneration

from multimodal_gemma.evaluation.asking import Answer, YesOrNo
from multimodal_gemma.evaluation.cache import by_kind, mask, repeated
from multimodal_gemma.evaluation.prompts import Prompter, common_prefix, stop_tokens
from multimodal_gemma.model.attention import KINDS

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers.cache_utils import Cache

_COMPACT = 0.75  # rows are dropped once so few still speak: dropping copies what is left
# Settings of a generation configuration under which greedy search is the plain argmax, and what else changes its
# choice.
_PLAIN = {
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "bad_words_ids": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1.0),
    "stop_strings": (None,),
    "watermarking_config": (None,),
    "penalty_alpha": (None, 0.0),
}


def obstacle(model: Any, processor: Any) -> str | None:
    """Say why a model cannot be asked by shared prefixes; None if it can."""
    if not isinstance(model, LlavaForConditionalGeneration):
        return f"{type(model).__name__} is no stock Llava model"
    text = model.config.text_config
    kinds = set(getattr(text, "layer_types", None) or [])
    if kinds - KINDS:
        return f"its language model has layers of kind {', '.join(sorted(kinds - KINDS))}"
    if getattr(text, "use_bidirectional_attention", None):
        return "its language model attends both ways"
    if not getattr(model.model.language_model, "_supports_attention_backend", False):
        return f"{type(model.model.language_model).__name__} takes no prepared attention mask"
    if text._attn_implementation not in ("sdpa", "eager"):
        return f"its attention is {text._attn_implementation}"
    for name, plain in _PLAIN.items():
        value = getattr(model.generation_config, name, None)
        if value not in plain:
            return f"its generation configuration sets {name}={value}"
    return None if Prompter(processor).image_first() else "its chat template puts the image after the question"


class SuffixGenerator:
    """Answers by shared prefixes. See `obstacle` for the models that it takes.

    Args:
        model: stock Llava model in eval mode.
        processor: its stock processor.
        suffix: appended to each question.
        max_new_tokens: longest answer, tokens.
        batch_tokens: cached positions that a batch of questions may hold at once, prefix and answers counted.
    """

    def __init__(
        self, model: Any, processor: Any, *, suffix: str = "", max_new_tokens: int = 16, batch_tokens: int = 16_384
    ) -> None:
        self._model, self._processor = model, processor
        self._prompter = Prompter(processor, suffix=suffix)
        self._new, self._budget = max_new_tokens, batch_tokens
        self._image_token = model.config.image_token_id
        self._stops = torch.tensor(stop_tokens(model, processor), device=model.device)
        self._yes_or_no = YesOrNo(processor.tokenizer)
        self._window = getattr(model.config.text_config, "sliding_window", None)

    @torch.inference_mode()
    def answer(self, asked: Iterable[tuple[Image, Sequence[str]]]) -> Iterator[list[Answer]]:
        """Yield, for each image in turn, the answers to its questions in their order."""
        waiting: list[tuple[torch.Tensor, int, list[list[int]]]] = []
        used = 0
        for image, questions in asked:
            pixels, tokens = self._see(image)
            rows = self._prompter.tokenize(questions, self._image_token)
            cost = len(rows) * (max(map(len, rows)) - 1 + tokens + self._new)
            if waiting and (used + cost > self._budget or pixels.shape != waiting[0][0].shape):
                yield from self._answer(waiting)
                waiting, used = [], 0
            waiting.append((pixels, tokens, rows))
            used += cost
        if waiting:
            yield from self._answer(waiting)

    def _see(self, image: Image) -> tuple[torch.Tensor, int]:
        """Return the stock pixel values (1, 3, height, width) and how many tokens the image becomes."""
        inputs = self._processor(images=image, text=self._processor.image_token, return_tensors="pt")
        return inputs["pixel_values"], int((inputs["input_ids"] == self._image_token).sum())

    def _answer(self, waiting: list[tuple[torch.Tensor, int, list[list[int]]]]) -> Iterator[list[Answer]]:
        prompts = [row for _, _, rows in waiting for row in rows]
        owner = [index for index, (_, _, rows) in enumerate(waiting) for _ in rows]
        shared = min(common_prefix(prompts), min(map(len, prompts)) - 1)  # a suffix has at least one token
        prefix = prompts[0][:shared]
        place = prefix.index(self._image_token)
        prefix[place : place + 1] = [self._image_token] * waiting[0][1]
        pixels = torch.cat([pixels for pixels, _, _ in waiting])
        cache = self._prefill(prefix, pixels)
        step = max(1, self._budget // (len(prefix) + max(map(len, prompts)) - shared + self._new))
        answers: list[Answer] = []
        for start in range(0, len(prompts), step):
            suffixes = [row[shared:] for row in prompts[start : start + step]]
            rows = torch.tensor(owner[start : start + step], device=self._model.device)
            answers += self._decode(repeated(cache, rows, self._room(suffixes)), len(prefix), suffixes)
        position = 0
        for _, _, asked in waiting:
            yield answers[position : position + len(asked)]
            position += len(asked)

    def _room(self, suffixes: Sequence[Sequence[int]]) -> int:
        return max(map(len, suffixes)) + self._new

    def _prefill(self, prefix: list[int], pixels: torch.Tensor) -> Cache:
        """Run encoder and prefix once an image: (images, positions)."""
        device, cache = self._model.device, DynamicCache()
        ids = torch.tensor([prefix], device=device).expand(len(pixels), -1)
        self._model.model(
            input_ids=ids,
            pixel_values=pixels.to(device, self._model.dtype),
            past_key_values=cache,
            use_cache=True,
        )
        return cache

    def _decode(self, cache: Cache, prefix: int, suffixes: Sequence[Sequence[int]]) -> list[Answer]:
        device, longest = self._model.device, max(map(len, suffixes))
        padded = [[*row, *[0] * (longest - len(row))] for row in suffixes]
        ids = torch.tensor(padded, device=device)  # (rows, longest)
        lengths = torch.tensor([len(row) for row in suffixes], device=device)  # (rows,)
        slots = torch.arange(prefix + longest, device=device).expand(len(ids), -1)
        valid = slots < prefix + lengths[:, None]
        hidden = self._forward(ids, slots[:, prefix:], slots, valid, cache)  # (rows, longest, width)
        hidden = hidden[torch.arange(len(ids), device=device), lengths - 1]
        logits = self._model.lm_head(hidden)  # (rows, vocabulary)
        p_yes = self._yes_or_no.probability(logits)
        said: list[list[int]] = [[] for _ in suffixes]
        row_of = torch.arange(len(ids), device=device)  # question of each row that is left
        speaking = torch.ones_like(row_of, dtype=torch.bool)  # has not ended its answer
        positions = prefix + lengths
        for count in range(1, self._new + 1):
            chosen = logits.float().argmax(-1)
            speaking = speaking & ~torch.isin(chosen, self._stops)
            for row, token in zip(row_of[speaking].tolist(), chosen[speaking].tolist(), strict=True):
                said[row].append(token)
            left = int(speaking.sum())
            if count == self._new or not left:
                break
            if left <= _COMPACT * len(speaking):
                kept = speaking.nonzero().squeeze(-1)
                cache.batch_select_indices(kept)
                row_of, chosen, positions, speaking = row_of[kept], chosen[kept], positions[kept], speaking[kept]
                slots, valid = slots[kept], valid[kept]
            slots = torch.cat([slots, positions[:, None]], dim=1)
            valid = torch.cat([valid, torch.ones_like(valid[:, :1])], dim=1)
            hidden = self._forward(chosen[:, None], positions[:, None], slots, valid, cache)
            logits = self._model.lm_head(hidden[:, -1])
            positions = positions + 1
        texts = self._processor.tokenizer.batch_decode(said, skip_special_tokens=True)
        return [Answer(text.strip(), p, tuple(row)) for text, p, row in zip(texts, p_yes, said, strict=True)]

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, valid: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """Append tokens to the cache and return their hidden states (rows, tokens, width)."""
        sliding = mask(positions, slots, valid, self._window, self._model.dtype)
        full = mask(positions, slots, valid, None, self._model.dtype)
        masks = by_kind(self._model.config.text_config, full, sliding)
        outputs = self._model.model(
            input_ids=ids, attention_mask=masks, position_ids=positions, past_key_values=cache, use_cache=True
        )
        hidden: torch.Tensor = outputs.last_hidden_state
        return hidden
