"""Turn a raw dataset into what training reads at memory speed.

Images are decoded and resized once, conversations tokenized once; the split, the check against the benchmarks and
the record of everything that was left out are made on the way. The same inputs give the same bytes, whatever the
number of processes, and whether or not parts of them were made before: by an attempt that was killed, or for a dataset
that has grown since.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files, locks, logs, manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages.summary import Summary

if TYPE_CHECKING:
    from multimodal_gemma.config import Config
    from multimodal_gemma.config.schema import DataConfig
    from multimodal_gemma.data.block_store import BlockStore
    from multimodal_gemma.data.contamination import Contamination
    from multimodal_gemma.data.conversations import Conversation
    from multimodal_gemma.data.preparation import Images
    from multimodal_gemma.data.statistics import Statistics

FORMAT = 4  # raised when equal inputs come to give other bytes: older artifacts are then made again
_SHAPING = (
    "validation_fraction",
    "split_seed",
    "image_position",
    "max_text_tokens",
    "max_image_bytes",
    "max_image_pixels",
    "max_missing_fraction",
    "max_faulty_fraction",
    "limit",
    "limit_seed",
    "min_turns",
    "max_turns",
    "min_characters",
    "max_characters",
    "kinds",
    "contamination",
)  # the keys of data.* that the result depends on
_PAGE = "report.html"  # no part of the identity: its bytes vary with the version of what draws it
_HISTORY = "history.json"  # which dataset this one grew from; no part of the identity, which is the content alone
_RECORD = "dropped.jsonl"
_NO_CONTENT = {_PAGE, _HISTORY}
_BLOCKS = {"train", "val", "images", "records"}  # what another attempt can build on
_OWN = {*_BLOCKS, "processor", _RECORD, "statistics.json", _PAGE, _HISTORY, manifest.NAME}


def run(
    config: Config, raw: Path, models: Path, benchmarks: Path | None, output: Path, base: Path | None = None
) -> Summary:
    """Make the processed dataset, or find it finished.

    Args:
        config: its data section shapes the result.
        raw: a raw-dataset artifact.
        models: a base-models artifact, whose tokenizer and image processor are used.
        benchmarks: a benchmarks artifact to keep out of the data; None if there is none.
        output: folder for the processed-dataset artifact; of an unfinished or different one in it the blocks are kept
            that this one would make again.
        base: another processed dataset, of the data before it grew, whose blocks are taken over likewise.

    Returns:
        Summary with the counts of the manifest.

    Raises:
        InputError: an input is unfinished or of another kind, another preprocess is at work in the folder, too many
            images are unusable, a benchmark's images are in the data, or a split comes out empty.
    """
    from multimodal_gemma.data.block_store import BlockStore
    from multimodal_gemma.data.processed import KIND

    log = logs.get("preprocess")
    former = manifest.read(base, KIND).digest if base is not None else ""
    inputs = {"raw": manifest.read(raw, "raw-dataset").digest, "models": manifest.read(models, "base-models").digest}
    if benchmarks is not None:
        inputs["benchmarks"] = manifest.read(benchmarks, "benchmarks").digest
    shaping = {"format": FORMAT, **{key: getattr(config.data, key) for key in _SHAPING}}
    _check_output(output)
    made = manifest.finished(output, KIND, config=shaping, inputs=inputs)
    if made is not None:
        log.info("%s is finished already (%s); nothing to do", output, _figures(made.counts))
        return _summary(output, made, cached=True)
    with locks.only_writer(output, "preprocess"):
        counts, facts = _make(config.data, raw, models, benchmarks, output, BlockStore(output, base), former)
        made = manifest.write(
            output, KIND, config=shaping, inputs=inputs, counts=counts, facts=facts, exclude=_NO_CONTENT.__contains__
        )
    log.info("%s in %s", _figures(made.counts), output)
    return _summary(output, made, cached=False)


def _make(
    data: DataConfig,
    raw: Path,
    models: Path,
    benchmarks: Path | None,
    output: Path,
    store: BlockStore,
    former: str,
) -> tuple[dict[str, int], dict[str, Any]]:
    """Choose what is kept and write it beside what can be built on; return the manifest's counts and facts.

    `former` is the digest of the dataset whose blocks the store takes over, where none lies in the output itself.
    """
    from multimodal_gemma.data import acceptance, contamination, conversations, selection, statistics

    manifest.verify(raw, "raw-dataset")
    right, faults = conversations.parse_counted(raw / "conversations.json", data.max_faulty_fraction)
    given, left = selection.select(right, data)
    found = contamination.check(given, benchmarks, data.contamination)
    acceptance.check_plan([conversation for conversation in given if not found.drops(conversation)], data)
    former = _begin(output) or former
    try:
        figures = statistics.Statistics()
        for fault in faults:
            figures.drop("conversation", fault.id, "", fault.kind, fault.reason)
        for conversation, kind, reason in left:
            figures.drop("conversation", conversation.id, conversation.image or "", kind, reason)
        counts, facts = _write(data, raw, models, benchmarks, given, found, figures, output, store)
        counts = {"conversations": len(right) + len(faults), **counts}
    except InputError:
        # Whole blocks serve the next attempt, and the sentence may point to the record of what was left out.
        _clear(output, {*_BLOCKS, _HISTORY, _RECORD})
        raise
    work = {"made": dict(store.made), "reused": dict(store.reused)}
    files.write_json(output / _HISTORY, {"extends": former if store.reused else "", **work})
    if store.reused:
        found_again = ", ".join(f"{count:,} {kind}" for kind, count in store.reused.items())
        logs.get("preprocess").info("made before: %s", found_again)
    return counts, facts


def _write(
    data: DataConfig,
    raw: Path,
    models: Path,
    benchmarks: Path | None,
    given: list[Conversation],
    found: Contamination,
    figures: Statistics,
    output: Path,
    store: BlockStore,
) -> tuple[dict[str, int], dict[str, Any]]:
    """Write everything but the manifest; return its counts and facts."""
    from multimodal_gemma.data import (
        acceptance,
        contamination,
        conversation_blocks,
        image_blocks,
        preparation,
        statistics_report,
    )
    from multimodal_gemma.data.conversations import image_names

    processor, facts = preparation.save_processor(models, output / "processor")
    figures.image_tokens = facts["image_tokens"]
    kept = []
    for conversation in given:
        if found.drops(conversation):
            reason = "a benchmark asks about its image"
            figures.drop("conversation", conversation.id, conversation.image or "", "contaminated", reason)
        else:
            kept.append(conversation)
    names = image_names(kept)
    images = image_blocks.write_images(data, raw, names, processor, figures, output, store, benchmarks)
    contamination.check_lookalikes(images.lookalikes, data.contamination)
    kept_on_request = bool(images.lookalikes) and data.contamination == "allow"
    facts["contamination"] = {
        "status": "allowed" if kept_on_request else found.status,
        "images": found.images,
        "lookalikes": images.lookalikes,
        "dropped": found.dropped,
    }
    dropped = output / _RECORD
    acceptance.check_losses(images, len(names), data, figures, dropped)
    conversation_blocks.write_conversations(data, kept, images, figures, output, store)
    figures.write_dropped(dropped)
    acceptance.check_splits(figures, data)

    files.write_json(output / "statistics.json", figures.to_json())
    files.write_text(output / _PAGE, statistics_report.page(figures, facts, images.thumbnails))
    return _counts(figures, found, images), facts


def _counts(figures: Statistics, found: Contamination, images: Images) -> dict[str, int]:
    by_reason: dict[str, int] = {}
    for item in figures.dropped:
        name = f"dropped_{item.what}s_{item.kind}" if item.what != "turns" else "cut_conversations"
        name = name.replace("-", "_")
        by_reason[name] = by_reason.get(name, 0) + 1
    train, validation = figures.splits["train"], figures.splits["val"]
    return {
        "train": len(train.turns),
        "val": len(validation.turns),
        "images": len(images.indices),
        "moved_images": figures.moved_images,
        "train_images": len(train.images),
        "val_images": len(validation.images),
        "lost_images": len(images.lost),
        "contaminated_images": len(found.images),
        "lookalike_images": len(images.lookalikes),
        "dropped_conversations": sum(item.what == "conversation" for item in figures.dropped),
        **dict(sorted(by_reason.items())),
    }


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


def _begin(output: Path) -> str:
    """Make room for an attempt; return the digest of the dataset whose blocks it may build on, "" for none."""
    from multimodal_gemma.data.processed import KIND

    history, there = output / _HISTORY, output / manifest.NAME
    former = ""
    if there.is_file():
        former = manifest.read(output, KIND).digest
        files.write_json(history, {"extends": former})  # before the manifest goes: the attempt may be killed
    elif history.is_file():
        former = str(files.read_json(history, "history").get("extends", ""))
    _clear(output, {*_BLOCKS, _HISTORY})
    return former


def _clear(output: Path, keep: set[str]) -> None:
    """Remove everything else; the manifest first, so that a half-cleared folder does not look finished."""
    from multimodal_gemma.data.processed_writer import writing

    if not output.is_dir():
        return
    with writing(output):
        (output / manifest.NAME).unlink(missing_ok=True)
        for path in output.iterdir():
            if path.name in keep:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _figures(counts: dict[str, int]) -> str:
    text = f"{counts['train']:,} conversations to train on, {counts['val']:,} to validate, {counts['images']:,} images"
    return f"{text}, {counts['dropped_conversations']:,} conversations dropped"


def _summary(output: Path, made: manifest.Manifest, *, cached: bool) -> Summary:
    facts = {"contamination": str(made.facts["contamination"]["status"])}
    extends = files.read_json(output / _HISTORY, "history").get("extends") if (output / _HISTORY).is_file() else ""
    return Summary(
        "preprocess",
        output,
        made.digest,
        numbers={name: float(count) for name, count in made.counts.items()},
        facts={**facts, **({"extends": extends} if extends else {})},
        cached=cached,
    )
