"""`mmgemma demo`: a chat about pictures in the browser, on this machine.

One model answers one person at a time: others wait in a queue of stated length. A conversation is about the picture
that was sent last; what cannot be read or asked is said in the chat, and is no part of what the model is told later.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.serving import pictures

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config
    from multimodal_gemma.serving.assistant import Assistant, Turn

_KEPT = 3600  # seconds that an upload lies on the disk
_REFUSED = "Not answered"  # title of a reply that is no answer of the model
_QUESTION = "Describe the image concisely."
_SURE = "P(yes) "  # is added to an answer, and is no part of what the model is told later
_YES_OR_NO = re.compile(r"(yes|no)\b", re.IGNORECASE)
# Gradio's button Share, which no setting takes from a picture in a chat, sends it to huggingface.co.
_LOOKS = """
footer,button[aria-label="Share"]{display:none!important}
@media (max-width:600px){.gradio-container{padding:.4rem!important}.gradio-container h1{font-size:1.25rem!important}}
"""


def run(config: Config, location: str, *, host: str, port: int, examples: Path | None = None) -> None:
    """Serve the chat until interrupted.

    Args:
        config: sections serving, evaluation (device and precision), data (limits of a picture) and registry.
        location: the model, see `registry.resolve.resolve_model`.
        host: address to listen on; 127.0.0.1 is this machine alone.
        port: 0 takes a free one.
        examples: folder of pictures to offer; None offers drawn scenes.

    Raises:
        InputError: gradio is not installed, the model or the examples cannot be used, or the port is taken.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported: nothing is reported home
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError:
        raise InputError("demo: gradio is not installed. Install it: pip install 'multimodal-gemma[serve]'.") from None
    from multimodal_gemma.serving.assistant import Assistant

    assistant = Assistant.load(location, config)
    with tempfile.TemporaryDirectory() as folder:
        shown = _given(examples, config) if examples else _drawn(Path(folder))
        page = build(assistant, config, shown, name=location)
        page.queue(max_size=config.serving.queue, default_concurrency_limit=1)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port or None,
                max_file_size=config.data.max_image_bytes,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                css=_LOOKS,
                footer_links=[],
            )
        except OSError as error:
            raise InputError(f"demo: cannot listen on {host}:{port} ({error}). Choose another --port.") from None
        logs.get("demo").info("open %s in a browser; Ctrl+C ends it", url)
        page.block_thread()


def build(assistant: Assistant, config: Config, examples: Sequence[tuple[Path, str]], *, name: str) -> Any:
    """Return the page, a gradio Blocks.

    Args:
        assistant: the loaded model.
        config: sections serving and data.
        examples: pictures to offer, each with a question.
        name: what the model is called on the page.
    """
    import gradio as gr

    settings, longest = config.serving, config.serving.max_new_tokens
    parameters: list[Any] = [
        gr.Slider(1, max(512, longest), longest, step=1, label="Longest answer, tokens"),
        gr.Slider(0, 2, settings.temperature, step=0.05, label="Temperature: 0 takes the likeliest word each time"),
        gr.Slider(0.05, 1, settings.top_p, step=0.05, label="Top p: share of the probability drawn from"),
    ]

    def reply(message: dict[str, Any], history: list[dict[str, Any]], *chosen: float) -> Iterator[Any]:
        try:
            yield from _answer(assistant, config, message, history, chosen)
        except InputError as error:
            yield gr.ChatMessage(content=str(error), metadata={"title": _REFUSED})

    box = gr.MultimodalTextbox(
        sources=["upload"],
        file_types=["image"],
        file_count="single",
        placeholder="Add a picture and ask about it",
        max_plain_text_length=settings.max_question_characters,
        stop_btn=True,
    )
    # The parameters of an example stay as they are set: None leaves their columns out.
    asked = [[{"text": text, "files": [str(path)]}, None, None, None] for path, text in examples]
    return gr.ChatInterface(
        reply,
        multimodal=True,
        textbox=box,
        chatbot=gr.Chatbot(
            show_label=False,
            placeholder="Send a picture with a question.",
            buttons=["copy"],
            render_markdown=False,  # what a model says is text: no picture of its choosing is fetched, no link is made
        ),
        additional_inputs=parameters,
        additional_inputs_accordion=gr.Accordion("Parameters", open=False),
        examples=asked or None,
        run_examples_on_click=False,
        cache_examples=False,
        title="Ask about a picture",
        description=f"{Path(name).resolve().name if Path(name).is_dir() else name}: a small model, often wrong. "
        "Do not rely on its answers.",
        concurrency_limit=1,
        flagging_mode="never",
        analytics_enabled=False,
        save_history=False,
        delete_cache=(_KEPT, _KEPT),
    )


def _answer(
    assistant: Assistant,
    config: Config,
    message: dict[str, Any],
    history: Sequence[dict[str, Any]],
    chosen: Sequence[float],
) -> Iterator[str]:
    """Yield the answer so far, each time longer."""
    from multimodal_gemma.serving.assistant import Sampling

    question = str(message.get("text") or "")
    sent, turns = _past(history)
    if files := message.get("files") or []:
        if len(files) > 1:
            raise InputError("picture: send one picture at a time.")
        sent, turns = str(files[0]), []
    assistant.check(question)
    if not sent:
        raise InputError("picture: there is none yet. Add one with the button beside the text.")
    picture = pictures.from_file(Path(sent), config.data, name="the picture")
    said = f"({picture.note})\n\n" if picture.note and files else ""
    tokens, temperature, top_p = chosen
    sampling = Sampling(int(tokens), float(temperature), float(top_p))
    for piece in assistant.stream(picture.image, question, sampling, history=turns):
        said += piece
        yield said
    sure = assistant.p_yes(picture.image, question) if _YES_OR_NO.match(said.strip()) else None
    if sure is not None:
        yield f"{said}\n\n{_SURE}{sure:.2f}"


def _past(history: Sequence[dict[str, Any]]) -> tuple[str, list[Turn]]:
    """Return the picture sent last, and the questions that were answered about it with their answers."""
    picture, question = "", ""
    turns: list[Turn] = []
    for message in history:
        parts = message["content"] if isinstance(message["content"], list) else [message["content"]]
        texts = [part if isinstance(part, str) else part.get("text", "") for part in parts]
        text = "\n".join(part for part in texts if part).partition(f"\n\n{_SURE}")[0]
        places = [part["file"]["path"] for part in parts if isinstance(part, dict) and part.get("file")]
        refused = (message.get("metadata") or {}).get("title") == _REFUSED
        if message["role"] == "user":
            question = text or question
            if places:
                picture, turns, question = places[-1], [], text
        elif text and question and not refused:
            turns.append((question, text))
            question = ""
        elif refused:
            question = ""
    return picture, turns


def _given(folder: Path, config: Config) -> list[tuple[Path, str]]:
    """Return the pictures at the top of a folder, each to be described."""
    if not folder.is_dir():
        raise InputError(f"demo: {folder} does not exist. Give a folder of pictures.")
    found = []
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        try:
            pictures.from_file(path, config.data)
        except InputError as error:
            logs.get("demo").warning("no example: %s", error)
            continue
        found.append((path, _QUESTION))
    if not found:
        raise InputError(f"demo: {folder} holds no usable picture. Give a folder of pictures.")
    return found


def _drawn(folder: Path) -> list[tuple[Path, str]]:
    """Draw scenes of the sample, what there is to show without a photograph, and ask about what is in them."""
    from multimodal_gemma.sample.drawing import to_jpeg
    from multimodal_gemma.sample.scenes import generate_distinct

    asked = []
    for number, scene in enumerate(generate_distinct(11, 3, "held_out")):
        path = folder / f"scene-{number + 1}.jpg"
        path.write_bytes(to_jpeg(scene))
        kind = scene.objects[0].kind
        article = "an" if kind[0] in "aeiou" else "a"
        asked.append(
            (path, (_QUESTION, f"Is there {article} {kind} in the image?", f"What color is the {kind}?")[number])
        )
    return asked
