"""The language base's tokenizer: Gemma's design with a vocabulary of 1,536 entries.

Byte-pair encoding over text whose spaces are "▁", with a fallback to bytes, so that any text survives the way there
and back. As in Gemma's own files there is no image token: whoever builds a Llava model renames `<unused0>` to
`<image>`.
"""

import json
import random
from pathlib import Path

from multimodal_gemma.sample.conversations import CAPTION_PROMPTS, DETAIL_PROMPTS, caption, detail, short_questions
from multimodal_gemma.sample.questions import SHORT_ANSWER_SUFFIX
from multimodal_gemma.sample.scenes import generate

VOCABULARY_SIZE = 1536
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<unused{number}>" for number in range(6)))
TURN_TOKENS = ("<start_of_turn>", "<end_of_turn>")
CORPUS_SCENES = 400
WORDS = Path(__file__).with_name("words.txt")  # frequent English and what pictures show, the most frequent first

# Gemma's turns; an image is rendered where it stands. {% generation %} marks what is to be learned: the answer and its
# end of turn.
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages -%}
    {%- macro content() -%}
        {%- if message['content'] is string -%}
            {{ message['content'] | trim }}
        {%- else -%}
            {%- for part in message['content'] -%}
                {%- if part['type'] == 'image' -%}
                    <image>
                {%- elif part['type'] == 'text' -%}
                    {{ part['text'] }}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
    {%- endmacro -%}
    {%- if message['role'] == 'assistant' -%}
        {{ '<start_of_turn>model\\n' }}
        {%- generation -%}
            {{ content() + '<end_of_turn>' }}
        {%- endgeneration -%}
        {{ '\\n' }}
    {%- elif message['role'] == 'user' -%}
        {{ '<start_of_turn>user\\n' + content() + '<end_of_turn>\\n' }}
    {%- else -%}
        {{ raise_exception('Roles are user and assistant, not ' + message['role']) }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""


def write_tokenizer(folder: Path) -> None:
    """Learn the vocabulary and write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    vocabulary, merges = _learn()
    names = {name: f"<{name.removesuffix('_token')}>" for name in ("pad_token", "eos_token", "bos_token", "unk_token")}
    added = [
        {
            "id": vocabulary[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in (*SPECIAL_TOKENS, *TURN_TOKENS)
    ]
    space = {"pattern": {"String": " "}}
    bos = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
    _write(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "Replace", **space, "content": "▁"},
            "pre_tokenizer": {"type": "Split", **space, "behavior": "MergedWithPrevious", "invert": False},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, bos, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<bos>": {"id": "<bos>", "ids": [vocabulary["<bos>"]], "tokens": ["<bos>"]}},
            },
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                ],
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": vocabulary,
                "merges": merges,
            },
        },
    )
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GemmaTokenizer",
            **names,
            "mask_token": "<mask>",
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 4096,
            "padding_side": "left",
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _write(folder / "special_tokens_map.json", names)


def _learn() -> tuple[dict[str, int], list[list[str]]]:
    """Return the vocabulary (token → id) and the merges in order of learning."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    # Merges stop at spaces, punctuation and digits: words become tokens, sentences do not.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    head = [*SPECIAL_TOKENS, *TURN_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    printable = ["\n", "▁", *(chr(code) for code in range(33, 127))]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(head), initial_alphabet=printable, show_progress=False, min_frequency=1
    )
    learner.train_from_iterator(_corpus(), trainer)
    model = json.loads(learner.to_str())["model"]
    learned = sorted(model["vocab"], key=model["vocab"].get)
    vocabulary = {token: number for number, token in enumerate([*head, *learned])}
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    return vocabulary, merges


def _corpus() -> list[str]:
    """Return what the vocabulary is learned from: the language of the scenes, and a list of English words."""
    rng = random.Random(0)
    text = [*CAPTION_PROMPTS, *DETAIL_PROMPTS, SHORT_ANSWER_SUFFIX, "user\n", "model\n"] * CORPUS_SCENES
    for index in range(CORPUS_SCENES):
        scene = generate(0, index, "train")
        text += [caption(scene), detail(scene)]
        for question in short_questions(scene, rng, 8):
            text += [question.text, question.answer]
    for number, word in enumerate(WORDS.read_text(encoding="utf-8").split()):
        weight = 2 + 300 // (number + 10)
        text += [f" {word}"] * (4 * weight) + [word.capitalize(), word] * weight
    return text


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
