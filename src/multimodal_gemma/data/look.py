"""A conversation as the model learns it: every token that it reads, and which of them count.

What a dataset teaches is seen nowhere better than in a few of its rows: a picture on its side, a mask that is off by
one turn or a template of another family show at once. The report has twelve of them, `mmgemma show` any.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gemma.data.processed import ProcessedDataset
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LEARNT, _OPEN, _CLOSE = "bold green", "⟦", "⟧"  # the signs where there is no colour
_ROWS = 20  # of text that the picture takes, two of its rows each


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tokens that follow each other and are of one kind.

    Attributes:
        text: as the tokenizer decodes them; of the image, how many positions it takes.
        learnt: the model learns to predict them.
        control: they are no text: beginnings and ends of turns, the image.
    """

    text: str
    learnt: bool
    control: bool


@dataclasses.dataclass(frozen=True)
class Look:
    """One conversation to look at.

    Attributes:
        split: "train" or "val".
        row: in it.
        id: as published.
        file_name: of its picture, "" for none.
        picture: uint8 (side, side, 3) as the encoder takes it; None for none.
        pieces: all of its tokens in their order.
        positions: that it takes in the language model, the image expanded.
        learnt: tokens that count.
    """

    split: str
    row: int
    id: str
    file_name: str
    picture: np.ndarray | None
    pieces: list[Piece]
    positions: int
    learnt: int

    @property
    def figures(self) -> str:
        """What it costs and teaches, in words."""
        return f"{self.positions:,} positions, {self.learnt:,} learnt"


def look(dataset: ProcessedDataset, tokenizer: Tokenizer, split: str, row: int) -> Look:
    """Look at one conversation.

    Args:
        dataset: has it.
        tokenizer: the dataset's.
        split: "train" or "val".
        row: from 0.

    Raises:
        InputError: there is no such split or row.
    """
    rows = dataset.split(split)
    if not 0 <= row < len(rows):
        raise InputError(f"show: {dataset.folder} has {len(rows):,} rows in {split}, so no row {row}. They begin at 0.")
    sample = rows[row]
    control = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    kinds = [
        (bool(learnt), token in control, token == dataset.image_token_id)
        for token, learnt in zip(sample.input_ids.tolist(), sample.supervised.tolist(), strict=True)
    ]
    pieces = []
    start = 0
    for (learnt, special, image), group in itertools.groupby(kinds):
        end = start + len(list(group))
        text = tokenizer.decode(sample.input_ids[start:end].tolist(), skip_special_tokens=False)
        pieces.append(Piece(f"[image: {dataset.image_tokens} positions]" if image else text, learnt, special))
        start = end
    index = sample.image_index
    return Look(
        split,
        row,
        sample.id,
        dataset.file_names[index] if index >= 0 else "",
        dataset.image(index) if index >= 0 else None,
        pieces,
        int(rows.lengths[row]),
        int(sample.supervised.sum()),
    )


def spread(dataset: ProcessedDataset, count: int) -> list[Look]:
    """Look at some conversations, drawn evenly over the dataset, a sixth of them held out."""
    tokenizer = tokenizer_of(dataset)
    held = {name: len(dataset.split(name)) for name in ("train", "val")}
    share = {"val": min(held["val"], count // 6)}
    share["train"] = min(held["train"], count - share["val"])
    return [
        look(dataset, tokenizer, name, place * held[name] // share[name])
        for name in ("train", "val")
        for place in range(share[name])
    ]


def show(dataset: ProcessedDataset, split: str, row: int) -> None:
    """Print one conversation: picture, text, what is learnt of it.

    Raises:
        InputError: there is no such row.
    """
    from rich.console import Console
    from rich.text import Text

    seen = look(dataset, tokenizer_of(dataset), split, row)
    out = Console(highlight=False, soft_wrap=True)
    coloured = out.is_terminal and out.color_system is not None
    out.print(Text(f"{split} {row}   id {seen.id}   {seen.file_name or 'no picture'}   {seen.figures}", "bold"))
    if coloured and seen.picture is not None:
        out.print(_drawn(seen.picture))
    text = Text()
    for learnt, pieces in itertools.groupby(seen.pieces, key=lambda piece: piece.learnt):
        signs = (_OPEN, _CLOSE) if learnt and not coloured else ("", "")
        text.append(signs[0])
        for piece in pieces:
            text.append(piece.text, _LEARNT if learnt else "dim" if piece.control else "")
        text.append(signs[1])
    out.print(text)
    out.print(Text("learnt: green" if coloured else f"learnt: between {_OPEN} and {_CLOSE}", "dim"))


def tokenizer_of(dataset: ProcessedDataset) -> Tokenizer:
    """Return the bare tokenizer: the processor around it takes seconds to import."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(dataset.folder / "processor" / "tokenizer.json"))


def _drawn(picture: np.ndarray) -> Any:
    """Return a picture as text: each place is the upper of two pixels on the lower one."""
    from PIL import Image
    from rich.text import Text

    small = np.asarray(Image.fromarray(picture).resize((2 * _ROWS, 2 * _ROWS)))
    text = Text()
    for upper, lower in zip(small[0::2], small[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            text.append("▀", f"rgb({above[0]},{above[1]},{above[2]}) on rgb({below[0]},{below[1]},{below[2]})")
        text.append("\n")
    return text
