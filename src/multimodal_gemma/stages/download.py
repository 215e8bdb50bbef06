"""Download: what a run needs from elsewhere, made into artifacts that no later stage has to leave the machine for.

Three artifacts: the dataset (conversations and the images they name), the benchmarks (questions and the images they ask
about) and the base models. A finished artifact is left alone as long as its sources say that nothing changed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_gemma import files, logs, manifest
from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages.summary import Summary

if TYPE_CHECKING:
    from multimodal_gemma.data.downloads import Download

SOURCES = "sources.json"  # where everything came from; no part of the artifact's identity, which is its content alone
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
    from multimodal_gemma.data.downloads import KINDS

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
    scratch = _prepare(output)
    try:
        counts = download.fetch(output, scratch)
    except InputError:
        _tidy(output)
        raise
    _remove(scratch.iterdir())
    origins = {key: source.describe() for key, source in download.sources.items()}
    files.write_json(output / SOURCES, {"fingerprint": fingerprint, "sources": origins})
    _check_missing(output, counts, config)
    written = manifest.write(output, download.kind, config=download.config, counts=counts, exclude=_no_content)
    scratch.rmdir()
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


def _prepare(output: Path) -> Path:
    """Make `output` a folder that holds nothing but an empty scratch folder.

    Only what this stage left there is cleared away; a folder of somebody else's files is refused.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        held = [path for path in output.iterdir() if path.name != _SCRATCH]
        if held and not (output / _SCRATCH).is_dir() and not (output / manifest.NAME).is_file():
            raise InputError(
                f"download: {output} holds files that no download left, {held[0].name} for one. Give an empty folder."
            )
        scratch = output / _SCRATCH
        scratch.mkdir(exist_ok=True)
        (output / manifest.NAME).unlink(missing_ok=True)
        _remove(held)
        _remove(scratch.iterdir())
    except OSError as error:
        raise files.unwritable(output, error) from error
    return scratch


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _tidy(output: Path) -> None:
    """Leave no trace of an attempt that failed before it had anything to keep."""
    _remove((output / _SCRATCH).iterdir())
    if [path.name for path in output.iterdir()] == [_SCRATCH]:
        shutil.rmtree(output)


def _check_missing(output: Path, counts: dict[str, int], config: Config) -> None:
    from multimodal_gemma.data.collecting import MISSING, check_missing

    if counts.get("missing"):
        missing = files.read_jsonl(output / MISSING, "missing images")
        check_missing(missing, counts["images"] + len(missing), config.data.max_missing_fraction, output)


def _no_content(name: str) -> bool:
    return name == SOURCES or name.startswith(f"{_SCRATCH}/")


def _figures(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())


def _summary(output: Path, found: manifest.Manifest, *, cached: bool) -> Summary:
    numbers = {name: float(count) for name, count in found.counts.items()}
    origins = files.read_json(output / SOURCES, "sources")["sources"]
    facts = {key: " ".join(record.values()) for key, record in origins.items()}
    return Summary("download", output, found.digest, numbers, facts, cached=cached)
