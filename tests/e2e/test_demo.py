"""The demo in a real browser: a photograph goes up, words stream back, and one answer is stopped.

Set MMGEMMA_SCREENSHOTS to a folder to look at what the browser showed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.evaluation import tiny

pytest.importorskip("gradio", reason="gradio is not installed (extra serve)")
pytest.importorskip("selenium", reason="selenium is not installed (extra dev)")
WIDTHS = {"desktop": (1200, 900), "phone": (390, 844)}
LONG = 3000  # tokens: seconds of babble, so that there is something to stop


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = os.environ.get("MMGEMMA_DEMO_MODEL") or str(tiny.save(tmp_path_factory.mktemp("demo") / "model"))
    command = [sys.executable, "-m", "multimodal_gemma.cli", "demo", "--model", model, "--port", "0"]
    command += [f"serving.max_new_tokens={LONG}", "evaluation.device=cpu", "data.max_image_bytes=2000000"]
    log = tmp_path_factory.mktemp("log") / "stderr"
    with log.open("w") as stream:
        server = subprocess.Popen(command, stderr=stream, stdout=stream)
    try:
        yield wait_for(lambda: re.search(r"open (http\S+) in", log.read_text()), f"the server; {log}", 120).group(1)
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(params=list(WIDTHS))
def browser(request: pytest.FixtureRequest, address: str) -> Iterator[Any]:
    from selenium import webdriver

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    width, height = WIDTHS[request.param]
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        f"window-size={width},{height}",
    ):
        options.add_argument(f"--{switch}")
    options.add_experimental_option(
        "mobileEmulation", {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 1}}
    )
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.name_of_size = request.param
    try:
        browser.get(address)
        wait_for(lambda: browser.find_elements("css selector", "textarea"), "the page", 60)
        yield browser
    finally:
        browser.quit()


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Ask again until there is an answer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s in vain for {what}")


def look(browser: Any, name: str) -> None:
    if folder := os.environ.get("MMGEMMA_SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/{browser.name_of_size}-{name}.png")


def said(browser: Any) -> list[str]:
    """Text of each reply on the page."""
    script = "return [...document.querySelectorAll('.message.bot, .bot.message')].map(node => node.innerText.trim())"
    return [text for text in browser.execute_script(script) if text != "Loading content"]  # what a spinner is called


def press(browser: Any, kind: str, *, only_look: bool = False) -> bool:
    """Press a button if it is there; in the page itself, which redraws itself while words stream in."""
    script = (
        "const [kind, look] = arguments, found = document.querySelector(`button.${kind}:not([disabled])`);"
        "if (found && !look) found.click(); return Boolean(found)"
    )
    return bool(browser.execute_script(script, kind, only_look))


def send(browser: Any, question: str, picture: Path | None = None) -> None:
    if picture is not None:
        browser.find_element("css selector", "input[type=file]").send_keys(str(picture))
        wait_for(lambda: browser.find_elements("css selector", ".thumbnail-item img, .thumbnails img"), "the upload")
    browser.find_element("css selector", "textarea").send_keys(question)
    wait_for(lambda: press(browser, "submit-button"), "the button that sends")


def test_a_photograph_is_asked_about_and_an_answer_is_stopped(browser: Any, shared: Path) -> None:
    photograph = sorted((shared / "coco-sample" / "train2017").glob("*.jpg"))[0]
    look(browser, "1-empty")
    send(browser, "What is in the picture?", photograph)
    first = wait_for(lambda: next(iter(said(browser)), ""), "the first words")
    growing = wait_for(lambda: (text := said(browser)[0]) != first and text, "more words")
    assert len(growing) > len(first)
    look(browser, "2-streaming")
    wait_for(lambda: press(browser, "stop-button"), "the button that stops")
    wait_for(lambda: not press(browser, "stop-button", only_look=True), "the end of the answer", 20)
    stopped = said(browser)[0]
    time.sleep(1)
    assert said(browser)[0] == stopped
    # Gradio's own button Share would send the picture to huggingface.co.
    script = "return [...document.querySelectorAll('button')].filter(b => b.offsetParent).map(b => b.ariaLabel)"
    assert "Download" in (labels := browser.execute_script(script))
    assert "Share" not in labels
    look(browser, "3-stopped")
    # The model is free again: the next question is answered, about the same picture.
    send(browser, "And what color is it?")
    wait_for(lambda: len(said(browser)) > 1 and said(browser)[1], "the second answer")
    press(browser, "stop-button")
    look(browser, "4-second")
    scroll = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(scroll) <= 0


def test_what_cannot_be_asked_is_said_in_the_page(browser: Any, tmp_path: Path) -> None:
    send(browser, "What is in the picture?")
    wait_for(lambda: "there is none yet" in "".join(said(browser)), "a refusal of a question without a picture")
    drawing = tmp_path / "drawing.svg"
    drawing.write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    send(browser, "What is this?", drawing)
    wait_for(lambda: "SVG drawing" in "".join(said(browser)), "a refusal of a drawing")
    look(browser, "5-refused")
    large = tmp_path / "large.jpg"
    large.write_bytes(b"\xff\xd8\xff" + bytes(3_000_000))
    browser.find_element("css selector", "input[type=file]").send_keys(str(large))
    wait_for(lambda: "maximum" in browser.page_source.lower(), "a refusal of a large file", 20)
    look(browser, "6-too-large")
