"""A reader never meets half a file."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from multimodal_gemma import files
from multimodal_gemma.errors import InputError


def test_a_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, {"kept": 1})
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert files.read_json(path, "value") == {"kept": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value.txt"
    files.write_text(path, "whole")
    code = (
        "import sys, os, signal; from pathlib import Path; from multimodal_gemma import files\n"
        "with files.atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "whole"


def test_a_byte_order_mark_is_no_part_of_json(tmp_path: Path) -> None:
    path = tmp_path / "value"
    path.write_text('\ufeff{"a": "\\ud83d\\ude00"}\n', encoding="utf-8")
    assert files.read_json(path, "value") == {"a": "\U0001f600"}
    assert files.read_jsonl(path, "value") == [{"a": "\U0001f600"}]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('{"a": ' + "9" * 5_000 + "}", "a number of thousands of digits"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ('{"a": "x\\ud800y"}', "half of a character"),
    ],
)
def test_absurd_json_is_one_sentence(value: str, said: str, tmp_path: Path) -> None:
    """Found when it is read: a text that is no text would end the run when its answer is written."""
    path = tmp_path / "value"
    path.write_text(value, encoding="utf-8")
    for read in (files.read_json, files.read_jsonl):
        with pytest.raises(InputError, match=said):
            read(path, "value")


def test_written_files_can_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "value.txt"
    files.write_text(path, "x")
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_full_disk_is_named() -> None:
    sentence = str(files.unwritable(Path("/data"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert sentence.startswith("/data: the disk is full")


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot be written .* Choose a folder"):
        files.write_text(tmp_path / "file" / "value.txt", "x")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b'[{"id": 1}, {"i', "no whole JSON document .*truncated"),
        (b"\xff\xfe\x00", "no UTF-8 text"),
        (b"", "no whole JSON document"),
    ],
)
def test_unreadable_json_is_said_in_one_sentence(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "conversations.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"conversations: .*{said}"):
        files.read_json(path, "conversations")


def test_json_lines_name_the_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n[2]\n')
    with pytest.raises(InputError, match="line 3"):
        files.read_jsonl(path, "rows")


def test_sha256_is_the_published_one(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    assert files.sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_digest_does_not_depend_on_key_order() -> None:
    assert files.digest_of({"a": 1, "b": [2, "é"]}) == files.digest_of({"b": [2, "é"], "a": 1})
    assert files.digest_of({"a": 1}) != files.digest_of({"a": 2})
