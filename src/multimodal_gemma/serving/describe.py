"""`mmgemma describe`: a folder of pictures, each with what the model says of it, as a page and as JSON lines."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files, logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.progress import Progress
from multimodal_gemma.reporting.page import GalleryItem, Page
from multimodal_gemma.serving import pictures

if TYPE_CHECKING:
    from PIL.Image import Image

    from multimodal_gemma.config.schema import Config

PAGE, ROWS = "index.html", "descriptions.jsonl"
_SHOWN = 500  # pictures on the page: a browser still scrolls it
_SIDE = 320  # pixels of a picture on the page
_SKIPPED = 20  # reasons that are listed on the page


@dataclasses.dataclass(frozen=True)
class Described:
    """What came of a folder.

    Attributes:
        page: the gallery.
        rows: one JSON object a file: `file` and `answer`, or `file` and `skipped` with the reason.
        answered: pictures with an answer.
        skipped: files that are no usable picture.
    """

    page: Path
    rows: Path
    answered: int
    skipped: int


def run(config: Config, location: str, folder: Path, output: Path, *, question: str) -> Described:
    """Describe every picture below a folder, greedily.

    Args:
        config: sections serving, evaluation (device, precision, batch_tokens), data (limits of a picture), registry.
        location: the model, see `ask.run`.
        folder: searched with its subfolders; hidden files are left out.
        output: folder for index.html and descriptions.jsonl.
        question: what each picture is asked.

    Raises:
        InputError: the folder holds no usable picture, the question or the model cannot be used, or `output` cannot be
            written.
    """
    from multimodal_gemma.evaluation import loading
    from multimodal_gemma.registry.resolve import resolve_model
    from multimodal_gemma.serving.assistant import Assistant

    paths = _files(folder, output)
    asking, log = config.evaluation, logs.get("describe")
    model, processor = loading.load(resolve_model(location, config), device=asking.device, precision=asking.precision)
    Assistant(model, processor, config.serving).check(question)
    generator = loading.generator(
        model,
        processor,
        suffix="",
        max_new_tokens=config.serving.max_new_tokens,
        batch_tokens=asking.batch_tokens,
    )
    rows: list[dict[str, Any]] = []
    shown: list[tuple[str, Image, str]] = []
    waiting: deque[tuple[str, Image, str]] = deque()

    def readable() -> Iterator[tuple[Image, Sequence[str]]]:
        for path in paths:
            name = _printable(path.relative_to(folder))
            try:
                picture = pictures.from_file(path, config.data)
            except InputError as error:
                reason = str(error).removeprefix(f"picture: {path} ").removeprefix("cannot be used: ")
                rows.append({"file": name, "skipped": reason})
                log.warning("skipped %s: %s", name, reason)
                progress.advance()
                continue
            small = picture.image.copy()
            small.thumbnail((_SIDE, _SIDE))
            waiting.append((name, small, picture.note))
            yield picture.image, [question]

    started = time.monotonic()
    with Progress("describe", len(paths), "file") as progress, loading.threads_for(model):
        for (answer,) in generator.answer(readable()):
            name, small, note = waiting.popleft()
            rows.append({"file": name, "answer": answer.text} | ({"note": note} if note else {}))
            if len(shown) < _SHOWN:
                shown.append((name, small, answer.text))
            progress.advance()
    seconds = time.monotonic() - started
    answered = sum("answer" in row for row in rows)
    if not answered:
        raise InputError(f"describe: none of the {len(rows):,} files in {folder} is a usable picture; {_first(rows)}")
    rows.sort(key=lambda row: str(row["file"]))
    files.write_jsonl(output / ROWS, rows)
    files.write_text(output / PAGE, _page(rows, shown, question, seconds))
    log.info(
        "%s of %s files described in %.1f s, %s skipped: %s",
        f"{answered:,}", f"{len(rows):,}", seconds, f"{len(rows) - answered:,}", output / PAGE,
    )  # fmt: skip
    return Described(output / PAGE, output / ROWS, answered, len(rows) - answered)


def _printable(path: Path) -> str:
    r"""Return a name as text; bytes that are no UTF-8 are told as such, e.g. caf\xe9.jpg."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def _files(folder: Path, output: Path) -> list[Path]:
    if not folder.is_dir():
        kind = "is a file; `mmgemma ask` takes one" if folder.is_file() else "does not exist. Check the path"
        raise InputError(f"describe: {folder} {kind}.")
    own = output.resolve()  # an earlier result in the folder itself is no picture of the user's
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (Path(place) / name).resolve() != own
        )
        found += [Path(place) / name for name in sorted(names) if not name.startswith(".")]
    if own == folder.resolve():
        found = [path for path in found if path.name not in (PAGE, ROWS)]
    if not found:
        raise InputError(f"describe: {folder} holds no files. Give a folder of pictures.")
    return found


def _first(rows: Sequence[dict[str, Any]]) -> str:
    return f"the first, {rows[0]['file']}, {rows[0]['skipped']}"


def _page(
    rows: Sequence[dict[str, Any]], shown: Sequence[tuple[str, Image, str]], question: str, seconds: float
) -> str:
    skipped = [row for row in rows if "skipped" in row]
    answered = len(rows) - len(skipped)
    page = Page("What the model sees", f"Each picture was asked: {question}")
    page.cards(
        [
            ("pictures", f"{answered:,}", "described"),
            ("skipped", f"{len(skipped):,}", "files that are no usable picture"),
            ("time", f"{seconds:.1f} s", f"{answered / max(seconds, 1e-9):.1f} pictures a second"),
        ]
    )
    cut = f"The first {len(shown):,} of {answered:,}; {ROWS} has all. " if len(shown) < answered else ""
    page.section("Pictures", f"{cut}Answers are the model's own words and may be wrong.")
    page.gallery([GalleryItem(image, name, [(answer, "")]) for name, image, answer in shown])
    if skipped:
        page.section("Skipped", "These files were left out, for the reason beside them.")
        page.table(["file", "reason"], [[row["file"], row["skipped"]] for row in skipped[:_SKIPPED]])
        if len(skipped) > _SKIPPED:
            page.paragraph(f"And {len(skipped) - _SKIPPED:,} more, see {ROWS}.")
    return page.html()
