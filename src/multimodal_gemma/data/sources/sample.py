"""The generated sample and the packaged base models: `sample://`, `sample://vision`, `sample://language`."""

from __future__ import annotations

import functools
import tempfile
import threading
from pathlib import Path

import multimodal_gemma
from multimodal_gemma import files, logs
from multimodal_gemma.config.schema import SampleConfig
from multimodal_gemma.data.sources.base import Source
from multimodal_gemma.data.sources.local import FolderSource, LocalSource
from multimodal_gemma.errors import InputError

_BASES = ("vision", "language")
_DRAWING = threading.Lock()  # threads that ask at once must not draw twice


def open_sample(uri: str, sample: SampleConfig, part: str) -> Source:
    """Return the source behind a `sample://` location.

    Args:
        uri: `sample://` for generated scenes, `sample://vision` or `sample://language` for a packaged base model.
        sample: how many scenes, and their seed.
        part: which folder of the generated sample, "" for its root.

    Raises:
        InputError: there is no such sample, or the packaged bases are absent.
    """
    name = uri.removeprefix("sample://")
    if not name:
        return SampleSource(uri, sample, part)
    if name not in _BASES:
        raise InputError(f"download: {uri} does not exist. There are sample://, sample://vision and sample://language.")
    from multimodal_gemma.sample import bases_folder

    return LocalSource(bases_folder() / name, uri, {"uri": uri})


class SampleSource(FolderSource):
    """Scenes that are drawn when the first file is asked for, equal for equal settings.

    Args:
        uri: the location as configured.
        sample: how many scenes, and their seed.
        part: folder of the sample that names are relative to.
    """

    def __init__(self, uri: str, sample: SampleConfig, part: str) -> None:
        super().__init__(uri)
        self._arguments = (sample.train_scenes, sample.held_out_scenes, sample.seed)
        self._part = part

    @functools.cached_property
    def folder(self) -> LocalSource:
        """The folder that the scenes are drawn into."""
        with _DRAWING:
            root = Path(_drawn(*self._arguments).name)
        return LocalSource(root / self._part, self.uri)

    def fingerprint(self, *names: str) -> str:
        """Return a digest of the settings and of the version of this package, which draws the scenes."""
        return files.digest_of([*self._arguments, multimodal_gemma.__version__])

    def describe(self) -> dict[str, str]:
        """Return the settings that the scenes are drawn by."""
        train, held_out, seed = self._arguments
        return {"uri": self.uri, "train_scenes": str(train), "held_out_scenes": str(held_out), "seed": str(seed)}


@functools.lru_cache(maxsize=1)
def _drawn(train_scenes: int, held_out_scenes: int, seed: int) -> tempfile.TemporaryDirectory[str]:
    """Draw the sample once for all sources of this process; the folder goes when the process ends."""
    from multimodal_gemma.sample.layout import write_sample

    folder = tempfile.TemporaryDirectory(prefix="mmgemma-sample-")
    logs.get("download").info(f"draws {train_scenes + held_out_scenes:,} sample scenes, seed {seed}")
    write_sample(Path(folder.name), train_scenes=train_scenes, held_out_scenes=held_out_scenes, seed=seed)
    return folder
