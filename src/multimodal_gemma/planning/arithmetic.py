"""Floating-point operations of a training, counted from the models' shapes, and the GPUs that may do them.

A matrix product of m x k and k x n is 2mkn operations. What flows backward through a frozen weight costs another
forward; a learning weight costs a third. A GPU's figures are those of its maker's data sheet.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config, ModelConfig


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The widths of an encoder and a language model.

    Attributes:
        vision_width: V.
        vision_layers: of the encoder.
        vision_inner: of its MLP.
        image_tokens: P, patches an image becomes; the class token is not counted.
        patch: side of a patch, pixels.
        width: D of the language model.
        layers: of the language model.
        inner: of its gated MLP.
        heads: query heads.
        shared_heads: key and value heads.
        head_width: of one head.
        vocabulary: rows of the embedding table.
        tied: the head is the embedding table.
    """

    vision_width: int
    vision_layers: int
    vision_inner: int
    image_tokens: int
    patch: int
    width: int
    layers: int
    inner: int
    heads: int
    shared_heads: int
    head_width: int
    vocabulary: int
    tied: bool = True

    @classmethod
    def of(cls, vision: Any, text: Any) -> Shapes:
        """Read them from the configurations of stock models."""
        return cls(
            vision_width=vision.hidden_size,
            vision_layers=vision.num_hidden_layers,
            vision_inner=vision.intermediate_size,
            image_tokens=(vision.image_size // vision.patch_size) ** 2,
            patch=vision.patch_size,
            width=text.hidden_size,
            layers=text.num_hidden_layers,
            inner=text.intermediate_size,
            heads=text.num_attention_heads,
            shared_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_width=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            vocabulary=text.vocab_size,
            tied=bool(text.tie_word_embeddings),
        )

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's seven linear maps."""
        query, shared = self.heads * self.head_width, self.shared_heads * self.head_width
        return {
            "q_proj": (self.width, query),
            "k_proj": (self.width, shared),
            "v_proj": (self.width, shared),
            "o_proj": (query, self.width),
            "gate_proj": (self.width, self.inner),
            "up_proj": (self.width, self.inner),
            "down_proj": (self.inner, self.width),
        }

    @property
    def language_weights(self) -> int:
        """Weights of all linear maps of the language model, its head left out."""
        return self.layers * sum(before * after for before, after in self.linear.values())

    @property
    def head_weights(self) -> int:
        """Weights of the embedding table."""
        return self.width * self.vocabulary

    @property
    def projector_weights(self) -> int:
        """Weights and biases of Linear-GELU-Linear with the language model's width inside."""
        return self.vision_width * self.width + self.width * self.width + 2 * self.width

    @property
    def vision_weights(self) -> int:
        """Weights of the encoder's linear maps and patches."""
        layer = 4 * self.vision_width**2 + 2 * self.vision_width * self.vision_inner
        return self.vision_layers * layer + 3 * self.patch**2 * self.vision_width

    def adapter_weights(self, rank: int, targets: list[str]) -> int:
        """Weights of the low-rank adapters."""
        known = [self.linear[target] for target in targets if target in self.linear]
        return self.layers * rank * sum(before + after for before, after in known)


def trainable(shapes: Shapes, config: Config) -> int:
    """Return how many parameters learn; norms and biases of parts that learn as a whole are left out."""
    model = config.model
    count = shapes.projector_weights if model.projector_policy == "trained" else 0
    if model.language_policy == "lora":
        count += shapes.adapter_weights(model.lora.rank, model.lora.targets)
    elif model.language_policy == "full":
        count += shapes.language_weights + shapes.head_weights * (1 if shapes.tied else 2)
    return count + (shapes.vision_weights if model.vision_policy == "full" else 0)


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations of each part of a training step.

    Attributes:
        position: forward and backward of one position through the language model.
        pair: attention, for each row and length squared.
        supervised: head, for each supervised token.
        projected: projector, for each image.
        encoded: encoder forward, once an image where features are kept.
    """

    position: float
    pair: float
    supervised: float
    projected: float
    encoded: float

    @classmethod
    def of(cls, shapes: Shapes, model: ModelConfig) -> Work:
        """Count for a configuration."""
        times = 3 if model.language_policy == "full" else 2  # forward, backward, and the weights' own gradient
        rank = model.lora.rank if model.language_policy == "lora" else 0
        adapters = shapes.adapter_weights(rank, model.lora.targets)
        frozen = 2 * shapes.language_weights * times
        attention = 2 * shapes.layers * shapes.heads * shapes.head_width  # both products, half masked by causality
        tokens = shapes.image_tokens + 1
        seen = 4 * shapes.vision_layers * tokens**2 * shapes.vision_width
        return cls(
            position=frozen + 6 * adapters,
            pair=3 * attention,
            supervised=2 * shapes.head_weights * times,
            projected=6 * shapes.projector_weights * shapes.image_tokens,
            encoded=2 * shapes.vision_weights * tokens + seen,
        )

    def step(self, positions: int, pairs: int, supervised: int, images: int) -> float:
        """Return the operations of a step whose features are cached.

        Args:
            positions: padding counted.
            pairs: sum over rows of length squared.
            supervised: tokens with a loss.
            images: pictures that the projector sees.
        """
        return self.position * positions + self.pair * pairs + self.supervised * supervised + self.projected * images


@dataclasses.dataclass(frozen=True)
class Device:
    """One kind of GPU.

    Attributes:
        name: short name.
        marks: words that the driver's name for it holds, all of them.
        tflops: dense bf16 peak with fp32 accumulation, 10^12 operations a second (data sheet, without sparsity).
        memory_gb: 10^9 bytes.
        bandwidth: of its memory, 10^9 bytes a second.
        dollars: what an hour of one costs on demand; an order of magnitude to compare by, not an offer.
    """

    name: str
    marks: tuple[str, ...]
    tflops: float
    memory_gb: float
    bandwidth: float
    dollars: float


PRICES = "2026-11"  # when the dollars were written down

DEVICES = (
    Device("L4", ("L4",), 121, 24, 300, 0.8),
    Device("A10", ("A10",), 125, 24, 600, 1.2),
    Device("A100-40", ("A100", "40GB"), 312, 40, 1555, 3.0),
    Device("A100-80", ("A100", "80GB"), 312, 80, 2039, 4.0),
    Device("A10G", ("A10G",), 70, 24, 600, 1.2),
    Device("L40S", ("L40S",), 362, 48, 864, 1.9),
    Device("H100", ("H100", "HBM3"), 989, 80, 3350, 7.0),
    Device("H100 PCIe", ("H100", "PCIe"), 756, 80, 2000, 5.0),
    Device("H100 NVL", ("H100", "NVL"), 835, 94, 3900, 6.0),
    Device("GH200", ("GH200",), 989, 96, 4000, 6.0),
    Device("H200", ("H200",), 989, 141, 4800, 8.0),
    Device("B200", ("B200",), 2250, 180, 8000, 10.0),
)


def find_device(driver_name: str) -> Device | None:
    """Return the device that a driver's name means, e.g. "NVIDIA A100-SXM4-80GB"; None where it is not listed."""
    words = driver_name.replace("-", " ").split()
    return next((device for device in DEVICES if all(mark in words for mark in device.marks)), None)
