"""The training forward pass: the mathematics of stock Llava without the work that no loss depends on.

Features of a frozen encoder come from a cache, the loss is computed only where a token is supervised and without ever
holding the logits of all words, and rows are padded on the right without an attention mask, which causal attention
makes exact: no real position ever looks at padding.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import LlavaForConditionalGeneration

from multimodal_gemma.model.assembly import cap_logits
from multimodal_gemma.model.shared_prefix import SharedBatch, supervised_states
from multimodal_gemma.model.vocabulary_loss import vocabulary_loss


@dataclasses.dataclass(frozen=True)
class Batch:
    """A micro-batch, ready for the forward pass. R rows of L positions, I images of P tokens, S supervised tokens.

    Attributes:
        input_ids: int64 (R, L), image placeholders repeated, padded on the right.
        image_positions: int64 (I * P,), places of the image tokens in the flattened (R * L) positions, image by image.
        rows: int64 (S,), places in the flattened positions that predict a supervised token.
        targets: int64 (S,), the supervised tokens.
        image_indices: the I images in the order of the rows that hold one.
        sample_indices: the R samples.
        real: positions that hold a token or an image's patch; the rest is padding.
    """

    input_ids: Tensor
    image_positions: Tensor
    rows: Tensor
    targets: Tensor
    image_indices: list[int]
    sample_indices: list[int]
    real: int

    @property
    def positions(self) -> int:
        """Positions that go through the language model, padding counted."""
        return self.input_ids.numel()

    @property
    def pairs(self) -> int:
        """Sum over rows of length squared, which attention costs."""
        rows, length = self.input_ids.shape
        return rows * length**2

    @property
    def shape(self) -> tuple[int, int]:
        """R and L."""
        rows, length = self.input_ids.shape
        return rows, length

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`."""
        if device.type == "cpu":
            return self
        moved = {
            name: getattr(self, name).pin_memory().to(device, non_blocking=True)
            for name in ("input_ids", "image_positions", "rows", "targets")
        }
        return dataclasses.replace(self, **moved)


class Encoder(nn.Module):
    """Images to patch features, normalised as the stock image processor does, on whatever device the encoder is.

    Args:
        llava: the joined model.
        mean: of each channel, on the scale [0, 1].
        std: of each channel, on the scale [0, 1].
        rescale: factor from uint8 to [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, llava: LlavaForConditionalGeneration, mean: list[float], std: list[float], rescale: float
    ) -> None:
        super().__init__()
        self.tower = llava.model.vision_tower
        self.layer = llava.config.vision_feature_layer
        self.drop_cls = llava.config.vision_feature_select_strategy == "default"
        self.rescale = rescale
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (images, patches, V) of uint8 images (images, H, W, 3)."""
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) * self.rescale
        pixels = (pixels - self.mean) / self.std  # (images, 3, H, W)
        dtype = next(self.tower.parameters()).dtype
        hidden = self.tower(pixel_values=pixels.to(dtype), output_hidden_states=True).hidden_states[self.layer]
        return hidden[:, 1:] if self.drop_cls else hidden


def needs_no_logits(llava: LlavaForConditionalGeneration) -> bool:
    """Tell whether a model's head is what `vocabulary_loss` computes: a plain linear map that does not learn."""
    head = llava.lm_head
    capped = getattr(llava.config.text_config, "final_logit_softcapping", None) is not None
    return type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad and not capped


class SupervisedLoss(nn.Module):
    """Sum of the cross-entropies of the supervised tokens.

    Args:
        llava: the joined model, with or without adapters inside.
        encoder: its vision tower with normalisation; needed where images are given instead of features.
        logit_rows: supervised tokens whose logits exist at a time under a head that learns or caps its logits; None:
            all. A large vocabulary's logits take more memory than the rest of the step, and computing them in pieces,
            again for the gradient, takes a third more time in the head. Other heads need no logits.
    """

    def __init__(
        self, llava: LlavaForConditionalGeneration, encoder: Encoder | None = None, logit_rows: int | None = None
    ) -> None:
        super().__init__()
        self.llava, self.encoder, self.logit_rows = llava, encoder, logit_rows

    def forward(self, batch: Batch | SharedBatch, pictures: Tensor | None) -> Tensor:
        """Return the summed loss in nats, float32 ().

        Args:
            batch: the micro-batch, on the model's device.
            pictures: unprojected features (I, P, V) of the encoder, or uint8 images (I, H, W, 3) that are encoded here
                so that the encoder learns; None without images.
        """
        if isinstance(batch, SharedBatch):
            assert pictures is not None
            supervised = supervised_states(self.llava, batch, self._project(pictures))  # (S, D)
        else:
            hidden = self.llava.model.language_model(
                inputs_embeds=self.embed(batch, pictures), attention_mask=None, use_cache=False
            ).last_hidden_state
            supervised = hidden.flatten(0, 1).index_select(0, batch.rows)  # (S, D)
        return self.head_loss(supervised, batch.targets)

    def head_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the summed cross-entropy, float32 (), of hidden states (S, D) that predict targets, int64 (S,)."""
        if needs_no_logits(self.llava):
            return vocabulary_loss(hidden, self.llava.lm_head.weight, targets)
        if self.logit_rows is None or len(hidden) <= self.logit_rows:
            return self._entropy(hidden, targets)
        pieces = zip(hidden.split(self.logit_rows), targets.split(self.logit_rows), strict=True)
        sums = [checkpoint(self._entropy, *piece, use_reentrant=False) for piece in pieces]
        return torch.stack(sums).sum()

    def embed(self, batch: Batch, pictures: Tensor | None) -> Tensor:
        """Return what the language model reads (R, L, D): words, and projected features in the images' places."""
        embeds = self.llava.model.get_input_embeddings()(batch.input_ids)  # (R, L, D), scaled where the family does
        if pictures is None:
            return embeds
        flat = embeds.flatten(0, 1)  # (R * L, D)
        flat = flat.index_copy(0, batch.image_positions, self._project(pictures).flatten(0, 1).to(flat.dtype))
        return flat.view_as(embeds)

    def _project(self, pictures: Tensor) -> Tensor:
        """Return images as the language model reads them, (I, P, D)."""
        projector = self.llava.model.multi_modal_projector
        features = self.encoder(pictures) if self.encoder is not None else pictures
        projected: Tensor = projector(features.to(projector.linear_1.weight.dtype))
        return projected

    def _entropy(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = cap_logits(self.llava.lm_head(hidden).float(), self.llava.config.text_config)  # (S, vocabulary)
        return functional.cross_entropy(logits, targets, reduction="sum")
