"""Turn a raw dataset into what training reads at memory speed.

Pictures are decoded and resized once, conversations tokenized once; the split, the check against the benchmarks and
the record of everything that was left out are made on the way. The same inputs give the same bytes, whatever the
number of processes, and whether or not slices of them were made before: by an attempt that was killed, for a dataset
that has grown since, or on another machine.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_gemma import files, locks, logs, manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages.summary import Summary

if TYPE_CHECKING:
    from multimodal_gemma.config import Config
    from multimodal_gemma.data.processed import ProcessedDataset
    from multimodal_gemma.data.slices import Slices
    from multimodal_gemma.data.statistics import Statistics

FORMAT = 5  # raised when equal inputs come to give other bytes: older artifacts are then made again
_SHAPING = (
    "validation_fraction",
    "split_seed",
    "image_position",
    "image_fit",
    "pixels",
    "max_text_tokens",
    "max_image_bytes",
    "max_image_pixels",
    "max_missing_fraction",
    "contamination",
)  # the keys of data.* that the result depends on
_PAGE = "report.html"  # no part of the identity: its bytes vary with the version of what draws it
_RECORD = "dropped.jsonl"
_SOURCES = "sources.json"  # of the raw dataset: where it came from
_SLICES = {"pixels", "tokens", "looks"}  # what another attempt can build on
_OWN = {*_SLICES, "processor", "train", "val", "images.arrow", _RECORD, "statistics.json", _PAGE, manifest.NAME}


def run(config: Config, raw: Path, models: Path, benchmarks: Path | None, output: Path) -> Summary:
    """Make the processed dataset, or find it finished.

    Args:
        config: its data section shapes the result.
        raw: a raw-dataset artifact.
        models: a base-models artifact, whose tokenizer and image processor are used.
        benchmarks: a benchmarks artifact to keep out of the data; None if there is none.
        output: folder for the processed-dataset artifact; of an unfinished or different one in it the slices are kept
            that this one would make again.

    Returns:
        Summary with the counts of the manifest; of a dataset that was not finished already, also how many slices' items
        were made and found.

    Raises:
        InputError: an input is unfinished or of another kind, another preprocess is at work in the folder, too many
            images are unusable, a benchmark's images are in the data, or a split comes out empty.
    """
    from multimodal_gemma.data import delivery
    from multimodal_gemma.data.prepare import Preparation
    from multimodal_gemma.data.processed import KIND, ProcessedDataset
    from multimodal_gemma.data.slices import Slices

    log = logs.get("preprocess")
    inputs = {"raw": manifest.read(raw, "raw-dataset").digest, "models": manifest.read(models, "base-models").digest}
    if benchmarks is not None:
        inputs["benchmarks"] = manifest.read(benchmarks, "benchmarks").digest
    shaping = {"format": FORMAT, **{key: getattr(config.data, key) for key in _SHAPING}}
    _check_output(output)
    made = manifest.finished(output, KIND, config=shaping, inputs=inputs)
    if made is not None:
        log.info("%s is finished already (%s); nothing to do", output, _figures(made.counts))
        return _summary(output, made, cached=True)
    slices = Slices(output, config.data.workers, delivery.open_store(config.data.work_uri, "slices"))
    with locks.only_writer(output, "preprocess"):
        preparation = Preparation(config.data, raw, benchmarks)
        _begin(slices)
        try:
            facts = preparation.write(models, slices)
        except InputError:
            # Whole slices serve the next attempt, and the sentence may point to the record of what was left out.
            _clear(output, {*_SLICES, _RECORD})
            raise
        if slices.found:
            log.info(f"of {slices.found + slices.made:,} items {slices.found:,} were made before")
        counts = preparation.counts()
        stated = manifest.Manifest(KIND, counts, shaping, inputs, facts, {})
        files.write_text(output / _PAGE, _page(ProcessedDataset(output, stated), preparation.figures, raw))
        made = manifest.write(
            output, KIND, config=shaping, inputs=inputs, counts=counts, facts=facts, exclude=_PAGE.__eq__
        )
    log.info("%s in %s", _figures(made.counts), output)
    summary = _summary(output, made, cached=False)
    summary.numbers.update(made_items=float(slices.made), found_items=float(slices.found))
    return summary


def _page(dataset: ProcessedDataset, figures: Statistics, raw: Path) -> str:
    from multimodal_gemma.data import report

    count = dataset.image_count
    pictures = [dataset.image(row) for row in range(0, count, max(-(-count // report.THUMBNAILS), 1))]
    told = files.read_json(raw / _SOURCES, "sources")["sources"] if (raw / _SOURCES).is_file() else {}
    looks = report.spread(dataset, report.CONVERSATIONS)
    return report.page(figures, dataset.manifest.facts, pictures, looks, told)


def _check_output(output: Path) -> None:
    """Refuse a place that holds something else than a dataset, whole or in part."""
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"preprocess: {output} is a file; the dataset needs a folder. Choose another output.")
    foreign = sorted(path.name for path in output.iterdir() if path.name not in _OWN and not path.name.endswith(".tmp"))
    if foreign:
        raise InputError(
            f"preprocess: {output} holds {foreign[0]!r}, which is no part of a processed dataset. Choose an empty one."
        )


def _begin(slices: Slices) -> None:
    """Make room for an attempt that builds on the slices that are there."""
    from multimodal_gemma.data.processed import KIND

    output = slices.folder
    if (output / manifest.NAME).is_file():
        slices.trusted = {name: entry["sha256"] for name, entry in manifest.read(output, KIND).files.items()}
    _clear(output, _SLICES)


def _clear(output: Path, keep: set[str]) -> None:
    """Remove everything else; the manifest first, so that a half-cleared folder does not look finished."""
    try:
        (output / manifest.NAME).unlink(missing_ok=True)
        for path in output.iterdir():
            if path.name in keep:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise files.unwritable(output, error) from error


def _figures(counts: dict[str, int]) -> str:
    text = f"{counts['train']:,} conversations to train on, {counts['val']:,} to validate, {counts['images']:,} images"
    return f"{text}, {counts['dropped_conversations']:,} conversations dropped"


def _summary(output: Path, made: manifest.Manifest, *, cached: bool) -> Summary:
    return Summary(
        "preprocess",
        output,
        made.digest,
        numbers={name: float(count) for name, count in made.counts.items()},
        facts={"contamination": str(made.facts["contamination"]["status"])},
        cached=cached,
    )
