"""Names, precision and values of the shipped weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from multimodal_gemma import files
from multimodal_gemma.errors import InputError
from multimodal_gemma.export import weights


@pytest.mark.parametrize(
    ("saved", "served"),
    [
        ("vision_tower.encoder.layers.0.mlp.fc1.bias", "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias"),
        ("vision_tower.vision_model.post_layernorm.weight", "vision_tower.vision_model.post_layernorm.weight"),
        ("language_model.model.norm.weight", "language_model.model.norm.weight"),
        ("multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias"),
    ],
)
def test_the_encoder_has_the_name_that_servers_read(saved: str, served: str) -> None:
    assert weights.served_name(saved) == served


def test_shards_stay_shards_and_their_index_names_every_tensor(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    parts = {
        "model-00001-of-00002.safetensors": {"vision_tower.a": torch.rand(3, 2)},
        "model-00002-of-00002.safetensors": {"language_model.b": torch.rand(4), "count": torch.tensor([7])},
    }
    for name, tensors in parts.items():
        save_file(tensors, source / name)
    where = {key: name for name, tensors in parts.items() for key in tensors}
    files.write_json(source / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})

    assert weights.convert(source, out, "bfloat16") == 6 + 4 + 1

    index = files.read_json(out / "model.safetensors.index.json", "index")
    assert index["metadata"]["total_size"] == 2 * (6 + 4) + 8
    shipped = {key: load_file(out / name)[key] for key, name in index["weight_map"].items()}
    assert set(shipped) == {"vision_tower.vision_model.a", "language_model.b", "count"}
    assert torch.equal(
        shipped["language_model.b"], parts["model-00002-of-00002.safetensors"]["language_model.b"].bfloat16()
    )
    assert shipped["count"].dtype == torch.int64


def test_a_missing_shard_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    files.write_json(tmp_path / "source" / "model.safetensors.index.json", index)
    with pytest.raises(InputError, match=r"lacks its weights model-00001-of-00001\.safetensors"):
        weights.convert(tmp_path / "source", tmp_path / "out", "float32")
    assert not (tmp_path / "out").exists()
