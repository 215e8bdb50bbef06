"""A chat about pictures. The variable MODEL names another model: a folder, or ORG/NAME[@REVISION] of the hub.

It needs gradio, torch, transformers and Pillow, and runs on a CPU as on a GPU. A conversation is about the picture that
was sent last; one person is answered at a time.
"""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image, ImageOps
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer

BUNDLED = Path(__file__).parent / "model"
MODEL = os.environ.get("MODEL") or (str(BUNDLED) if BUNDLED.is_dir() else "ORG/NAME")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 50_000_000  # decoded size; a larger picture is a mistake or a bomb
MAX_CHARACTERS = 4_000  # of a question
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def read(path: str) -> Image.Image:
    """Return an upright RGB picture."""
    with Image.open(path, formats=FORMATS) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"the picture has more than {MAX_PIXELS:,} pixels")
        return ImageOps.exif_transpose(opened).convert("RGB")


def conversation(message: dict[str, Any], history: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Return the picture sent last, and what was said since as chat messages."""
    picture = ""
    turns: list[dict[str, Any]] = []
    for turn in [*history, {"role": "user", "content": [message["text"], *map(as_file, message["files"])]}]:
        parts = turn["content"] if isinstance(turn["content"], list) else [turn["content"]]
        places = [part["file"]["path"] for part in parts if isinstance(part, dict) and part.get("file")]
        text = " ".join(part if isinstance(part, str) else part.get("text", "") for part in parts).strip()
        if places:
            picture, turns = places[-1], []
        if text and turns and turns[-1]["role"] == turn["role"]:
            turns.pop()  # a question that was not answered
        if text:
            image = [{"type": "image"}] if not turns else []
            turns.append({"role": turn["role"], "content": [*image, {"type": "text", "text": text}]})
    return picture, turns


def as_file(path: str) -> dict[str, Any]:
    """Return an upload in the form that the history has."""
    return {"file": {"path": path}}


def page(name: str) -> gr.ChatInterface:
    """Load a model and return the page that asks it."""
    place, _, revision = name.partition("@")
    pinned = {"revision": revision or "main"}  # of a repository; a folder has none
    processor = AutoProcessor.from_pretrained(place, **pinned)
    model = AutoModelForImageTextToText.from_pretrained(place, dtype="auto", **pinned).to(DEVICE).eval()
    reserved = {str(token) for token in processor.tokenizer.added_tokens_decoder.values() if token.special}

    def reply(message: dict[str, Any], history: list[dict[str, Any]], longest: float) -> Iterator[str]:
        question = message.get("text") or ""
        if not question.strip() or len(question) > MAX_CHARACTERS or any(token in question for token in reserved):
            raise gr.Error("Ask something short about the picture, without the tokens that the model reserves.")
        picture, turns = conversation({"text": question, "files": message.get("files") or []}, history)
        if not picture:
            raise gr.Error("There is no picture yet: add one beside the text.")
        try:
            image = read(picture)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise gr.Error(f"This picture cannot be used: {error}.") from None
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
        inputs = processor(images=[image], text=[prompt], add_special_tokens=False, return_tensors="pt")
        inputs = inputs.to(model.device, dtype=model.dtype)
        streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        settings = {**inputs, "max_new_tokens": int(longest), "streamer": streamer}  # greedy, as its files say
        threading.Thread(target=model.generate, kwargs=settings, daemon=True).start()
        said = ""
        for piece in streamer:
            said += piece
            yield said

    return gr.ChatInterface(
        reply,
        multimodal=True,
        textbox=gr.MultimodalTextbox(sources=["upload"], file_types=["image"], file_count="single"),
        chatbot=gr.Chatbot(show_label=False, render_markdown=False),  # what a model says is text
        additional_inputs=[gr.Slider(1, 512, 128, step=1, label="Longest answer, tokens")],
        title="Ask about a picture",
        description=f"{name}: a small model, often wrong. Do not rely on its answers.",
        concurrency_limit=1,
        flagging_mode="never",
        analytics_enabled=False,
        delete_cache=(3600, 3600),  # seconds: uploads do not stay
    )


if __name__ == "__main__":
    page(MODEL).queue(max_size=16).launch()
