"""What was trained, put back onto the base models by transformers and peft alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from multimodal_gemma import files
from multimodal_gemma.config.schema import ModelConfig
from multimodal_gemma.export import card, weights
from multimodal_gemma.model import adapters, assembly
from multimodal_gemma.model.processor import build_processor
from multimodal_gemma.sample import bases_folder

CHECK = """
ids = torch.tensor([[1, 5, 9, 7, 3, 2, 8]])
pixels = torch.linspace(-1, 1, 3 * SIDE * SIDE).reshape(1, 3, SIDE, SIDE)
with torch.inference_mode():
    features = llava.get_image_features(pixels).pooler_output
    torch.save([model(input_ids=ids).logits, torch.cat(list(features))], "out.pt")
import sys
assert "multimodal_gemma" not in sys.modules
"""


def test_adapter_and_projector_load_by_plain_peft_and_answer_as_the_merged_model(tmp_path: Path) -> None:
    bases = bases_folder()
    vision, language = bases / "vision", bases / "language"
    processor = build_processor(vision, language)
    settings = ModelConfig(vision="sample://vision", language="sample://language")
    settings.lora.rank = 4
    llava = assembly.assemble(assembly.load_vision(vision), assembly.load_language(language), processor, settings)
    trained = adapters.apply_policies(llava, settings, seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in llava.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    adapters.save_adapter(llava, trained, tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "processor")
    adapters.save_merged(adapters.merge(llava, trained), tmp_path / "processor", tmp_path / "model")

    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    # The export states bfloat16: what is built from it must not round what the configuration gives, such as
    # Gemma's scale of the embeddings.
    files.write_json(tmp_path / "model" / "config.json", weights.config(tmp_path / "model", "bfloat16"))
    side = merged.config.vision_config.image_size
    code = card.render("adapter", {"vision": "a", "language": "b"}, True).split("```")[1].removeprefix("python\n")
    names = f"VISION, LANGUAGE, SIDE = {str(vision)!r}, {str(language)!r}, {side}\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", names + code + CHECK],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    logits, features = torch.load(tmp_path / "out.pt")
    ids = torch.tensor([[1, 5, 9, 7, 3, 2, 8]])
    pixels = torch.linspace(-1, 1, 3 * side * side).reshape(1, 3, side, side)
    with torch.inference_mode():
        torch.testing.assert_close(logits, merged(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
        expected = torch.cat(list(merged.get_image_features(pixels).pooler_output))
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("has_adapter", [True, False])
def test_the_base_models_are_named_with_their_revisions(has_adapter: bool) -> None:
    stated = {"model": {"vision": "hf://openai/clip@32bd", "language": "hf://google/gemma-3-270m@main"}, "data": {}}
    text = card.render("adapter", card.bases(stated), has_adapter)
    assert "`hf://openai/clip@32bd`" in text
    assert "`hf://google/gemma-3-270m@main`" in text
    assert ("PeftModel" in text) == has_adapter
    assert card.bases({}) == {}
