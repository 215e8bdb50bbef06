"""A lock file: what the sources held is written down, and a run that is bound to it takes nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from multimodal_gemma import cli
from multimodal_gemma.data.sources import retrying
from multimodal_gemma.data.sources.web import LOOPBACK_VARIABLE
from tests.unit.data import making
from tests.unit.data.serving import COMMIT, Server, serve

SHA = "9" * 40
TALK = json.dumps([making.conversation("a.jpg"), making.conversation("a.jpg", ("Where?", "There."))]).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv(LOOPBACK_VARIABLE, "1")
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.001)
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        running.add_hub_repository("datasets", "org/talk", "main", {"talk.json": TALK}, "cc-by-4.0")
        running.files["/bucket/images/a.jpg"] = making.image_bytes()
        running.files["/images.zip"] = b"an archive"
        yield running


def run(command: str, *arguments: object, conversations: str = "hf://datasets/org/talk@main/talk.json") -> int:
    places = [f"data.conversations={conversations}", "data.images=s3://bucket/images/"]
    return cli.main([*command.split(), "--preset=sample", *map(str, arguments), *places])


def test_what_is_locked_is_written_for_people(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("preflight", "--lock", tmp_path / "lock", f"data.image_roots=['x/={server.url}/images.zip']") == 0
    told = json.loads((tmp_path / "lock").read_text())["sources"]
    talk = told["data.conversations"]
    assert talk["commit"] == COMMIT
    assert talk["licence"] == "cc-by-4.0"
    assert talk["files"]["talk.json"].startswith(f"{len(TALK)} bytes, git ")
    assert list(told["data.images"]["files"]) == ["a.jpg"]
    assert "ETag" in told["data.images"]["files"]["a.jpg"]
    assert "Mon, 01 Jan 2024" in told["data.image_roots (x/)"]["files"][""]
    assert set(told) >= {"benchmarks.pope", "model.language"}
    assert COMMIT in capsys.readouterr().out


def test_what_is_made_of_an_artifact_keeps_its_revision_and_licence(server: Server, tmp_path: Path) -> None:
    """A mirror, or a dataset that was downloaded before: its report would say "not stated" of what it states."""
    assert run("download dataset", tmp_path / "raw") == 0
    again = [
        "download",
        "dataset",
        "--preset=sample",
        str(tmp_path / "again"),
        f"data.conversations={tmp_path / 'raw'}",
    ]
    assert cli.main([*again, "data.images="]) == 0
    told = json.loads((tmp_path / "again/sources.json").read_text())["sources"]
    talk = {"uri": "hf://datasets/org/talk@main/talk.json", "commit": COMMIT, "licence": "cc-by-4.0"}
    assert told["data.conversations (data.conversations)"] == talk
    assert told["data.conversations (data.images)"] == {"uri": "s3://bucket/images/"}
    assert told["data.conversations"]["licence"] == "cc-by-4.0, not stated"


def test_a_bound_download_takes_what_was_locked(server: Server, tmp_path: Path) -> None:
    assert run("preflight", "--lock", tmp_path / "lock") == 0
    assert run("download dataset", tmp_path / "raw", "--locked", tmp_path / "lock") == 0


@pytest.mark.parametrize("moved", ["branch", "object"])
def test_a_source_that_moved_is_one_sentence(
    moved: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("preflight", "--lock", tmp_path / "lock") == 0
    if moved == "branch":
        facts = server.files["/api/datasets/org/talk/revision/main"].replace(COMMIT.encode(), SHA.encode())
        server.files["/api/datasets/org/talk/revision/main"] = facts
    else:
        server.files["/bucket/images/a.jpg"] += b"!"
    capsys.readouterr()
    assert run("download dataset", tmp_path / "raw", "--locked", tmp_path / "lock") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "has changed since it was locked" in said[0]
    assert ("hf://datasets/org/talk@main" if moved == "branch" else "s3://bucket/images/") in said[0]
    assert not (tmp_path / "raw").exists()
    if moved == "branch":  # the locked commit, named, is what was locked: but under another location
        named = f"hf://datasets/org/talk@{COMMIT}/talk.json"
        assert run("download dataset", tmp_path / "raw", "--locked", tmp_path / "lock", conversations=named) == 2
        assert "is not in the lock file" in capsys.readouterr().err
        assert run("preflight", "--lock", tmp_path / "lock", conversations=named) == 0
        assert run("download dataset", tmp_path / "raw", "--locked", tmp_path / "lock", conversations=named) == 0


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"schema": 1, "sources": {"a": 1}}', '{"schema": 9}'])
def test_a_file_that_is_no_lock_is_one_sentence(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "lock").write_text(content)
    assert cli.main(["download", "dataset", str(tmp_path / "raw"), "--locked", str(tmp_path / "lock")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_lock_fits_into_the_parameters_of_a_run(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("preflight", "--lock", tmp_path / "lock") == 0
    capsys.readouterr()
    assert run("submit", "--dry-run", "--locked", tmp_path / "lock") == 0
    sent = json.loads(capsys.readouterr().out)["parameters"]
    (bound,) = [line for value in sent.values() if isinstance(value, list) for line in value if "data.locked" in line]
    assert len(bound) < 500
