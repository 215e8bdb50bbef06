"""A processed dataset: what preprocess leaves, read at memory speed.

    train/, val/    input_ids.npy, supervised.npy: the tokens of all conversations, one after another;
                    rows.arrow: whose they are, and which picture each is about
    images.arrow    where each picture lies: slice and row
    pixels/         the pictures, a slice for each shard of the raw dataset
    processor/      what tokens and pixels were made with

Opening it costs milliseconds whatever its size: a sample is a slice of an array and a picture is a view of its bytes.
Every process that opens the same folder shares one copy in the page cache.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from multimodal_gemma import files, manifest
from multimodal_gemma.data.arrow import Cells, Writer, open_arrow
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from transformers import LlavaProcessor

KIND = "processed-dataset"
SPLITS = ("train", "val")
PIXELS = "pixels"


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One conversation, tokenized."""

    id: str  # the conversation's id as published; not necessarily unique
    image_index: int  # number of its picture, -1 for text only
    input_ids: np.ndarray  # int32 (n,), with one placeholder for the image, which a batch repeats `image_tokens` times
    supervised: np.ndarray  # bool (n,), True where the model learns to predict the token


@dataclasses.dataclass(frozen=True)
class Row:
    """What is written of one conversation; see `Sample`."""

    id: str  # the conversation's id as published
    image_id: str  # COCO's twelve digits or the name that it gives its picture, "" for text only
    image_index: int  # number of its picture, -1 for text only
    length: int  # of its tokens
    set: str = ""  # the set that it comes from, "" where there is only one


class Split:
    """The conversations of one split, in the order in which they were published.

    Args:
        folder: train/ or val/ of a processed dataset.
        image_tokens: positions that an image takes in the language model.

    Raises:
        InputError: a file is missing or damaged; raised when it is first read.
    """

    def __init__(self, folder: Path, image_tokens: int) -> None:
        self._folder, self._image_tokens = folder, image_tokens

    def __reduce__(self) -> tuple[Any, ...]:
        return Split, (self._folder, self._image_tokens)  # a data worker opens the files itself

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, row: int) -> Sample:
        if not 0 <= row < len(self.ids):
            raise IndexError(f"row {row} of {len(self)}")
        start, end = self.bounds[row : row + 2]
        image = self.image_indices.item(row)
        return Sample(self.ids[row], image, self.input_ids[start:end], self.supervised[start:end])

    @functools.cached_property
    def input_ids(self) -> np.ndarray:
        """The tokens of all conversations, one after another, int32 (tokens,), memory-mapped."""
        return _mapped(self._folder / "input_ids.npy")

    @functools.cached_property
    def supervised(self) -> np.ndarray:
        """Which of them are learnt, bool (tokens,), memory-mapped."""
        return _mapped(self._folder / "supervised.npy")

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """Where each conversation begins in them, and at last where the last one ends, int64 (len + 1,)."""
        return np.concatenate([[0], np.cumsum(self.text_lengths)]).astype(np.int64)

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
        """Their pictures' numbers, int64 (len,), -1 for text only."""
        return self._table.column("image_index").to_numpy().astype(np.int64)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Positions that each takes in the language model, image expanded, int64 (len,)."""
        return self.text_lengths + np.where(self.image_indices >= 0, self._image_tokens - 1, 0)

    @functools.cached_property
    def text_lengths(self) -> np.ndarray:
        """Tokens of each, the image counted as one, int64 (len,)."""
        return self._table.column("length").to_numpy().astype(np.int64)

    @functools.cached_property
    def _table(self) -> pa.Table:
        return open_arrow(self._folder / "rows.arrow")


class ProcessedDataset:
    """A finished processed dataset.

    Args:
        folder: what the preprocess stage made.
        stated: what its manifest will say, as long as it has none; None: it is read.

    Raises:
        InputError: no finished processed dataset lies there.
    """

    def __init__(self, folder: Path, stated: manifest.Manifest | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = manifest.read(self.folder, KIND) if stated is None else stated

    def __reduce__(self) -> tuple[Any, ...]:
        return ProcessedDataset, (self.folder, self.manifest)

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
        """How many pictures there are; validation's lie among them."""
        return self._images.num_rows

    def image(self, image_index: int) -> np.ndarray:
        """Return a picture as uint8 (H, W, 3) in RGB, as the encoder takes it but for scale and normalisation.

        Raises:
            IndexError: there is no such picture; -1 stands for "text only".
        """
        if not 0 <= image_index < len(self._places):
            raise IndexError(f"image {image_index} of {len(self._places)}")
        number, row = self._places[image_index].tolist()
        content = self._slices[number][row]
        if self.manifest.facts["pixels"] == "jpeg":
            return np.asarray(Image.open(io.BytesIO(content.data), formats=["JPEG"]))
        return content.reshape(self.image_size, self.image_size, 3)

    @functools.cached_property
    def file_names(self) -> list[str]:
        """The pictures' file names as published, one of its names each, by image index."""
        return self._images.column("file_name").to_pylist()

    @functools.cached_property
    def _images(self) -> pa.Table:
        return open_arrow(self.folder / "images.arrow")

    @functools.cached_property
    def _places(self) -> np.ndarray:
        """Number of the slice and row in it of each picture, (pictures, 2)."""
        return np.stack([self._images.column(name).to_numpy() for name in ("slice", "row")], axis=1)

    @functools.cached_property
    def _slices(self) -> list[Cells]:
        names = self.manifest.facts["slices"]
        return [Cells(open_arrow(self.folder / PIXELS / name).column("pixels")) for name in names]


def write_split(folder: Path, rows: Sequence[Row], tokens: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write train/ or val/.

    Args:
        folder: made if missing.
        rows: the conversations.
        tokens: (input_ids, supervised) of any number of them at a time, in their order; consumed one by one.

    Raises:
        InputError: it cannot be written, or the disk is full.
    """
    types = {"image_index": pa.int32(), "length": pa.int32()}
    schema = pa.schema([(field.name, types.get(field.name, pa.string())) for field in dataclasses.fields(Row)])
    with files.atomic_path(folder / "rows.arrow") as path, Writer(path, schema) as table:
        for row in rows:
            table.add(dataclasses.astuple(row))
    shape = (sum(row.length for row in rows),)
    with (
        files.atomic_path(folder / "input_ids.npy") as ids_path,
        files.atomic_path(folder / "supervised.npy") as mask_path,
        ids_path.open("wb") as ids_file,
        mask_path.open("wb") as mask_file,
    ):
        # By plain writes: a full disk under a memory map ends the process without a word.
        for stream, kind in ((ids_file, "<i4"), (mask_file, "|b1")):
            header = {"descr": kind, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
        for ids, mask in tokens:
            ids_file.write(np.ascontiguousarray(ids, "<i4").data)
            mask_file.write(np.ascontiguousarray(mask, bool).data)


def write_images(folder: Path, places: Sequence[tuple[str, str, int, int]]) -> None:
    """Write images.arrow: a name of each picture, its sha256, the number of its slice and its row there."""
    fields = [("file_name", pa.string()), ("sha256", pa.string()), ("slice", pa.int32()), ("row", pa.int32())]
    with files.atomic_path(folder / "images.arrow") as path, Writer(path, pa.schema(fields)) as table:
        for place in places:
            table.add(place)


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r"))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error}). Run preprocess again.") from None
