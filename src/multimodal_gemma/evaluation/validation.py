"""Loss, perplexity and the yes-or-no threshold on the held-out conversations of the training data.

The conversations were split off by image before training, so a threshold found on them has seen neither the benchmark
nor the training images. Each of their answers that begins with a yes or a no is one labelled question: the model reads
the true conversation up to there, and its P(yes) is held against the word that follows.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from multimodal_gemma.evaluation.statistics import Threshold, best_threshold, perplexity
from multimodal_gemma.model import attention
from multimodal_gemma.model.assembly import cap_logits
from multimodal_gemma.model.forward import FEWEST, SupervisedLoss, YesOrNo, encoder_of
from multimodal_gemma.model.stream import Composer
from multimodal_gemma.progress import Progress

if TYPE_CHECKING:
    from multimodal_gemma.data.processed import ProcessedDataset

_ROWS = 1024  # rows of logits at once: over 262,144 words they take 1 GB


@dataclasses.dataclass(frozen=True)
class Validation:
    """What the held-out conversations say."""

    loss: float  # mean cross-entropy of the supervised tokens, nats; all tokens weigh alike, as in training
    tokens: int  # how many there are
    conversations: int  # how many hold them
    yes_answers: int  # answers among them that begin with yes
    no_answers: int  # answers that begin with no
    threshold: Threshold | None  # of P(yes), in best balance; None with fewer than `FEWEST` answers of either kind


def section(found: Validation | None, recorded: float | None) -> dict[str, Any]:
    """Return the section "validation" of metrics.json.

    Args:
        found: measured here; None if it was not.
        recorded: the loss that training left with the model, used where nothing was measured.
    """
    if found is not None:
        return {"source": "measured", **dataclasses.asdict(found), "perplexity": perplexity(found.loss)}
    if recorded is not None:
        return {"source": "training", "loss": recorded, "perplexity": perplexity(recorded), "threshold": None}
    return {}


@torch.inference_mode()
def validate(model: Any, processor: Any, dataset: ProcessedDataset, *, batch_tokens: int) -> Validation | None:
    """Run the validation split through a stock Llava model.

    Args:
        model: in eval mode; it must have learnt from this dataset, whose token ids are those of its tokenizer.
        processor: its stock processor.
        dataset: the processed dataset.
        batch_tokens: positions that a forward pass may hold.

    Returns:
        What was found; None if the split is empty.
    """
    split: Any = dataset.split("val")
    if not len(split):
        return None
    yes_or_no = YesOrNo(processor.tokenizer)
    order = np.lexsort((-split.lengths, split.image_indices))  # an image's conversations are neighbours
    budget = max(batch_tokens, int(split.lengths.max()))
    language, composer = model.model.language_model, Composer(split, dataset.image_tokens, dataset.image_token_id)
    states = SupervisedLoss(model, encoder_of(model, processor)).states
    kernel = attention.choose_kernel("auto", language, model.device, model.dtype)
    total, tokens = 0.0, 0
    sure: list[float | None] = []
    truth: list[bool] = []
    with Progress("validation", len(split), "conversation") as progress:
        for stream in composer.streams(order, budget):
            pictures = None
            if stream.image_indices:
                images = np.stack([dataset.image(index) for index in stream.image_indices])
                pictures = torch.from_numpy(images).to(model.device)
            with attention.streaming(language):
                hidden = states(stream.to(model.device, kernel), pictures)  # (supervised tokens, width)
            for start in range(0, len(hidden), _ROWS):
                logits = _logits(model, hidden[start : start + _ROWS])
                targets = stream.targets[start : start + _ROWS].to(logits.device)
                total += float(functional.cross_entropy(logits, targets, reduction="sum"))
            tokens += len(hidden)
            yes, no = yes_or_no.answers(stream)
            asked = (yes | no).nonzero().squeeze(-1)
            if len(asked):
                sure += yes_or_no.probability(_logits(model, hidden[asked]))
                truth += yes[asked].tolist()
            progress.advance(len(stream.sample_indices))
    positive = sum(truth)
    negative = len(truth) - positive
    enough = min(positive, negative) >= FEWEST
    threshold = best_threshold(np.array(sure), np.array(truth)) if enough else None
    return Validation(total / max(tokens, 1), tokens, len(split), positive, negative, threshold)


def _logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return float32 (rows, vocabulary)."""
    return cap_logits(model.lm_head(hidden).float(), model.config.text_config)
