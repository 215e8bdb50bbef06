"""Every command that a page, a workflow or a manifest names exists, with these options and on these files."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from multimodal_gemma import cli

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(
    [
        REPOSITORY / "README.md",
        *(REPOSITORY / "docs").glob("*.md"),
        *(REPOSITORY / "manifests").rglob("*.md"),
        *(REPOSITORY / ".github" / "workflows").glob("*.yml"),
        *(REPOSITORY / "pipelines" / "parameters").glob("*.yaml"),
    ]
)
COMMAND = re.compile(r"(?<![\w./-])(?<!--name )(?<!--cluster )(?:\.venv/bin/)?mmgemma,? ([a-z]+)\b([^|;&`]*)")
MADE = ("images/digests.json", "release/", "images/pipeline.spdx", "images/trainer.spdx")  # by the commands themselves


def _commands(page: Path) -> Iterator[str]:
    """The lines of code of a page: in Markdown what stands in fences and between backticks, else everything."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        text = "\n".join([*re.findall(r"```\w*\n(.*?)```", text, re.DOTALL), *re.findall(r"(?<!`)`([^`\n]+)`", text)])
    yield from re.sub(r"\\\n\s*", " ", text).splitlines()


def _subparsers() -> dict[str, argparse.ArgumentParser]:
    (actions,) = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions.choices)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_mmgemma_command_exists_with_its_options(page: Path) -> None:
    verbs = _subparsers()
    for line in _commands(page):
        for verb, rest in re.findall(
            r"(?<![\w./-])(?<!--name )(?<!--cluster )(?:\.venv/bin/)?mmgemma,? ([a-z]+)\b([^|;&`]*)", line
        ):
            assert verb in verbs, line
            known = {option for action in verbs[verb]._actions for option in action.option_strings}
            assert set(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)) <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_make_target_exists(page: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text().replace("$(VENV)", ".venv")
    targets = set(re.findall(r"^([\w./-]+):", makefile, re.MULTILINE))
    for line in _commands(page):
        for words in re.findall(r"(?:^|[\s;&])make ((?:[\w./-]+ ?)+)(?=$|[^=\w])", f" {line}"):
            assert set(words.split()) - _assigned(line) <= targets, line


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_file_that_a_command_names_exists(page: Path) -> None:
    for line in _commands(page):
        for path in re.findall(r"(?<![\w./-])((?:manifests|pipelines|images|tests|\.github)/[\w./-]*\w)", line):
            assert (REPOSITORY / path).exists() or path.startswith(MADE), line


def _assigned(line: str) -> set[str]:
    try:
        return {word.split("=")[0] for word in shlex.split(line) if "=" in word}
    except ValueError:
        return set()
