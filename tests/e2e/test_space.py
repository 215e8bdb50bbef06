"""The Space runs as the Hub runs it: `python app.py` in its folder, asked by gradio's own client and by a browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from multimodal_gemma.export import space
from tests.unit.evaluation import tiny

pytest.importorskip("gradio", reason="gradio is not installed (extra serve)")
STARTING = 180  # seconds
QUESTION = "what color is the car ?"
# Installed here, and no requirement of the Space.
ABSENT = (
    "multimodal_gemma",
    "mlflow",
    "sqlalchemy",
    "minio",
    "hydra",
    "omegaconf",
    "peft",
    "datasets",
    "pyarrow",
    "torchao",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("space") / "model")


@pytest.fixture(scope="module")
def address(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("hub") / "app"
    space.write(folder, name="ours", published="", licence="apache-2.0")
    shutil.copytree(model, folder / "model")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = folder.parent / "log"
    (folder.parent / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder.parent),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
    }
    with log.open("w") as stream:
        server = subprocess.Popen([sys.executable, "app.py"], cwd=folder, stdout=stream, stderr=stream, env=environment)
    try:
        end = time.monotonic() + STARTING
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def test_gradios_client_gets_the_answer_of_stock_generate(address: str, model: Path, shared: Path) -> None:
    from gradio_client import Client, handle_file
    from PIL import Image

    photograph = sorted((shared / "coco-sample" / "train2017").glob("*.jpg"))[0]
    message = {"text": QUESTION, "files": [handle_file(str(photograph))]}
    said = Client(address, verbose=False).predict(message, 12, api_name="/reply")
    stock, processor = AutoModelForImageTextToText.from_pretrained(model), AutoProcessor.from_pretrained(model)
    prompt = f"<bos><start_of_turn>user\n<image>\n{QUESTION}<end_of_turn>\n<start_of_turn>model\n"
    with Image.open(photograph) as opened:
        inputs = processor(images=[opened.convert("RGB")], text=[prompt], add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        tokens = stock.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert str(said).strip() == processor.decode(tokens, skip_special_tokens=True).strip()


def test_a_browser_shows_the_page(address: str) -> None:
    pytest.importorskip("selenium", reason="selenium is not installed (extra dev)")
    from selenium import webdriver
    from selenium.webdriver.support.wait import WebDriverWait

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1200,900"):
        options.add_argument(f"--{switch}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.get(address)
        WebDriverWait(browser, 60).until(lambda page: page.find_elements("css selector", "textarea"))
        WebDriverWait(browser, 60).until(lambda page: "Ask about a picture" in page.page_source)
        if folder := os.environ.get("MMGEMMA_SCREENSHOTS"):
            time.sleep(2)
            browser.save_screenshot(f"{folder}/space.png")
    finally:
        browser.quit()
