"""Reading a processed dataset at memory speed.

What preprocess left lies memory-mapped on the disk: opening it costs milliseconds whatever its size, a sample is a
slice of a column and an image is a view of its bytes. Every process that opens the same folder shares one copy in
the page cache.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gemma import manifest
from multimodal_gemma.data.columns import Blobs, Column, Lists, Masks
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import LlavaProcessor

KIND = "processed-dataset"
SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One conversation, tokenized.

    Attributes:
        id: the conversation's id as published; not necessarily unique.
        image_index: row of its image, -1 for text only.
        input_ids: int32 (n,), with one image placeholder where `image_index` >= 0;
            a batch repeats it `image_tokens` times.
        supervised: bool (n,), True where the model learns to predict the token.
    """

    id: str
    image_index: int
    input_ids: np.ndarray
    supervised: np.ndarray


class Split:
    """The conversations of one split, in the order in which they were published.

    Args:
        folder: a folder of `datasets.Dataset.save_to_disk`'s layout.
        image_tokens: positions that an image takes in the language model.
    """

    def __init__(self, folder: Path, image_tokens: int) -> None:
        self._folder, self._image_tokens = folder, image_tokens

    def __reduce__(self) -> tuple[Any, ...]:
        return Split, (self._folder, self._image_tokens)  # a data worker opens the files itself

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, row: int) -> Sample:
        return Sample(
            id=self._names.text(row),
            image_index=int(self.image_indices[row]),
            input_ids=self._input_ids[row],
            supervised=self._supervised[row],
        )

    @functools.cached_property
    def ids(self) -> list[str]:
        """The conversations' ids."""
        return self._table.column("id").to_pylist()

    @functools.cached_property
    def image_ids(self) -> list[str]:
        """Their images' ids, "" for text only."""
        return self._table.column("image_id").to_pylist()

    @functools.cached_property
    def image_indices(self) -> np.ndarray:
        """Their images' rows, int64 (len,), -1 for text only."""
        return self._table.column("image_index").to_numpy().astype(np.int64)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Positions that each takes in the language model, image expanded, int64 (len,)."""
        return self.text_lengths + np.where(self.image_indices >= 0, self._image_tokens - 1, 0)

    @functools.cached_property
    def text_lengths(self) -> np.ndarray:
        """Tokens of each, the image counted as one, int64 (len,)."""
        import pyarrow.compute as pc

        return pc.list_value_length(self._table.column("input_ids")).to_numpy().astype(np.int64)

    def token_pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield token ids int32 (m,), and the conversations' bounds in them, int64 (rows + 1,), piece after piece."""
        for chunk in self._table.column("input_ids").chunks:
            yield chunk.values.to_numpy(), chunk.offsets.to_numpy().astype(np.int64)

    @functools.cached_property
    def _table(self) -> pa.Table:
        return open_table(self._folder)

    @functools.cached_property
    def _names(self) -> Column:
        return Column(self._table.column("id"))

    @functools.cached_property
    def _input_ids(self) -> Lists:
        return Lists(self._table.column("input_ids"))

    @functools.cached_property
    def _supervised(self) -> Masks:
        return Masks(self._table.column("supervised"))


class ProcessedDataset:
    """A finished processed dataset.

    Args:
        folder: what the preprocess stage made.

    Raises:
        InputError: no finished processed dataset lies there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.manifest = manifest.read(self.folder, KIND)

    def __reduce__(self) -> tuple[Any, ...]:
        return ProcessedDataset, (self.folder,)

    @property
    def image_tokens(self) -> int:
        """Positions that an image takes in the language model: the encoder's patches."""
        return int(self.manifest.facts["image_tokens"])

    @property
    def image_size(self) -> int:
        """Side of the stored images in pixels; they are square."""
        return int(self.manifest.facts["image_size"])

    @property
    def image_token_id(self) -> int:
        """The placeholder in `input_ids` that an image replaces."""
        return int(self.manifest.facts["image_token_id"])

    @property
    def pad_token_id(self) -> int:
        """What a batch is padded with on the right."""
        return int(self.manifest.facts["pad_token_id"])

    def processor(self) -> LlavaProcessor:
        """Return the processor that the conversations were tokenized with."""
        from transformers import LlavaProcessor

        return LlavaProcessor.from_pretrained(self.folder / "processor", local_files_only=True)

    def split(self, name: str) -> Split:
        """Return "train" or "val".

        Raises:
            InputError: no such split.
        """
        if name not in SPLITS:
            raise InputError(f"{self.folder}: there is no split {name!r}. Choose one of {', '.join(SPLITS)}.")
        return Split(self.folder / name, self.image_tokens)

    @property
    def image_count(self) -> int:
        """How many images are stored; validation's lie among them."""
        return len(self._pixels)

    def image(self, image_index: int) -> np.ndarray:
        """Return an image as uint8 (H, W, 3) in RGB, resized and cropped, neither rescaled nor normalised; read-only.

        Raises:
            IndexError: there is no such image; -1 stands for "text only".
        """
        return self._pixels[image_index].reshape(self.image_size, self.image_size, 3)

    @functools.cached_property
    def file_names(self) -> list[str]:
        """The images' file names as published, by image index."""
        return self._images.column("file_name").to_pylist()

    @functools.cached_property
    def _images(self) -> pa.Table:
        return open_table(self.folder / "images")

    @functools.cached_property
    def _pixels(self) -> Blobs:
        return Blobs(self._images.column("pixels"))


def open_table(folder: Path) -> pa.Table:
    """Memory-map a dataset of `save_to_disk`'s layout.

    Raises:
        InputError: a file is missing or is no Arrow file.
    """
    import pyarrow as pa
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(folder), keep_in_memory=False)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{folder} cannot be opened as a dataset ({reason}). Run preprocess again.") from None
    return dataset.data.table
