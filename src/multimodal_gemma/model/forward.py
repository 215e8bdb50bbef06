"""The training forward pass: the mathematics of stock Llava without the work that no loss depends on.

Features of a frozen encoder come from a cache, conversations stand in one stream without padding or mask, and the loss
is computed only where a token is supervised, without ever holding the logits of all words.

Where a supervised answer begins with a yes or a no, the same states tell what the model would have said: the mass of
every spelling of yes stands against the mass of every spelling of no, and nothing has to be generated.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from multimodal_gemma.model.assembly import cap_logits
from multimodal_gemma.model.stream import SampleLike, Stream
from multimodal_gemma.model.vocabulary_loss import vocabulary_loss

FEWEST = 20  # answers of each kind in held-out conversations; fewer tell nothing
_YES = ("Yes", "yes", "YES", " Yes", " yes", " YES")
_NO = ("No", "no", "NO", " No", " no", " NO")


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


class YesOrNo:
    """Tells yes from no.

    Spellings of a single token decide; only a vocabulary without them is read by the first tokens of its spellings, as
    far as they tell yes from no.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        spelled = [[tokenizer.encode(word, add_special_tokens=False) for word in words] for words in (_YES, _NO)]
        single = [{ids[0] for ids in spellings if len(ids) == 1} for spellings in spelled]
        first = [{ids[0] for ids in spellings if ids} for spellings in spelled]
        yes, no = single if all(single) else first
        told = bool(yes - no and no - yes)
        self._yes, self._no = (sorted(yes - no), sorted(no - yes)) if told else ([], [])

    def count(self, conversations: Iterable[SampleLike]) -> tuple[int, int]:
        """Return how many answers of conversations begin with a yes, and how many with a no."""
        yes = no = 0
        for sample in conversations:
            begins = sample.supervised & ~np.concatenate([[False], sample.supervised[:-1]])
            words = sample.input_ids[begins]
            yes, no = yes + int(np.isin(words, self._yes).sum()), no + int(np.isin(words, self._no).sum())
        return yes, no

    def answers(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """Return which supervised tokens of a stream begin an answer with a yes, and which with a no; bool (S,)."""
        rows, targets = stream.rows, stream.targets
        begins = torch.ones_like(rows, dtype=torch.bool)
        begins[1:] = rows[1:] != rows[:-1] + 1  # the token before it is not supervised
        yes, no = (begins & torch.isin(targets, targets.new_tensor(words)) for words in (self._yes, self._no))
        return yes, no

    def tally(self, hidden: Tensor, stream: Stream, llava: LlavaForConditionalGeneration) -> Tensor:
        """Return how many answers are yes, how many of them P(yes) tells, and the same of no; float64 (4,).

        Args:
            hidden: what predicts the supervised tokens of `stream`, (S, D).
            stream: on the same device.
            llava: has the head; of its words only the spellings of yes and no are computed.
        """
        yes, no = self.answers(stream)
        logits = functional.linear(hidden, llava.lm_head.weight[[*self._yes, *self._no]])  # (S, spellings)
        capped = cap_logits(logits.float(), llava.config.text_config)
        said = _odds(*capped.split([len(self._yes), len(self._no)], dim=1)) >= 0
        return torch.stack([kind.sum() for kind in (yes, yes & said, no, no & ~said)]).double()

    def probability(self, logits: Tensor) -> list[float | None]:
        """Return P(yes) of each row of logits (rows, vocabulary); None if the vocabulary has no such tokens."""
        if not self._yes:
            return [None] * len(logits)
        wide = logits.float()
        likely: list[float | None] = _odds(wide[:, self._yes], wide[:, self._no]).sigmoid().tolist()
        return likely


def balanced_accuracy(yes: float, yes_right: float, no: float, no_right: float) -> float:
    """Return the mean of the shares of yes and of no that are told, in [0, 1]; a constant answer scores one half."""
    return (yes_right / yes + no_right / no) / 2


def _odds(yes: Tensor, no: Tensor) -> Tensor:
    """Return the logarithm of P(yes) / P(no), (rows,), of the logits of their spellings."""
    return yes.logsumexp(-1) - no.logsumexp(-1)
