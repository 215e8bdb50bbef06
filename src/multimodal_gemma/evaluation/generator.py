"""Short answers to many questions about few images, equal to stock `generate` and, where it can be, far cheaper.

Questions about one image share nearly all of their prompt: hundreds of image tokens, then a dozen of words. The encoder
and the shared prefix run once an image; its keys and values are repeated for that image's questions, which then run as
one right-padded batch of suffixes, and decode greedily together. Images with few questions share a batch. A model that
cannot be asked so is asked by its own `generate`.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, LlavaForConditionalGeneration
from transformers.cache_utils import Cache, DynamicLayer

from multimodal_gemma import logs
from multimodal_gemma.evaluation.asking import Answer
from multimodal_gemma.evaluation.prompts import Prompter, common_prefix, stop_tokens
from multimodal_gemma.model.attention import KINDS
from multimodal_gemma.model.forward import YesOrNo

if TYPE_CHECKING:
    from PIL.Image import Image

_COMPACT = 0.75  # rows are dropped once so few still speak: dropping copies what is left
# What else of a generation configuration changes the choice of greedy search, with the value that leaves it alone.
_PLAIN = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale"), 1.0),
    **dict.fromkeys(("no_repeat_ngram_size", "min_length", "min_new_tokens", "penalty_alpha"), 0),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id")),
    **dict.fromkeys(("forced_eos_token_id", "sequence_bias", "exponential_decay_length_penalty", "stop_strings")),
    **{"num_beams": 1, "watermarking_config": None},
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
        if value not in (None, plain):
            return f"its generation configuration sets {name}={value}"
    return None if Prompter(processor).image_first() else "its chat template puts the image after the question"


class Generator(abc.ABC):
    """Answers questions about images, greedily.

    Args:
        model: stock image-text-to-text model in eval mode.
        processor: its stock processor with a chat template.
        suffix: appended to each question.
        max_new_tokens: longest answer, tokens.
        batch_tokens: positions that a batch of questions may hold at once: prompts, padding and answers.
    """

    def __init__(
        self, model: Any, processor: Any, *, suffix: str = "", max_new_tokens: int = 16, batch_tokens: int = 16_384
    ) -> None:
        self._model, self._processor = model, processor
        self._prompter = Prompter(processor, suffix=suffix)
        self._new, self._budget = max_new_tokens, batch_tokens
        self._stops = stop_tokens(model, processor)
        self._yes_or_no = YesOrNo(processor.tokenizer)

    @abc.abstractmethod
    def answer(self, asked: Iterable[tuple[Image, Sequence[str]]]) -> Iterator[list[Answer]]:
        """Yield, for each image in turn, the answers to its questions in their order."""

    def _answers(self, said: Sequence[Sequence[int]], p_yes: Sequence[float | None]) -> list[Answer]:
        texts = self._processor.tokenizer.batch_decode(said, skip_special_tokens=True)
        return [Answer(text.strip(), p, tuple(row)) for text, p, row in zip(texts, p_yes, said, strict=True)]


def fastest(model: Any, processor: Any, **settings: Any) -> Generator:
    """Return the fastest generator that gives a model's stock answers; a slower one is said in the log.

    Args:
        model: see `Generator`.
        processor: its processor.
        settings: the generator's.
    """
    reason = obstacle(model, processor)
    if reason:
        logs.get("evaluate").info(f"asking by stock generate, an image at a time: {reason}")
    return (StockGenerator if reason else SuffixGenerator)(model, processor, **settings)


class StockGenerator(Generator):
    """Answers by `generate`, for any model: the questions of one image are a left-padded batch."""

    @torch.inference_mode()
    def answer(self, asked: Iterable[tuple[Image, Sequence[str]]]) -> Iterator[list[Answer]]:
        """Yield, for each image in turn, the answers to its questions in their order."""
        for image, questions in asked:
            prompts = [self._prompter.render(question) for question in questions]
            length = self._inputs(image, [max(prompts, key=len)])["input_ids"].shape[1]
            step = max(1, self._budget // (length + self._new))
            batches = (prompts[start : start + step] for start in range(0, len(prompts), step))
            yield [answer for batch in batches for answer in self._generate(image, batch)]

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
        padding = self._processor.tokenizer.pad_token_id
        output = self._model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=self._new,
            eos_token_id=self._stops,
            pad_token_id=padding if padding is not None else self._stops[0],
            return_dict_in_generate=True,
            output_logits=True,
        )
        rows = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        ends = (next((place for place, token in enumerate(row) if token in self._stops), None) for row in rows)
        said = [row[:end] for row, end in zip(rows, ends, strict=True)]
        return self._answers(said, self._yes_or_no.probability(output.logits[0]))


class SuffixGenerator(Generator):
    """Answers by shared prefixes. See `obstacle` for the models that it takes."""

    def __init__(self, model: Any, processor: Any, **settings: Any) -> None:
        super().__init__(model, processor, **settings)
        self._image_token = model.config.image_token_id
        self._ends = torch.tensor(self._stops, device=model.device)

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
            room = max(map(len, suffixes)) + self._new
            repeated = Cache(layers=[_Reserved(layer, rows, room) for layer in cache.layers])
            answers += self._decode(repeated, len(prefix), suffixes)
        position = 0
        for _, _, asked in waiting:
            yield answers[position : position + len(asked)]
            position += len(asked)

    def _prefill(self, prefix: list[int], pixels: torch.Tensor) -> Cache:
        """Run encoder and prefix once an image: (images, positions)."""
        device, cache = self._model.device, DynamicCache()
        ids = torch.tensor([prefix], device=device).expand(len(pixels), -1)
        pixels = pixels.to(device, self._model.dtype)
        self._model.model(input_ids=ids, pixel_values=pixels, past_key_values=cache, use_cache=True)
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
            speaking = speaking & ~torch.isin(chosen, self._ends)
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
        return self._answers(said, p_yes)

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, valid: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """Append tokens to the cache and return their hidden states (rows, tokens, width)."""
        text = self._model.config.text_config
        window = getattr(text, "sliding_window", None)
        masks: Any = {
            "full_attention": _mask(positions, slots, valid, None, self._model.dtype),
            "sliding_attention": _mask(positions, slots, valid, window, self._model.dtype),
        }
        # A language model with one kind of layer takes its mask as it is; what names none is full without a window.
        kinds = set(getattr(text, "layer_types", None) or ["sliding_attention"])
        masks = masks if len(kinds) == 2 else masks[kinds.pop()]
        outputs = self._model.model(
            input_ids=ids, attention_mask=masks, position_ids=positions, past_key_values=cache, use_cache=True
        )
        hidden: torch.Tensor = outputs.last_hidden_state
        return hidden


class _Reserved(DynamicLayer):
    """A prefix's keys and values in one layer, (rows, heads, positions, head width), shared out to many questions.

    The stock dynamic cache grows by concatenation, which copies everything at each token; here the room for a short
    answer is reserved at once. All positions are kept: a layer's sliding window is a matter of the mask.

    Args:
        source: layer of a forward pass over (images, positions); left as it is.
        rows: image index of each row, (rows,), int64.
        room: positions that may be appended.
    """

    def __init__(self, source: Any, rows: torch.Tensor, room: int) -> None:
        super().__init__()
        self._buffers = [self._reserve(tensor, rows, room) for tensor in (source.keys, source.values)]
        self.dtype, self.device = source.keys.dtype, source.keys.device
        self.is_initialized = True
        self._show(source.keys.shape[-2])

    @staticmethod
    def _reserve(prefix: torch.Tensor, rows: torch.Tensor, room: int) -> torch.Tensor:
        images, heads, length, width = prefix.shape
        buffer = prefix.new_empty(len(rows), heads, length + room, width)
        buffer[:, :, :length] = prefix[rows] if images > 1 else prefix
        return buffer

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append positions and return all."""
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only some rows."""
        length = self.keys.shape[-2]
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._show(length)


def _mask(
    query: torch.Tensor, key: torch.Tensor, valid: torch.Tensor, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return the additive attention mask of queries over cached keys, by their positions in the text.

    Right padding inside a batch of suffixes leaves holes in the cache, so a slot's number is not its position:
    causality and sliding window are decided on positions, as if each row stood alone.

    Args:
        query: position of each query, (rows, queries), int64.
        key: position of each cached slot, (rows, slots), int64.
        valid: whether the slot holds a token, (rows, slots), bool.
        window: a key further back than this many positions is out of sight; None: nothing is.
        dtype: of the model.

    Returns:
        (rows, 1, queries, slots): 0 where seen, the dtype's minimum elsewhere.
    """
    distance = query[:, :, None] - key[:, None, :]
    seen = valid[:, None, :] & (distance >= 0)
    if window is not None:
        seen &= distance < window
    blocked = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return blocked.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
