"""What the demo tells the model of a conversation, without a browser."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from multimodal_gemma import cli
from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.serving import demo
from multimodal_gemma.serving.assistant import Assistant, Sampling
from tests.unit.evaluation import tiny

CHOSEN = (8, 0.0, 1.0)


@pytest.fixture(scope="module")
def assistant(babbler: Path) -> Assistant:
    config = Config()
    config.evaluation.device = "cpu"
    return Assistant.load(str(babbler), config)


def turn(role: str, text: str = "", picture: str = "", refused: bool = False) -> dict[str, Any]:
    """A message as gradio 6 hands it over."""
    parts: list[dict[str, Any]] = [{"type": "file", "file": {"path": picture}}] if picture else []
    parts += [{"type": "text", "text": text}] if text else []
    return {"role": role, "content": parts, "metadata": {"title": demo._REFUSED} if refused else {}}


def test_a_conversation_is_about_the_picture_that_was_sent_last() -> None:
    history = [
        turn("user", picture="one.png"), turn("user", "dog ?"), turn("assistant", "yes"),
        turn("user", picture="two.png"), turn("user", "cat ?"), turn("assistant", "no\n\nP(yes) 0.04"),
        turn("user", "<image>"), turn("assistant", "it holds <image>", refused=True),
        turn("user", "car ?"), turn("assistant", "no"),
    ]  # fmt: skip
    assert demo._past(history) == ("two.png", [("cat ?", "no"), ("car ?", "no")])
    together = [turn("user", "dog ?", "one.png"), turn("assistant", "yes")]
    assert demo._past(together) == ("one.png", [("dog ?", "yes")])
    assert demo._past([]) == ("", [])


def test_an_answer_grows_to_that_of_the_model(assistant: Assistant, config: Config, picture: Path) -> None:
    message = {"text": "dog ?", "files": [str(picture)]}
    grown = list(demo._answer(assistant, config, message, [], CHOSEN))
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(grown))
    assert grown[-1].strip() == assistant.answer(tiny.images(1)[0], "dog ?", Sampling(8))


@pytest.mark.parametrize(
    ("text", "files", "said"),
    [
        ("dog ?", [], "there is none yet"),
        ("", ["picture.png"], "it is empty"),
        ("dog ?", ["picture.png", "picture.png"], "one picture at a time"),
        ("<image> dog ?", ["picture.png"], "it holds <image>"),
        ("dog " * 25_000, ["picture.png"], "100,000 characters"),
        ("dog ?", ["words.jpg"], "the picture cannot be used: it is none of JPEG"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence_without_a_path(
    assistant: Assistant, config: Config, picture: Path, text: str, files: list[str], said: str
) -> None:
    (picture.parent / "words.jpg").write_text("words")
    message = {"text": text, "files": [str(picture.parent / name) for name in files]}
    with pytest.raises(InputError) as error:
        list(demo._answer(assistant, config, message, [], CHOSEN))
    assert said in str(error.value)
    assert str(picture.parent) not in str(error.value)


def test_examples_are_pictures(tmp_path: Path, config: Config, picture: Path) -> None:
    (tmp_path / "words.txt").write_text("words")
    assert [path for path, _ in demo._given(tmp_path, config)] == [picture]
    with pytest.raises(InputError, match="does not exist"):
        demo._given(tmp_path / "nowhere", config)
    drawn = demo._drawn(tmp_path)
    assert len(drawn) == 3
    assert {path for path, _ in drawn} <= {path for path, _ in demo._given(tmp_path, config)}


def test_an_example_asks_about_what_is_in_its_picture(tmp_path: Path) -> None:
    from multimodal_gemma.sample.scenes import generate_distinct

    for scene, (_, question) in list(zip(generate_distinct(11, 3, "held_out"), demo._drawn(tmp_path), strict=True))[1:]:
        assert f" {scene.objects[0].kind}" in question


def test_what_a_model_says_is_shown_as_text_and_uploads_do_not_stay(assistant: Assistant, config: Config) -> None:
    pytest.importorskip("gradio")
    page = demo.build(assistant, config, [], name="x")
    (chat,) = [block for block in page.blocks.values() if type(block).__name__ == "Chatbot"]
    assert chat.render_markdown is False  # ![](https://…) in an answer fetches nothing
    assert page.delete_cache == (3600, 3600)


def test_a_yes_or_no_comes_with_its_probability(
    assistant: Assistant, config: Config, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = {"text": "dog ?", "files": [str(picture)]}
    monkeypatch.setattr(assistant, "stream", lambda *_, **__: iter(["Yes", ", it is"]))
    *_, last = demo._answer(assistant, config, message, [], CHOSEN)
    assert last == f"Yes, it is\n\nP(yes) {assistant.p_yes(tiny.images(1)[0], 'dog ?'):.2f}"


def test_a_taken_port_is_one_sentence(assistant: Assistant, babbler: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["demo", "--model", str(babbler), "--port", port, "evaluation.device=cpu"]) == 2
    assert "Choose another --port" in capsys.readouterr().err
