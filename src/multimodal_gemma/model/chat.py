"""How a conversation becomes text: one template a family of language models, the same in training and in use.

Each template marks with `{% generation %}` what the model learns: an answer and its end of turn. An image stands where
its part stands in the message; text is rendered as it is, so a line break of the conversation stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

IMAGE = "<image>"

_CONTENT = """\
{%- macro content(message) -%}
    {%- if message['content'] is string -%}
        {{ message['content'] }}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' -%}<image>{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""
_ROLES = """\
    {%- if message['role'] not in ('user', 'assistant') -%}
        {{ raise_exception('roles are user and assistant, not ' + message['role']) }}
    {%- endif -%}
"""
_TEMPLATE = """\
{content}{start}
{{%- for message in messages -%}}
{roles}    {{%- if message['role'] == 'assistant' -%}}
        {{{{ {answer_start} }}}}{{%- generation -%}}{{{{ {answer} }}}}{{%- endgeneration -%}}{{{{ {answer_end} }}}}
    {{%- else -%}}
        {{{{ {question} }}}}
    {{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{ {answer_start} }}}}{{%- endif -%}}
"""
_BOS = "{{- bos_token -}}"


class Turn(Protocol):
    """One turn of a conversation, as data.conversations parses it."""

    @property
    def role(self) -> str:
        """Who speaks: "user" or "assistant"."""

    @property
    def text(self) -> str:
        """What is said; at most one `<image>` tag stands where the image does."""


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family of language models writes turns.

    Attributes:
        name: the family.
        template: its Jinja chat template.
        end_of_turn: the token that ends an answer.
    """

    name: str
    template: str
    end_of_turn: str


def _template(start: str, question: str, answer_start: str, answer: str, answer_end: str) -> str:
    return _TEMPLATE.format(
        content=_CONTENT,
        start=start,
        roles=_ROLES,
        question=question,
        answer_start=answer_start,
        answer=answer,
        answer_end=answer_end,
    )


def family_of(vocabulary: Iterable[str], *, eos_token: str, starts_with_bos: bool) -> Family:
    """Choose the template that fits a tokenizer.

    Args:
        vocabulary: its tokens.
        eos_token: ends an answer where the family has no token for it.
        starts_with_bos: the tokenizer begins a text with its BOS token.

    Returns:
        Gemma turns, ChatML (Qwen, SmolLM), Llama-3 headers, or the plain USER/ASSISTANT form of LLaVA-1.5.
    """
    tokens = set(vocabulary)
    if {"<start_of_turn>", "<end_of_turn>"} <= tokens:
        template = _template(
            start=_BOS,
            question=r"'<start_of_turn>user\n' + content(message) + '<end_of_turn>\n'",
            answer_start=r"'<start_of_turn>model\n'",
            answer="content(message) + '<end_of_turn>'",
            answer_end=r"'\n'",
        )
        return Family("gemma", template, "<end_of_turn>")
    if {"<|im_start|>", "<|im_end|>"} <= tokens:
        template = _template(
            start="",
            question=r"'<|im_start|>user\n' + content(message) + '<|im_end|>\n'",
            answer_start=r"'<|im_start|>assistant\n'",
            answer="content(message) + '<|im_end|>'",
            answer_end=r"'\n'",
        )
        return Family("chatml", template, "<|im_end|>")
    if {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"} <= tokens:
        template = _template(
            start=_BOS,
            question=r"'<|start_header_id|>user<|end_header_id|>\n\n' + content(message) + '<|eot_id|>'",
            answer_start=r"'<|start_header_id|>assistant<|end_header_id|>\n\n'",
            answer="content(message) + '<|eot_id|>'",
            answer_end="''",
        )
        return Family("llama-3", template, "<|eot_id|>")
    template = _template(
        start=_BOS if starts_with_bos else "",
        question="'USER: ' + content(message) + ' '",
        answer_start="'ASSISTANT:'",
        answer="' ' + content(message) + eos_token",
        answer_end="''",
    )
    return Family("plain", template, eos_token)


def to_messages(turns: Iterable[Turn]) -> list[dict[str, Any]]:
    """Turn a conversation into the messages that chat templates and processors take.

    Args:
        turns: turns with a role and a text; the tag `<image>` in a text stands for the image.

    Returns:
        One message a turn, its content a list of text and image parts in the order of the text.
    """
    return [{"role": turn.role, "content": _parts(turn.text)} for turn in turns]


def _parts(text: str) -> list[dict[str, str]]:
    before, tag, after = text.partition(IMAGE)
    parts = [{"type": "text", "text": before}] if before or not tag else []
    if tag:
        parts.append({"type": "image"})
    if after:
        parts.append({"type": "text", "text": after})
    return parts
