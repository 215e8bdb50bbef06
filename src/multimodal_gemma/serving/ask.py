"""`mmgemma ask` and `mmgemma describe`: one question about one picture, or about every picture of a folder."""

from __future__ import annotations

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


def run(config: Config, location: str, picture: str, question: str) -> None:
    """Ask a model about one picture, and print the answer as it is generated.

    Args:
        config: sections serving, evaluation (device and precision), data (limits of a picture) and registry.
        location: the model: a folder, models:/NAME@ALIAS, s3://, or a name on the hub.
        picture: path of a file, or an https:// address.
        question: what is asked.

    Raises:
        InputError: picture, question or model cannot be used.
    """
    seen = pictures.read(picture, config)  # before the model is loaded: a mistake should be told at once
    if seen.note:
        logs.get("ask").warning(seen.note)
    from multimodal_gemma.serving.assistant import Assistant, Sampling

    sampling = Sampling(config.serving.max_new_tokens, config.serving.temperature, config.serving.top_p)
    begun = False
    for piece in Assistant.load(location, config).stream(seen.image, question, sampling):
        print(piece if begun else piece.lstrip(), end="", flush=True)  # noqa: T201
        begun = begun or bool(piece.strip())
    print()  # noqa: T201


def describe(config: Config, location: str, folder: Path, output: Path, *, question: str) -> list[dict[str, Any]]:
    """Ask about every picture below a folder, greedily; the answers become a page and JSON lines.

    Args:
        config: sections serving, evaluation (device, precision, batch_tokens), data (limits of a picture), registry.
        location: the model, see `run`.
        folder: searched with its subfolders; hidden files are left out.
        output: folder for index.html and descriptions.jsonl.
        question: what each picture is asked.

    Returns:
        The JSON lines, one a file: `file` with `answer`, or with `skipped` and the reason.

    Raises:
        InputError: the folder holds no usable picture, the question or the model cannot be used, or `output` cannot be
            written.
    """
    from multimodal_gemma.evaluation import generator, loading
    from multimodal_gemma.registry.resolve import resolve_model
    from multimodal_gemma.serving.assistant import Assistant

    paths = _files(folder, output)
    asking, log = config.evaluation, logs.get("describe")
    model, processor = loading.load(resolve_model(location, config), device=asking.device, precision=asking.precision)
    Assistant(model, processor, config.serving).check(question)
    longest = config.serving.max_new_tokens
    asked = generator.fastest(model, processor, max_new_tokens=longest, batch_tokens=asking.batch_tokens)
    rows: list[dict[str, Any]] = []
    shown: list[tuple[str, Image, str]] = []
    waiting: deque[tuple[str, Image, str]] = deque()

    def readable() -> Iterator[tuple[Image, Sequence[str]]]:
        for path in paths:
            # Bytes that are no UTF-8 are told as such, e.g. caf\\xe9.jpg.
            name = os.fsencode(path.relative_to(folder)).decode("utf-8", errors="backslashreplace")
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
        for (answer,) in asked.answer(readable()):
            name, small, note = waiting.popleft()
            rows.append({"file": name, "answer": answer.text} | ({"note": note} if note else {}))
            if len(shown) < _SHOWN:
                shown.append((name, small, answer.text))
            progress.advance()
    seconds = time.monotonic() - started
    answered = sum("answer" in row for row in rows)
    if not answered:
        first = f"the first, {rows[0]['file']}, {rows[0]['skipped']}"
        raise InputError(f"describe: none of the {len(rows):,} files in {folder} is a usable picture; {first}")
    rows.sort(key=lambda row: str(row["file"]))
    files.write_jsonl(output / ROWS, rows)
    files.write_text(output / PAGE, _page(rows, shown, question, seconds))
    skipped = len(rows) - answered
    log.info(f"{answered:,} of {len(rows):,} files described in {seconds:.1f} s, {skipped:,} skipped: {output / PAGE}")
    return rows


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
