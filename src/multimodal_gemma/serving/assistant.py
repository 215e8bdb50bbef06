"""A loaded model that is asked about pictures, piece by piece and one question at a time.

The prompt is the one that evaluation uses, so what a person sees here is what was scored. A conversation is about one
picture; earlier turns are repeated as far as the model's context reaches.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteriaList, TextIteratorStreamer

from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation import loading
from multimodal_gemma.evaluation.prompts import Prompter, stop_tokens
from multimodal_gemma.model.forward import YesOrNo

if TYPE_CHECKING:
    from PIL.Image import Image

    from multimodal_gemma.config.schema import Config, ServingConfig

Turn = tuple[str, str]  # a question and its answer


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How an answer is drawn."""

    max_new_tokens: int  # longest answer, tokens
    temperature: float = 0.0  # 0 takes the likeliest word each time; higher is more varied
    top_p: float = 1.0  # the smallest set of words with this share of the probability is drawn from


class Assistant:
    """Answers questions about a picture.

    Args:
        model: stock image-text-to-text model in eval mode.
        processor: its processor.
        settings: limits of a question.
    """

    def __init__(self, model: Any, processor: Any, settings: ServingConfig) -> None:
        self._model, self._processor, self._settings = model, processor, settings
        self._prompter = Prompter(processor)
        self._stops = stop_tokens(model, processor)
        self._one_at_a_time = threading.Lock()
        text = model.config.get_text_config()
        self._context = int(getattr(text, "max_position_embeddings", None) or 1 << 31)  # positions

    @classmethod
    def load(cls, location: str, config: Config) -> Assistant:
        """Load the model behind a location, see `registry.resolve.resolve_model`.

        Raises:
            InputError: nothing loadable lies there.
        """
        from multimodal_gemma.registry.resolve import resolve_model

        folder = resolve_model(location, config)
        settings = config.evaluation
        return cls(*loading.load(folder, device=settings.device, precision=settings.precision), config.serving)

    def stream(self, image: Image, question: str, sampling: Sampling, *, history: Sequence[Turn] = ()) -> Iterator[str]:
        """Yield an answer piece by piece as it is generated.

        A second caller waits until the first answer is finished. Closing the iterator ends the answer after the next
        token.

        Args:
            image: what is asked about.
            question: text without special tokens.
            sampling: how the answer is drawn.
            history: earlier questions about this picture and their answers, oldest first.

        Raises:
            InputError: the question is empty, too long, or holds a token that the model reserves.
        """
        self.check(question)
        tokenizer, stop = self._processor.tokenizer, threading.Event()
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p} if sampling.temperature > 0 else {}
        failed: list[BaseException] = []

        def stopped(ids: torch.Tensor, *_: Any) -> torch.Tensor:
            return torch.full((len(ids),), stop.is_set(), device=ids.device)

        def generate(inputs: Any) -> None:
            try:
                with torch.inference_mode():
                    self._model.generate(
                        **inputs,
                        **drawn,
                        do_sample=bool(drawn),
                        max_new_tokens=sampling.max_new_tokens,
                        eos_token_id=self._stops,
                        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._stops[0],
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([stopped]),
                    )
            except BaseException as error:  # noqa: BLE001  # handed to the thread that waits, which raises it
                failed.append(error)
                streamer.end()

        with self._one_at_a_time, loading.threads_for(self._model):
            inputs = self._inputs(image, question, history, sampling.max_new_tokens)
            worker = threading.Thread(target=generate, args=(inputs,))
            worker.start()
            try:
                yield from (piece for piece in streamer if piece)
            finally:
                stop.set()
                worker.join()
            if failed:
                raise failed[0]

    def answer(self, image: Image, question: str, sampling: Sampling) -> str:
        """Return a whole answer, see `stream`."""
        return "".join(self.stream(image, question, sampling)).strip()

    @torch.inference_mode()
    def p_yes(self, image: Image, question: str) -> float | None:
        """Return how sure the model is that the answer is yes, see `model.forward`; history is not looked at."""
        with self._one_at_a_time, loading.threads_for(self._model):
            logits = self._model(**self._inputs(image, question, (), 1)).logits[:, -1]
        return YesOrNo(self._processor.tokenizer).probability(logits)[0]

    def check(self, question: str) -> None:
        """Check a question before anything is computed.

        Raises:
            InputError: it is empty, too long, or holds a token that the model reserves.
        """
        limit = self._settings.max_question_characters
        if not question.strip():
            raise InputError("question: it is empty. Ask something about the picture.")
        if len(question) > limit:
            raise InputError(
                f"question: it has {len(question):,} characters, more than {limit:,}. Ask a shorter one, or raise "
                "serving.max_question_characters."
            )
        known = self._processor.tokenizer.added_tokens_decoder.values()
        reserved = {str(token) for token in known if token.special} | {str(self._processor.image_token)}
        if found := sorted(token for token in reserved if token.strip() and token in question):
            raise InputError(f"question: it holds {found[0]}, which the model reserves. Leave it out.")

    def _inputs(self, image: Image, question: str, history: Sequence[Turn], room: int) -> Any:
        """Return the model's inputs, with as much of the history as its context has room for."""
        for start in range(len(history) + 1):
            messages = self._messages(question, history[start:])
            prompt = str(self._processor.apply_chat_template(messages, add_generation_prompt=True))
            special = self._prompter.adds_special_tokens(prompt)
            inputs = self._processor(images=[image], text=[prompt], add_special_tokens=special, return_tensors="pt")
            if (length := inputs["input_ids"].shape[1]) + room <= self._context:
                return inputs.to(self._model.device, self._model.dtype)
        raise InputError(
            f"question: picture and question are {length:,} tokens and the answer may have {room:,} more, but this "
            f"model reads {self._context:,}. Ask a shorter question or allow a shorter answer."
        )

    def _messages(self, question: str, history: Sequence[Turn]) -> list[dict[str, Any]]:
        turns = [(asked, answer) for asked, answer in history if answer]
        messages: list[dict[str, Any]] = []
        for asked, answer in [*turns, (question, "")]:
            messages += [_said("user", asked)] if messages else self._prompter.messages(asked)
            messages += [_said("assistant", answer)] if answer else []
        return messages


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
