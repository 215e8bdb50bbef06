"""A model is named the same way in every command: by a folder, the registry, an object store or a hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from multimodal_gemma import cli
from multimodal_gemma.data.sources import buckets
from tests.unit.data.serving import Server, serve
from tests.unit.evaluation import tiny
from tests.unit.registry import artifacts

TINY = ("evaluation.device=cpu", "serving.max_new_tokens=8", "--quiet")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMGEMMA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    tiny.images(1)[0].save(folder / "a.png")
    return folder


def asked(model: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(["ask", str(pictures / "a.png"), "dog ?", "--model", model, *TINY]) == 0
    return capsys.readouterr().out


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    from huggingface_hub import constants

    with serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield server


def test_a_hub_name_is_asked_and_describes_like_its_folder(
    hub: Server, babbler: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = {path.name: path.read_bytes() for path in babbler.iterdir()}
    hub.add_hub_repository("models", "ours/tiny", "main", stored)
    expected = asked(str(babbler), pictures, capsys)
    assert asked("ours/tiny", pictures, capsys) == expected
    out = tmp_path / "out"
    arguments = ["describe", str(pictures), "--model", "ours/tiny", "--question", "dog ?", "--output", str(out)]
    assert cli.main([*arguments, *TINY]) == 0
    assert expected.strip() in (out / "descriptions.jsonl").read_text()


def test_an_object_store_is_asked_like_its_folder(
    babbler: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moto = pytest.importorskip("moto.server", reason="moto is not installed (extra dev)")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        values = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        for name, value in {**values, "AWS_REGION": "us-east-1"}.items():
            monkeypatch.setenv(name, value)
        client = buckets.s3_client()
        client.make_bucket("models")
        for path in babbler.iterdir():
            client.fput_object("models", f"ours/{path.name}", str(path))
        assert asked("s3://models/ours", pictures, capsys) == asked(str(babbler), pictures, capsys)
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("models:/nobody@champion", "has no alias 'champion'"),
        ("models:/nobody", "names no registered model"),
        ("/nowhere", "does not exist"),
        ("ftp://host/model", "cannot be loaded from here"),
    ],
)
@pytest.mark.parametrize("command", ["ask", "describe", "demo"])
def test_a_model_that_is_not_there_is_one_sentence(
    command: str, model: str, said: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "demo":
        pytest.importorskip("gradio", reason="gradio is not installed (extra serve)")
    about = {"ask": [str(pictures / "a.png"), "dog ?"], "describe": [str(pictures)], "demo": ["--port", "0"]}[command]
    registry = f"registry.tracking_uri='{artifacts.database()}'"
    assert cli.main([command, *about, "--model", model, registry, *TINY]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("mmgemma: model: ")
    assert said in error[-1]
