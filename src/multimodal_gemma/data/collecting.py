"""The images that conversations or benchmarks name: into shards, or into a record of those that cannot be had.

Nothing is ever put in the place of a missing image. It is written to `missing.jsonl` with the reason, and when more are
missing than `data.max_missing_fraction` allows, the download fails with the first of them in its sentence.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from multimodal_gemma import files, logs
from multimodal_gemma.config.schema import DataConfig
from multimodal_gemma.data.commits import Commits
from multimodal_gemma.data.fetching import fetch_all
from multimodal_gemma.data.shards import write_image_shards
from multimodal_gemma.data.sources.base import Source, Unavailable
from multimodal_gemma.errors import InputError
from multimodal_gemma.progress import Progress

MISSING = "missing.jsonl"


@dataclasses.dataclass
class Collected:
    """What came of the images that were asked for.

    Attributes:
        images: how many are in the shards.
        bytes: their size.
        missing: {"file_name", "reason"} of each that is not.
    """

    images: int = 0
    bytes: int = 0
    missing: list[dict[str, str]] = dataclasses.field(default_factory=list)


def collect(
    source: Source | None,
    names: Sequence[str],
    data: DataConfig,
    output: Path,
    record: Path,
    fault: Callable[[bytes], str] | None = None,
) -> Collected:
    """Write image shards and `missing.jsonl` into `output`.

    Args:
        source: the images' location; may be None if no image is named.
        names: distinct file names.
        data: what an image may cost.
        output: the artifact's folder; shards that an interrupted attempt finished there are kept.
        record: the file that says which those are.
        fault: says of the bytes of an image why they are of no use, "" if they are.

    Raises:
        InputError: the source does not answer, or `output` cannot be written.
    """
    commits = Commits(output, record, names)
    collected = Collected(len(commits.held), commits.image_bytes)
    wanted = sorted(set(names) - commits.held)
    if commits.held:
        logs.get("download").info("%s of %s images are there already", f"{len(commits.held):,}", f"{len(names):,}")

    def usable() -> Iterator[tuple[str, bytes]]:
        if source is None:
            return
        start, before = time.monotonic(), collected.bytes
        with Progress("download", len(names), "image", done=len(commits.held)) as progress:
            for name, content in fetch_all(source, wanted, data.max_image_bytes, fault):
                if isinstance(content, Unavailable):
                    collected.missing.append({"file_name": name, "reason": str(content)})
                else:
                    collected.images += 1
                    collected.bytes += len(content)
                    yield name, content
                rate = (collected.bytes - before) / 1e6 / max(time.monotonic() - start, 1e-9)
                progress.advance(1, **{"MB/s": f"{rate:,.1f}", "missing": f"{len(collected.missing):,}"})

    write_image_shards(output, usable(), data.shard_bytes, first=len(commits.shards), finished=commits.add)
    files.write_jsonl(output / MISSING, collected.missing)
    return collected


def check_missing(missing: Sequence[dict[str, str]], asked: int, allowed: float, output: Path) -> None:
    """Refuse an artifact that lacks too many images.

    Args:
        missing: rows of `missing.jsonl`.
        asked: how many images were named.
        allowed: `data.max_missing_fraction`.
        output: the artifact's folder.

    Raises:
        InputError: the share of missing images is above `allowed`.
    """
    share = len(missing) / max(asked, 1)
    if share <= allowed:
        return
    first = missing[0]
    raise InputError(
        f"download: {len(missing):,} of {asked:,} images could not be had ({share:.2%}, allowed {allowed:.2%}). "
        f"First: {first['file_name']} ({first['reason']}). The list: {output / MISSING}. "
        f"Allow more with data.max_missing_fraction={_round_up(share):g}."
    )


def _round_up(share: float) -> float:
    """Return the next larger number with one significant digit."""
    step = 10.0 ** math.floor(math.log10(share))
    return min(round(math.ceil(share / step - 1e-9) * step, 12), 1.0)
