"""The language base: a Gemma-3 of 4 layers that can look things up in an image.

It is trained on conversations about scenes as the language model of a stock Llava: through a first projector, from
the frozen vision base. That projector is thrown away, so that the recipe has its work to do: a new one must find the
way from the vision base's features to what this model has learned to read.

Gemma-3 from random weights does not learn to look things up at this size unless its post-norms start small: they
scale every layer's output to unit norm, which drowns the embeddings.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerBase

from multimodal_gemma.sample.conversations import IMAGE_TAG, conversation
from multimodal_gemma.sample.scenes import Scene

WIDTH = 96
HEADS = 3
POST_NORM = -0.7  # Gemma scales by 1 + weight
STEPS, BATCH, PEAK_LR, WARM_UP = 2600, 32, 3e-3, 100
EOS, END_OF_TURN = 1, 12  # ids in the tokenizer
POOL = 10  # batches drawn at once, to be cut by length
IGNORED = -100


def configuration(vocabulary: int) -> Gemma3TextConfig:
    """Return the model's shape: 4 layers of width 96, three sliding and one full, tied embeddings."""
    head_dim = WIDTH // HEADS
    return Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        head_dim=head_dim,
        query_pre_attn_scalar=head_dim,
        layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        sliding_window=512,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        architectures=["Gemma3ForCausalLM"],
    )


def initialize(vocabulary: int) -> Gemma3ForCausalLM:
    """Return a model of random weights that can learn at this size."""
    model = Gemma3ForCausalLM(configuration(vocabulary))
    nn.init.normal_(model.model.embed_tokens.weight, std=1 / math.sqrt(WIDTH))
    for layer in model.model.layers:
        nn.init.constant_(layer.post_attention_layernorm.weight, POST_NORM)
        nn.init.constant_(layer.post_feedforward_layernorm.weight, POST_NORM)
    return model


def projector(vision_width: int) -> nn.Sequential:
    """Return Llava's projector of random weights: Linear, GELU, Linear."""
    layers = nn.Sequential(nn.Linear(vision_width, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
    for linear in (layers[0], layers[2]):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    return layers


def pretrain(folder: Path, scenes: list[Scene], features: Tensor, say: Callable[[str], None]) -> Gemma3ForCausalLM:
    """Return a language model that answers questions about images; takes about twelve minutes on two cores.

    Args:
        folder: holds the tokenizer.
        scenes: what is talked about.
        features: of the vision base, (scenes, patches, vision width).
        say: takes a line of progress.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, bridge = initialize(len(tokenizer)), projector(features.shape[-1])
    weights = [*model.parameters(), *bridge.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=PEAK_LR, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_up_and_decay)
    placeholder = tokenizer.convert_tokens_to_ids("<unused0>")
    running: dict[str, float] = {}
    for step, (chosen, input_ids, labels) in enumerate(_batches(tokenizer, scenes, features.shape[1]), start=1):
        hidden = read(model, input_ids, bridge(features[chosen]), placeholder)[:, :-1]  # (BATCH, tokens - 1, WIDTH)
        supervised = labels[:, 1:] != IGNORED
        targets = labels[:, 1:][supervised]  # (supervised tokens,)
        logits = model.lm_head(hidden[supervised])
        loss = nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        _track(running, tokenizer, loss, logits, targets)
        if step % 50 == 0:
            say(f"language {step}/{STEPS}: " + ", ".join(f"{name} {value:.3f}" for name, value in running.items()))
    return model.eval()


def read(model: Gemma3ForCausalLM, input_ids: Tensor, projected: Tensor, placeholder: int) -> Tensor:
    """Return the last hidden states, (conversations, tokens, WIDTH), as stock Llava computes them.

    Args:
        model: the language model.
        input_ids: (conversations, tokens), padded on the right.
        projected: image features, (conversations, patches, WIDTH); each takes the place of a placeholder, unscaled.
        placeholder: id of the image token.
    """
    embeddings = model.get_input_embeddings()(input_ids)  # (conversations, tokens, WIDTH)
    embeddings = embeddings.masked_scatter((input_ids == placeholder).unsqueeze(-1), projected)
    return model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state


def write(model: Gemma3ForCausalLM, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors beside the tokenizer."""
    model.generation_config.eos_token_id = [EOS, END_OF_TURN]
    model.save_pretrained(folder)


def _warm_up_and_decay(step: int) -> float:
    return min(1.0, (step + 1) / WARM_UP) * max(0.0, 1 - step / STEPS)


def _batches(
    tokenizer: PreTrainedTokenizerBase, scenes: list[Scene], patches: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (scene numbers, input_ids, labels); ids and labels are (BATCH, tokens), padded on the right."""
    rng = random.Random(0)
    for _ in range(STEPS // POOL):
        chosen = rng.sample(range(len(scenes)), BATCH * POOL)
        encoded = [(number, *encode(tokenizer, conversation(scenes[number], rng), patches)) for number in chosen]
        encoded.sort(key=lambda one: len(one[1]))  # neighbours in length pad little
        for start in rng.sample(range(0, len(encoded), BATCH), POOL):
            numbers, ids, labels = zip(*encoded[start : start + BATCH], strict=True)
            padded = (_pad(ids, tokenizer.pad_token_id), _pad(labels, IGNORED))
            yield torch.tensor(numbers), *padded


def _pad(rows: Sequence[list[int]], filler: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], patches: int
) -> tuple[list[int], list[int]]:
    """Return token ids and labels of a conversation, its image tag as `patches` placeholders."""
    roles = {"human": "user", "gpt": "assistant"}
    turns = [{"role": roles[message["from"]], "content": message["value"]} for message in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False).replace(IMAGE_TAG, "<unused0>" * patches)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    end, start = tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<start_of_turn>"])
    answer = tokenizer("model\n", add_special_tokens=False).input_ids
    labels, speaking = [], False
    for position, token in enumerate(ids):
        labels.append(token if speaking else IGNORED)
        if token == end:
            speaking = False
        elif ids[position - len(answer) : position + 1] == [start, *answer]:
            speaking = True
    return ids, labels


def _track(
    running: dict[str, float], tokenizer: PreTrainedTokenizerBase, loss: Tensor, logits: Tensor, targets: Tensor
) -> None:
    """Follow the loss and how often yes or no is right, as exponential means."""
    yes_no = torch.tensor(tokenizer.convert_tokens_to_ids(["yes", "no"]))
    asked = torch.isin(targets, yes_no)
    right = (logits.argmax(-1) == targets)[asked].float().mean().item()
    for name, value in (("loss", loss.item()), ("yes/no", right)):
        running[name] = value if name not in running else 0.95 * running[name] + 0.05 * value
