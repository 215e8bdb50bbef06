"""How a conversation becomes text: one template a family of language models, the same in training and in use.

Each template marks with `{% generation %}` what the model learns: an answer and its end of turn. An image stands where
its part stands in the message. The line break between an image and the text behind it is the template's, whatever
space the text brings, so that everybody who asks, by whichever library, asks as the model was trained and scored. A
system message, for which the data have no place, opens the text of the first question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

IMAGE = "<image>"

_CONTENT = """\
{%- macro content(message, preface='') -%}
    {%- set said = namespace(image=false, before='', after='') -%}
    {%- if message['content'] is string -%}
        {%- set pieces = message['content'].split('<image>', 1) -%}
        {%- set said.image = pieces | length == 2 -%}
        {%- set said.before = pieces[0] -%}
        {%- set said.after = pieces[1] if said.image else '' -%}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' and not said.image -%}
                {%- set said.image = true -%}
            {%- else -%}
                {%- set text = '<image>' if part['type'] == 'image' else part['text'] or '' -%}
                {%- if said.image -%}
                    {%- set said.after = said.after + text -%}
                {%- else -%}
                    {%- set said.before = said.before + text -%}
                {%- endif -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if said.image -%}
        {%- set behind = (('' if said.before else preface) + said.after | trim) | trim -%}
        {{ (preface + said.before if said.before else '') + '<image>' + ('\\n' + behind if behind else '') }}
    {%- else -%}
        {{ preface + said.before }}
    {%- endif -%}
{%- endmacro -%}
"""
_ROLES = """\
    {%- if message['role'] == 'system' and not loop.first -%}
        {{ raise_exception('a system message stands once, before the first question') }}
    {%- elif message['role'] not in ('system', 'user', 'assistant') -%}
        {{ raise_exception('roles are system, user and assistant, not ' + message['role']) }}
    {%- endif -%}
"""
_TEMPLATE = """\
{content}{start}
{{%- set system = namespace(text='') -%}}
{{%- for message in messages -%}}
{roles}    {{%- if message['role'] == 'system' -%}}
        {{%- set said = content(message) | trim -%}}
        {{%- set system.text = said + '\\n\\n' if said else '' -%}}
    {{%- elif message['role'] == 'assistant' -%}}
        {{{{ {answer_start} }}}}{{%- generation -%}}{{{{ {answer} }}}}{{%- endgeneration -%}}{{{{ {answer_end} }}}}
    {{%- else -%}}
        {{{{ {question} }}}}
        {{%- set system.text = '' -%}}
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


# By family: the tokens that tell it, what opens a text, a question and an answer, what ends a turn and what follows it.
_FAMILIES = {
    "gemma": (
        ("<start_of_turn>", "<end_of_turn>"),
        (_BOS, r"<start_of_turn>user\n", r"<start_of_turn>model\n", "<end_of_turn>", r"\n"),
    ),
    "chatml": (
        ("<|im_start|>", "<|im_end|>"),
        ("", r"<|im_start|>user\n", r"<|im_start|>assistant\n", "<|im_end|>", r"\n"),
    ),
    "llama-3": (
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        (
            *(_BOS, r"<|start_header_id|>user<|end_header_id|>\n\n"),
            *(r"<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", ""),
        ),
    ),
}


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
    for name, (marks, (start, question, answer, end, after)) in _FAMILIES.items():
        if tokens.issuperset(marks):
            template = _TEMPLATE.format(
                content=_CONTENT,
                roles=_ROLES,
                start=start,
                question=f"'{question}' + content(message, system.text) + '{end}{after}'",
                answer_start=f"'{answer}'",
                answer=f"content(message) + '{end}'",
                answer_end=f"'{after}'",
            )
            return Family(name, template, end)
    template = _TEMPLATE.format(
        content=_CONTENT,
        roles=_ROLES,
        start=_BOS if starts_with_bos else "",
        question="'USER: ' + content(message, system.text) + ' '",
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
