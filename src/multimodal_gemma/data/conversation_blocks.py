"""The conversations of a processed dataset: tokenized once, block by block.

A block holds conversations that follow each other, in one file for each split; its key is made of their texts, the rows
of their images and all that shapes their tokens. Blocks that are there already are taken as they are.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from multimodal_gemma import files, progress
from multimodal_gemma.data.block_store import BlockStore
from multimodal_gemma.data.blocks import cut
from multimodal_gemma.data.conversations import Conversation, image_first
from multimodal_gemma.data.image_names import image_id
from multimodal_gemma.data.parallel import ordered_map
from multimodal_gemma.data.preparation import Images, split, workers_for
from multimodal_gemma.data.processed_writer import arrow_file, conversation_features, describe
from multimodal_gemma.data.split import TRAIN, VALIDATION
from multimodal_gemma.data.statistics import Statistics
from multimodal_gemma.data.tokenize import Outcome, TokenizeChunk, Tokenizer

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import DataConfig

KIND = "conversations"
A_BLOCK = 8192  # conversations, about
_FORMAT = 1  # raised when equal blocks come to have other bytes
_MANY, _A_CHUNK = 20_000, 256
_RECORD = pa.schema(
    [
        ("tokens", pa.int32()),
        ("supervised", pa.int32()),
        ("turns", pa.int32()),
        ("kind", pa.string()),  # why it is left out as a word, "" if it is not
        ("reason", pa.string()),
    ]
)


def write_conversations(
    data: DataConfig,
    conversations: list[Conversation],
    images: Images,
    statistics: Statistics,
    output: Path,
    store: BlockStore,
) -> None:
    """Tokenize each conversation whose image is stored into its split; record each that is left out or cut.

    Args:
        data: split, text limit and workers.
        conversations: in the order in which they shall stand.
        images: what became of their images.
        statistics: receives every conversation.
        output: the dataset's folder; processor/ is there already.
        store: its blocks.
    """
    usable = _usable(data, conversations, images, statistics)
    digest = files.digest_of([files.sha256_file(path) for path in sorted((output / "processor").iterdir())])
    tokenizer = Tokenizer(output / "processor", digest, data.max_text_tokens)
    plan = _plan(usable, images, data, tokenizer)
    keys = [key for key, _ in plan]
    store.keep(KIND, keys, [TRAIN, VALIDATION])
    found = {key: store.find(KIND, key) for key in keys}
    fresh = [block for key, block in plan if found[key] is None]
    count, items = sum(map(len, fresh)), itertools.chain.from_iterable(fresh)
    outcomes = ordered_map(TokenizeChunk(tokenizer), items, workers=workers_for(data, count, _MANY), chunk=_A_CHUNK)
    counted = progress.track(outcomes, "preprocess", count, "conversation")
    for key, block in plan:
        record = found.pop(key)
        if record is None:
            record = _make(store, key, block, itertools.islice(counted, len(block)), images, data)
        _account(record, block, images, statistics, data)
    for name in (TRAIN, VALIDATION):
        describe(output / name, conversation_features(), store.shards(name, keys), [name, *keys])


def _usable(
    data: DataConfig, conversations: list[Conversation], images: Images, statistics: Statistics
) -> list[Conversation]:
    """Return the conversations whose image is stored, with the image where it shall stand; record the others."""
    usable = []
    for conversation in conversations:
        if conversation.image in images.lost:
            kind, reason = images.lost[conversation.image]
            statistics.drop("conversation", conversation.id, conversation.image, f"image-{kind}", reason)
        elif conversation.image is not None and conversation.image not in images.indices:
            reason = f"its image shows the same picture as {images.lookalikes[conversation.image]} of a benchmark"
            statistics.drop("conversation", conversation.id, conversation.image, "contaminated", reason)
        else:
            placed = image_first(conversation) if data.image_position == "first" else conversation
            statistics.moved_images += placed is not conversation
            usable.append(placed)
    return usable


def _plan(
    usable: list[Conversation], images: Images, data: DataConfig, tokenizer: Tokenizer
) -> list[tuple[str, list[Conversation]]]:
    """Return the key and the conversations of each block."""
    shaping = {
        "format": _FORMAT,
        "tokenizer": tokenizer.digest,
        "max_text_tokens": tokenizer.max_text_tokens,
        "validation_fraction": data.validation_fraction,
        "split_seed": data.split_seed,
    }
    given = ((_identity(conversation, images), conversation) for conversation in usable)
    return [(files.digest_of([shaping, content]), block) for content, block in cut(given, A_BLOCK)]


def _identity(conversation: Conversation, images: Images) -> str:
    """Return all of a conversation that shapes its row, the row of its image included."""
    texts = [text for turn in conversation.turns for text in (turn.role, turn.text)]
    return json.dumps([conversation.id, conversation.image, _index(conversation, images), *texts])


def _index(conversation: Conversation, images: Images) -> int:
    return -1 if conversation.image is None else images.indices[conversation.image]


def _make(
    store: BlockStore,
    key: str,
    block: list[Conversation],
    outcomes: Iterator[Outcome],
    images: Images,
    data: DataConfig,
) -> pa.Table:
    """Write a block and return its record."""
    features, rows = conversation_features(), []
    paths = {name: store.shard(name, key) for name in (TRAIN, VALIDATION)}
    with arrow_file(paths[TRAIN], features) as train, arrow_file(paths[VALIDATION], features) as validation:
        tables = {TRAIN: train, VALIDATION: validation}
        for conversation, outcome in zip(block, outcomes, strict=True):
            tokenized = outcome.tokenized
            if tokenized is None:
                rows.append({"tokens": 0, "supervised": 0, "turns": 0, "kind": outcome.kind, "reason": outcome.reason})
                continue
            length, learnt = len(tokenized.input_ids), sum(tokenized.supervised)
            rows.append({"tokens": length, "supervised": learnt, "turns": tokenized.turns, "kind": "", "reason": ""})
            row = {
                "id": conversation.id,
                "image_id": "" if conversation.image is None else image_id(conversation.image),
                "image_index": _index(conversation, images),
                # Arrays, because rows wait for their batch: a list of Python's numbers takes ten times as much.
                "input_ids": np.asarray(tokenized.input_ids, np.int32),
                "supervised": np.asarray(tokenized.supervised, np.bool_),
            }
            tables[split(conversation, data)].add(row, 8 * length)
        empty = [paths[name] for name, table in tables.items() if not table.size]
    for path in empty:
        path.unlink()
    record = pa.Table.from_pylist(rows, schema=_RECORD)
    store.commit(KIND, key, record, [path for path in paths.values() if path not in empty])
    return record


def _account(
    record: pa.Table, block: list[Conversation], images: Images, statistics: Statistics, data: DataConfig
) -> None:
    """Count every conversation of a block, or say why it is left out or cut."""
    for conversation, row in zip(block, record.to_pylist(), strict=True):
        image, turns = conversation.image or "", len(conversation.turns)
        if row["kind"]:
            statistics.drop("conversation", conversation.id, image, row["kind"], row["reason"])
            continue
        if row["turns"] < turns:
            reason = f"{turns - row['turns']} of {turns} turns are cut from its end"
            statistics.drop("turns", conversation.id, image, "cut", reason)
        name, index = split(conversation, data), _index(conversation, images)
        statistics.add_conversation(name, conversation, row["tokens"], row["supervised"], row["turns"], index)
