"""The forward pass over conversations that begin with the same image: the image once, then each conversation's words.

Under causal attention nothing at the image's positions depends on what is said afterwards. So the language model reads
the opening and the image once an image, keeps its keys and values, and reads each conversation's words behind them. The
loss is the same sum, and gradients flow back through the kept keys and values into the projector: evaluation asks many
questions of an image in this way, and training learns many conversations.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from transformers import DynamicCache, LlavaForConditionalGeneration

from multimodal_gemma.model.attention import additive_mask, by_kind


@dataclasses.dataclass(frozen=True)
class Words:
    """What conversations say after the image, R rows of L positions, S of them with a loss.

    Attributes:
        input_ids: int64 (R, L), padded on the right.
        images: int64 (R,), which of the batch's images each row begins with.
        rows: int64 (S,), places in the flattened (R * L) positions that predict a supervised token.
        targets: int64 (S,), the supervised tokens.
    """

    input_ids: Tensor
    images: Tensor
    rows: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Words:
        """Return them on `device`."""
        moved = {field.name: getattr(self, field.name).to(device) for field in dataclasses.fields(self)}
        return Words(**moved)


@dataclasses.dataclass(frozen=True)
class SharedBatch:
    """A micro-batch of conversations that begin with their image, I images of P tokens.

    Attributes:
        opening: int64 (1, H), the tokens before every image.
        words: rows of similar length together.
        image_indices: the I images.
        sample_indices: the conversations, in the order of the rows of `words`.
        image_tokens: P.
        real: positions that are computed, padding left out.
    """

    opening: Tensor
    words: list[Words]
    image_indices: list[int]
    sample_indices: list[int]
    image_tokens: int
    real: int

    def to(self, device: torch.device) -> SharedBatch:
        """Return the batch with its tensors on `device`."""
        if device.type == "cpu":
            return self
        words = [part.to(device) for part in self.words]
        return dataclasses.replace(self, opening=self.opening.to(device), words=words)

    @property
    def prefix(self) -> int:
        """Positions of the opening and the image."""
        return self.opening.shape[1] + self.image_tokens

    @property
    def targets(self) -> Tensor:
        """The supervised tokens, int64 (S,)."""
        return torch.cat([part.targets for part in self.words])

    @property
    def positions(self) -> int:
        """Positions that go through the language model, padding counted."""
        return len(self.image_indices) * self.prefix + sum(part.input_ids.numel() for part in self.words)

    @property
    def pairs(self) -> int:
        """Sum over rows of what attention costs: length squared where nothing came before."""
        own = len(self.image_indices) * self.prefix**2
        for part in self.words:
            rows, length = part.input_ids.shape
            own += rows * ((self.prefix + length) ** 2 - self.prefix**2)
        return own

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and positions of the longest."""
        rows = sum(len(part.input_ids) for part in self.words)
        return rows, self.prefix + max(part.input_ids.shape[1] for part in self.words)


def supervised_states(llava: LlavaForConditionalGeneration, batch: SharedBatch, projected: Tensor) -> Tensor:
    """Return the hidden states that predict the supervised tokens, (S, D), in the order of `batch.targets`.

    Args:
        llava: the joined model.
        batch: the micro-batch, on the model's device.
        projected: the images as the language model reads them, (I, P, D).
    """
    language, embed = llava.model.language_model, llava.model.get_input_embeddings()
    opening = embed(batch.opening).expand(len(projected), -1, -1)  # (I, H, D)
    kept = DynamicCache()  # without a configuration: windows are a matter of the masks
    language(
        inputs_embeds=torch.cat([opening, projected.to(opening.dtype)], dim=1),
        attention_mask=None,
        past_key_values=kept,
        use_cache=True,
    )
    found = []
    for part in batch.words:
        length = part.input_ids.shape[1]
        hidden = language(
            inputs_embeds=embed(part.input_ids),
            attention_mask=_mask(llava, batch.prefix, length),
            position_ids=torch.arange(batch.prefix, batch.prefix + length, device=part.images.device)[None],
            past_key_values=_of_rows(kept, part.images),
            use_cache=True,
        ).last_hidden_state  # (R, L, D)
        found.append(hidden.flatten(0, 1).index_select(0, part.rows))
    return torch.cat(found)


def _of_rows(kept: DynamicCache, images: Tensor) -> DynamicCache:
    """Return the cache of the rows' images; gradients of rows with the same image add up."""
    rows = DynamicCache()
    for number, layer in enumerate(kept.layers):
        rows.update(layer.keys.index_select(0, images), layer.values.index_select(0, images), number)
    return rows


def _mask(llava: LlavaForConditionalGeneration, prefix: int, length: int) -> object:
    """Return the mask of `length` positions behind `prefix` kept ones, the same for every row."""
    text = llava.config.text_config
    weight = llava.model.multi_modal_projector.linear_1.weight
    positions = torch.arange(prefix + length, device=weight.device)
    distance = positions[prefix:, None] - positions  # (length, prefix + length)
    dtype = (
        torch.get_autocast_dtype(weight.device.type) if torch.is_autocast_enabled(weight.device.type) else weight.dtype
    )
    full = distance >= 0
    window = getattr(text, "sliding_window", None)
    sliding = full & (distance < window) if window is not None else full
    return by_kind(text, additive_mask(full[None], dtype), additive_mask(sliding[None], dtype))
