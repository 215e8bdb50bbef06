"""No score before it is known whether the model has seen the benchmark's images in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from multimodal_gemma.errors import InputError

TRAINING_IMAGES = "training_images.txt"
_SHOWN = 10  # ids that an error lists


@dataclasses.dataclass(frozen=True)
class Contamination:
    """What is known about training images among the benchmark's.

    Attributes:
        status: "clean"; "unknown" (the model does not say what it was trained on); "allowed" (there are hits, and
            data.contamination=allow lets them pass).
        images: ids that are in both; empty unless allowed.
    """

    status: str
    images: list[str]

    @property
    def sentence(self) -> str:
        """What a report says about it."""
        if self.status == "clean":
            return "No benchmark image was in the training split."
        if self.status == "unknown":
            return "The model does not state its training images, so whether it has seen benchmark images is unknown."
        return (
            f"Contamination was allowed by configuration: {len(self.images):,} benchmark images were in the training "
            "split. These scores are no measure of what the model does on new images."
        )


def training_images(model: Path, dataset: Path | None = None) -> set[str] | None:
    """Return the ids of the images that a model was trained on; None if nothing states them.

    Args:
        model: folder that may hold training_images.txt, one image id a line.
        dataset: processed dataset that it was trained on, read where the model lists none.
    """
    path = model / TRAINING_IMAGES
    if path.is_file():
        return set(path.read_text(encoding="utf-8").split("\n")) - {""}
    if dataset is not None:
        from multimodal_gemma.data.processed import ProcessedDataset

        return set(ProcessedDataset(dataset).split("train").image_ids) - {""}
    return None


def check(trained: set[str] | None, benchmark_images: Iterable[str], policy: str) -> Contamination:
    """Compare a model's training images with a benchmark's.

    Args:
        trained: what `training_images` returned.
        benchmark_images: image ids of all questions.
        policy: data.contamination; "allow" records hits, anything else refuses them.

    Raises:
        InputError: a training image is in the benchmark; the sentence lists the ids.
    """
    if trained is None:
        return Contamination("unknown", [])
    hits = sorted(set(benchmark_images) & trained)
    if hits and policy == "allow":
        return Contamination("allowed", hits)
    if hits:
        more = f" and {len(hits) - _SHOWN:,} more" if len(hits) > _SHOWN else ""
        raise InputError(
            f"evaluate: {len(hits):,} images of the benchmarks were in the training split, so a score would mean "
            f"nothing: {', '.join(hits[:_SHOWN])}{more}. Preprocess with data.contamination=drop and train again, or "
            "accept it with data.contamination=allow."
        )
    return Contamination("clean", [])
