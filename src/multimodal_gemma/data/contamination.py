"""No image that a benchmark asks about may be learnt from: a score on it would measure memory.

Identity is COCO's twelve digits (see `shards.image_id`), because the same photograph has several file names across
releases. Validation images are judged like training images: early stopping chooses the model by them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from multimodal_gemma import manifest
from multimodal_gemma.data import benchmarks as questions
from multimodal_gemma.data.conversations import Conversation
from multimodal_gemma.data.shards import ImageShards, image_id
from multimodal_gemma.errors import InputError

_NAMED = 5  # ids that an error lists


@dataclasses.dataclass(frozen=True)
class Contamination:
    """What the comparison with the benchmarks found."""

    status: str  # "clean" (none found, or all dropped), "allowed" (kept on request) or "unknown" (no benchmarks given)
    images: list[str]  # ids of the dataset's images that a benchmark asks about, ascending
    names: frozenset[str]  # file names of those images: a photograph that has several is found under all of them
    dropped: bool  # whether their conversations are left out

    def drops(self, conversation: Conversation) -> bool:
        """Tell whether a conversation is left out because a benchmark asks about its image."""
        return self.dropped and conversation.image in self.names


def benchmark_images(folder: Path) -> set[str]:
    """Return the ids of every image that a benchmarks artifact asks about or holds."""
    asked = {question.image for setting in questions.load_pope(folder).values() for question in setting}
    ids = {image_id(name) for name in (*asked, *ImageShards(folder).names())}
    return ids | {question.image_id for question in questions.load_vqa(folder)}


def check_lookalikes(lookalikes: dict[str, str], policy: str) -> None:
    """Refuse a dataset that holds a benchmark's picture under another name, given by the dataset's name of it.

    Raises:
        InputError: the policy (data.contamination) is "fail" and there is such an image.
    """
    if lookalikes and policy == "fail":
        pairs = [f"{name} is {found}" for name, found in sorted(lookalikes.items())]
        raise _refused(f"{len(pairs):,} images of the dataset show pictures of the benchmarks under other names", pairs)


def check(
    conversations: list[Conversation], digests: dict[str, str], benchmarks: Path | None, policy: str
) -> Contamination:
    """Compare the conversations' images with the benchmarks'.

    Args:
        conversations: all of the dataset's.
        digests: sha256 by file name, as far as they are known: equal bytes are one image.
        benchmarks: a benchmarks artifact; None if there is none.
        policy: data.contamination: "fail", "drop" or "allow".

    Raises:
        InputError: the policy is "fail" and an image is in both; the sentence lists the first ids.
    """
    if benchmarks is None:
        return Contamination("unknown", [], frozenset(), dropped=False)
    manifest.read(benchmarks, "benchmarks")
    names = {conversation.image for conversation in conversations if conversation.image is not None}
    own = {image_id(name) for name in names}
    shared = sorted(own & benchmark_images(benchmarks))
    if not shared:
        return Contamination("clean", [], frozenset(), dropped=False)
    ids = set(shared)
    same = {digests.get(name, name) for name in names if image_id(name) in ids}
    found = frozenset(name for name in names if digests.get(name, name) in same)
    if policy == "fail":
        raise _refused(f"{len(shared):,} of {len(own):,} images of the dataset are in the benchmarks", shared)
    return Contamination("clean" if policy == "drop" else "allowed", shared, found, dropped=policy == "drop")


def _refused(found: str, which: list[str]) -> InputError:
    listed = ", ".join(which[:_NAMED]) + (", …" if len(which) > _NAMED else "")
    return InputError(
        f"preprocess: {found} ({listed}), so scores would measure memory. Leave them out with data.contamination=drop, "
        "or keep them with data.contamination=allow (such a model is never promoted)."
    )
