"""Download: what a run needs from elsewhere, made into artifacts that no later stage has to leave the machine for.

Three artifacts: the dataset (conversations and the images they name), the benchmarks (questions and the images they ask
about) and the base models. A finished artifact is left alone as long as its sources say that nothing changed.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from multimodal_gemma import files, locks, logs, manifest
from multimodal_gemma.config.schema import Config
from multimodal_gemma.data import collect, shards
from multimodal_gemma.data.downloads import KINDS, SOURCES, Download
from multimodal_gemma.data.sources.base import place
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages.summary import Summary

_SCRATCH = ".partial"  # there from the first moment to the last: it marks a folder as this stage's own work


def run(config: Config, what: str, output: Path) -> Summary:
    """Fetch one artifact.

    Args:
        config: its sections `data`, `benchmarks` and `model` say what, from where and within which limits.
        what: "dataset", "benchmarks" or "models".
        output: the artifact's folder, new or empty; a former download is kept if it is the same, else replaced.

    Returns:
        The counts of what was fetched; `cached` if the finished artifact was there already.

    Raises:
        InputError: a source, a file or the output is at fault, or more images are missing than allowed.
        ValueError: there is no such artifact.
    """
    if what not in KINDS:
        raise ValueError(f"{what!r} is none of {', '.join(KINDS)}")
    log = logs.get("download")
    download = KINDS[what](config)
    fingerprint = download.fingerprint()
    found = _finished(output, download, fingerprint)
    if found is not None:
        shutil.rmtree(output / _SCRATCH, ignore_errors=True)  # of an attempt that ended just after its manifest
        _check_missing(output, found.counts, config)
        log.info("%s: finished before and unchanged at its source, nothing to do: %s", what, _figures(found.counts))
        return _summary(output, found, cached=True)
    log.info("%s: from %s", what, ", ".join(dict.fromkeys(source.uri for source in download.sources.values())))
    with _occupied(output) as scratch:
        _prepare(output, scratch, download.kind)
        try:
            counts = download.fetch(output, scratch)
            files.write_json(output / SOURCES, {"fingerprint": fingerprint, "sources": download.origins(scratch)})
            _check_missing(output, counts, config)
        except InputError:
            _tidy(output, scratch)
            raise
        written = manifest.write(output, download.kind, config=download.config, counts=counts, exclude=_no_content)
        shutil.rmtree(scratch)
    log.info("%s: %s", what, _figures(counts))
    return _summary(output, written, cached=False)


def _finished(output: Path, download: Download, fingerprint: str) -> manifest.Manifest | None:
    """Return the manifest of this very artifact if it lies finished in `output`."""
    found = manifest.finished(output, download.kind, config=download.config)
    if found is None or not (output / SOURCES).is_file():
        return None
    before = files.read_json(output / SOURCES, "sources")
    same = isinstance(before, dict) and before.get("fingerprint") == fingerprint
    return found if same else None


@contextlib.contextmanager
def _occupied(output: Path) -> Iterator[Path]:
    """Hold a folder for this download alone and yield its scratch folder.

    Raises:
        InputError: another download is at work there, somebody else's files lie there, or it cannot be written.
    """
    with locks.only_writer(output, "download"):
        scratch = output / _SCRATCH
        held = [path.name for path in output.iterdir() if path.name != _SCRATCH]
        if held and not scratch.is_dir() and not (output / manifest.NAME).is_file():
            raise InputError(
                f"download: {output} holds files that no download left, {held[0]} for one. Give an empty folder."
            )
        try:
            scratch.mkdir(exist_ok=True)
        except OSError as error:
            raise files.unwritable(output, error) from error
        yield scratch


def _prepare(output: Path, scratch: Path, kind: str) -> None:
    """Clear away all but what an attempt can build on: what an interrupted one or a finished artifact holds."""
    there = output / manifest.NAME
    try:
        if there.is_file():
            manifest.read(output, kind)
            for path in [*output.glob(shards.PATTERN), *output.glob(collect.HELD)]:
                place(path, scratch / path.name)
            there.unlink()
        for path in [path for path in output.iterdir() if path != scratch]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise files.unwritable(output, error) from error


def _tidy(output: Path, scratch: Path) -> None:
    """Leave no trace of an attempt that failed before it had any image or a part of a large file."""
    patterns = ("*.parquet", "archive-*", "artifact-*", "*.part")
    if not any(path.stat().st_size for pattern in patterns for path in scratch.rglob(pattern)):
        shutil.rmtree(output)


def _check_missing(output: Path, counts: dict[str, int], config: Config) -> None:
    """Refuse an artifact that lacks a larger share of its images than `data.max_missing_fraction`."""
    lost, allowed = counts.get("missing", 0), config.data.max_missing_fraction
    asked = counts.get("names", 0) + lost
    if lost <= allowed * asked:
        return
    share = lost / asked
    step = 10.0 ** math.floor(math.log10(share))
    enough = min(round(math.ceil(share / step - 1e-9) * step, 12), 1.0)  # the next number with one significant digit
    first = files.read_jsonl(output / collect.MISSING, "missing images")[0]
    raise InputError(
        f"download: {lost:,} of {asked:,} images could not be had ({share:.2%}, allowed {allowed:.2%}). "
        f"First: {first['file_name'].replace(chr(10), ' ')[:120]} ({first['reason']}). "
        f"The list: {output / collect.MISSING}. "
        f"Allow more with data.max_missing_fraction={enough:g}."
    )


def _no_content(name: str) -> bool:
    return name in (SOURCES, collect.HELD) or name.startswith(f"{_SCRATCH}/")


def _figures(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())


def _summary(output: Path, found: manifest.Manifest, *, cached: bool) -> Summary:
    numbers = {name: float(count) for name, count in found.counts.items()}
    origins = files.read_json(output / SOURCES, "sources")["sources"]
    facts = {key: " ".join(record.values()) for key, record in origins.items()}
    return Summary("download", output, found.digest, numbers, facts, cached=cached)
