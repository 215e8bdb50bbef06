"""The offline sample: generated scenes with exact ground truth, and tiny pretrained bases to train on.

Whoever has no network, no GPU and no Gemma token still runs the whole recipe: `layout.write_sample` writes a folder
in the published formats (LLaVA conversations, POPE, VQA v2), and `bases_folder` holds a CLIP encoder and a Gemma-3
language model of a few MB, in stock transformers folders, that learn to read those scenes within a minute on a
laptop's processor.
"""

from pathlib import Path


def bases_folder() -> Path:
    """Return the packaged bases: a folder with `vision/` (CLIPVisionModel) and `language/` (Gemma3ForCausalLM)."""
    return Path(__file__).parent / "bases"
