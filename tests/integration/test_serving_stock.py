"""Stock `transformers serve` on an exported folder, asked through the openai client as any application would."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multimodal_gemma.model import chat
from tests.unit.evaluation import tiny

openai = pytest.importorskip("openai", reason="openai is not installed (extra dev)")
STARTING = 120  # seconds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.save(tmp_path_factory.mktemp("served") / "model")
    words = tiny.tokenizer().get_vocab()
    template = chat.family_of(words, eos_token="<eos>", starts_with_bos=True).template  # as every model of ours has
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module")
def client(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("log") / "server"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as stream:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
    try:
        end = time.monotonic() + STARTING
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.2)
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=120)
    finally:
        server.terminate()
        server.wait(30)


def about(photograph: Path) -> list[dict[str, Any]]:
    encoded = base64.b64encode(photograph.read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded}"}}
    return [{"role": "user", "content": [image, {"type": "text", "text": "what color is the car ?"}]}]


def test_text_a_photograph_and_a_stream_are_answered(client: Any, model: Path, shared: Path) -> None:
    ask = client.chat.completions.create
    settings = {"model": str(model), "max_tokens": 12, "temperature": 0}
    text = [{"role": "user", "content": [{"type": "text", "text": "is there a dog ?"}]}]
    assert ask(messages=text, **settings).choices[0].message.content
    photographs = sorted((shared / "coco-sample" / "train2017").glob("*.jpg"))[:2]
    whole = [ask(messages=about(path), **settings).choices[0].message.content for path in photographs]
    assert all(whole)
    pieces = [
        chunk.choices[0].delta.content
        for chunk in ask(messages=about(photographs[0]), stream=True, **settings)
        if chunk.choices and chunk.choices[0].delta.content
    ]
    assert len(pieces) > 1
    assert "".join(pieces).strip() == whole[0].strip()


def test_a_system_message_and_a_second_turn_are_answered_as_the_template_writes_them(
    client: Any, model: Path, shared: Path
) -> None:
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    photograph = sorted((shared / "coco-sample" / "train2017").glob("*.jpg"))[0]
    messages = [{"role": "system", "content": "dog or cat ?"}, *about(photograph)]
    messages += [{"role": "assistant", "content": "w7"}, {"role": "user", "content": "is there a dog ?"}]
    settings = {"model": str(model), "max_tokens": 12, "temperature": 0}
    said = client.chat.completions.create(messages=messages, **settings).choices[0].message.content
    prompt = (
        "<bos><start_of_turn>user\n<image>\ndog or cat ?\n\nwhat color is the car ?<end_of_turn>\n"
        "<start_of_turn>model\nw7<end_of_turn>\n<start_of_turn>user\nis there a dog ?<end_of_turn>\n"
        "<start_of_turn>model\n"
    )
    stock, processor = AutoModelForImageTextToText.from_pretrained(model), AutoProcessor.from_pretrained(model)
    with Image.open(photograph) as opened:
        inputs = processor(images=[opened.convert("RGB")], text=[prompt], add_special_tokens=False, return_tensors="pt")
    tokens = stock.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert said.strip() == processor.decode(tokens, skip_special_tokens=True).strip()
