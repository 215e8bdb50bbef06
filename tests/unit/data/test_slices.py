from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from multimodal_gemma.data import slices
from multimodal_gemma.data.slices import DeadlyJob, Slices
from multimodal_gemma.errors import InputError


@dataclasses.dataclass(frozen=True)
class Words(DeadlyJob):
    """Writes words; some of them end the process, as a broken decoder would, some only among others, as memory does."""

    name: str
    words: tuple[str, ...]
    lost: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return len(self.words)

    def __call__(self, path: Path, tell: Callable[[str], None]) -> None:
        for word in self.words:
            tell(word)
            if (word == "deadly" and word not in self.lost) or (word == "heavy" and len(self.words) > 1):
                os.kill(os.getpid(), signal.SIGSEGV)
        path.write_text(" ".join(f"{word}!" if word in self.lost else word for word in self.words))

    def only(self, item: str) -> Words:
        return dataclasses.replace(self, words=(item,))

    def without(self, item: str, reason: str) -> Words:
        assert "crashes" in reason
        return dataclasses.replace(self, lost=(*self.lost, item))


class Shelf:
    """A store in memory."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def get(self, digest: str, path: Path) -> bool:
        if digest in self.held:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.held[digest])
        return digest in self.held

    def put(self, digest: str, path: Path) -> None:
        self.held[digest] = path.read_bytes()


def words(*texts: str) -> list[Words]:
    return [Words(f"part/{number}.arrow", tuple(text.split())) for number, text in enumerate(texts)]


@pytest.mark.parametrize("at_once", [0, 100])
def test_every_slice_is_made_once_and_nothing_else_stays(tmp_path: Path, at_once: int) -> None:
    made = Slices(tmp_path, workers=2)
    made.ensure("part", words("a b", "c", "d"), "word", at_once=at_once)
    (tmp_path / "part" / ".1.arrow.x.tmp").write_text("half")
    again = Slices(tmp_path, workers=2)
    again.ensure("part", words("a b", "c"), "word", at_once=at_once)
    assert (made.made, made.found, again.made, again.found) == (4, 0, 0, 3)
    assert {path.name: path.read_text() for path in (tmp_path / "part").iterdir()} == {"0.arrow": "a b", "1.arrow": "c"}


def test_what_ends_the_process_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Slices(tmp_path, workers=2).ensure("part", words("a deadly b", "c", "d e", "f deadly"), "word")
    said = [(tmp_path / "part" / f"{number}.arrow").read_text() for number in range(4)]
    assert said == ["a deadly! b", "c", "d e", "f deadly!"]
    assert "deadly ends the process that decodes it" in caplog.text


def test_workers_that_die_of_nothing_in_particular_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"one of 2 worker processes died, most likely for memory.*data\.workers=1"):
        Slices(tmp_path, workers=2).ensure("part", words("a heavy", "b"), "word")
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_slice_that_differs_from_what_was_left_is_made_again(tmp_path: Path) -> None:
    Slices(tmp_path).ensure("part", words("a", "b"), "word", at_once=9)
    (tmp_path / "part" / "0.arrow").write_text("edited")
    trusted = {"part/0.arrow": "0" * 64}
    again = Slices(tmp_path, trusted=trusted)
    again.ensure("part", words("a", "b"), "word", at_once=9)
    assert (tmp_path / "part" / "0.arrow").read_text() == "a"
    assert (again.made, again.found) == (1, 1)


def test_another_machine_takes_slices_from_the_store(tmp_path: Path) -> None:
    shelf = Shelf()
    Slices(tmp_path / "one", store=shelf).ensure("part", words("a", "b"), "word", at_once=9)
    other = Slices(tmp_path / "other", store=shelf)
    other.ensure("part", words("a", "b", "c"), "word", at_once=9)
    assert (other.made, other.found) == (1, 2)
    assert (tmp_path / "other" / "part" / "1.arrow").read_text() == "b"
    assert sorted(shelf.held) == ["0", "1", "2"]


@pytest.mark.parametrize(("quota", "cores"), [("max 100000\n", 64), ("250000 100000\n", 2), ("50000 100000\n", 1)])
def test_a_container_starts_no_more_workers_than_it_has_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(slices, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert slices.available_cores() == cores
