"""The training forward pass: the mathematics of stock Llava without the work that no loss depends on.

Features of a frozen encoder come from a cache, conversations stand in one stream without padding or mask, and the loss
is computed only where a token is supervised, without ever holding the logits of all words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from multimodal_gemma.model.stream import Stream
from multimodal_gemma.model.vocabulary_loss import vocabulary_loss


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
        hidden = self._hidden(pixels.to(dtype))
        return hidden[:, 1:] if self.drop_cls else hidden

    def _hidden(self, pixels: Tensor) -> Tensor:
        """Return what the chosen layer gives, (images, patches, V), without computing those behind it."""
        total = self.tower.config.num_hidden_layers
        last = total + self.layer  # 0 is the first layer, -1 what they all begin with
        if not 0 <= last < total - 1:
            states: Tensor = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states[self.layer]
            return states
        (layers,) = (part for part in self.tower.modules() if isinstance(part, nn.ModuleList) and len(part) == total)

        def enough(_module: nn.Module, _inputs: object, output: Any) -> None:
            raise _Enough(output if isinstance(output, Tensor) else output[0])

        hook = layers[last].register_forward_hook(enough)
        try:
            self.tower(pixel_values=pixels)
        except _Enough as found:
            return found.states
        finally:
            hook.remove()
        raise AssertionError("the tower computes all of its layers in order")


class _Enough(Exception):
    """Ends an encoder's forward pass at the layer whose states are wanted."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


def encoder_of(llava: LlavaForConditionalGeneration, processor: LlavaProcessor) -> Encoder:
    """Return a model's encoder with the normalisation of its stock processor."""
    stock = processor.image_processor
    encoder = Encoder(
        llava,
        mean=list(stock.image_mean) if stock.do_normalize else [0.0, 0.0, 0.0],
        std=list(stock.image_std) if stock.do_normalize else [1.0, 1.0, 1.0],
        rescale=stock.rescale_factor if stock.do_rescale else 1.0,
    )
    return encoder.to(llava.device)


class SupervisedLoss(nn.Module):
    """Sum of the cross-entropies of the supervised tokens.

    Args:
        llava: the joined model, with or without adapters inside, its language model attending over streams.
        encoder: its vision tower with normalisation; needed where images are given instead of features.
    """

    def __init__(self, llava: LlavaForConditionalGeneration, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.llava, self.encoder = llava, encoder

    def forward(self, stream: Stream, pictures: Tensor | None) -> Tensor:
        """Return the summed loss in nats, float32 ().

        Args:
            stream: on the model's device.
            pictures: unprojected features (I, P, V) of the encoder, or uint8 images (I, H, W, 3) that are encoded here
                so that the encoder learns; None without images.
        """
        return self.head_loss(self.states(stream, pictures), stream.targets)

    def states(self, stream: Stream, pictures: Tensor | None) -> Tensor:
        """Return the hidden states that predict the supervised tokens, (S, D); see `forward`."""
        hidden: Tensor = self.llava.model.language_model(
            inputs_embeds=self.embed(stream, pictures)[None],
            position_ids=stream.position_ids[None],
            attention_mask=None,
            use_cache=False,  # else transformers takes the stream for a cached conversation
            runs=stream.attention,
        ).last_hidden_state[0]  # (T, D)
        return hidden.index_select(0, stream.rows)

    def head_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the summed cross-entropy, float32 (), of hidden states (S, D) that predict targets, int64 (S,)."""
        cap = getattr(self.llava.config.text_config, "final_logit_softcapping", None)
        return vocabulary_loss(hidden, self.llava.lm_head.weight, targets, cap)

    def embed(self, stream: Stream, pictures: Tensor | None) -> Tensor:
        """Return what the language model reads (T, D): words, and projected features in the images' places."""
        embeds: Tensor = self.llava.model.get_input_embeddings()(stream.input_ids)  # scaled where the family does
        projector = self.llava.model.multi_modal_projector
        if pictures is None:
            if self.training and not embeds.requires_grad and not _learns(self.llava.model.language_model):
                # Words alone have nothing that learns: the step has a gradient all the same, of zero.
                zero = sum(weight.sum() for weight in projector.parameters()) * 0.0
                return embeds + zero
            return embeds
        features = self.encoder(pictures) if self.encoder is not None else pictures
        projected = projector(features.to(projector.linear_1.weight.dtype)).flatten(0, 1)  # (I * P, D)
        return embeds.index_copy(0, stream.image_positions, projected.to(embeds.dtype))


def _learns(part: nn.Module) -> bool:
    return any(weight.requires_grad for weight in part.parameters())
