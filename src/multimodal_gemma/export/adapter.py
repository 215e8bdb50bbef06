"""How to use what was trained without the merged weights: base models, adapters and projector, by plain peft.

The text goes into adapter/README.md, and its code is what the tests run.
"""

from __future__ import annotations

from typing import Any

from multimodal_gemma.export import card

CODE = """```python
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

config = AutoConfig.from_pretrained("model")  # its config.json alone
llava = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
vision = AutoModel.from_pretrained(VISION, dtype=torch.float32)
language = AutoModelForCausalLM.from_pretrained(LANGUAGE, dtype=torch.float32)
llava.model.vision_tower.load_state_dict(getattr(vision, "vision_model", vision).state_dict(), strict=False)
llava.model.language_model.load_state_dict(language.model.state_dict())
llava.lm_head.load_state_dict(language.lm_head.state_dict())
llava.model.multi_modal_projector.load_state_dict(load_file("adapter/projector.safetensors"))
model = PeftModel.from_pretrained(llava, "adapter").eval()
```"""


def bases(settings: dict[str, Any]) -> dict[str, str]:
    """Return the locations of the base models with their revisions, as far as the run's configuration states them.

    Of a folder of this machine only its last name is told.
    """
    stated = settings.get("model") or {}
    found = {part: str(stated[part]) for part in ("vision", "language") if stated.get(part)}
    return {
        part: location if location.startswith(("hf://", "sample://", "https://")) else card.base(part, location).name
        for part, location in found.items()
    }


def readme(locations: dict[str, str], *, has_adapter: bool) -> str:
    """Return adapter/README.md."""
    rows = "".join(f"- {part}: `{location}`\n" for part, location in sorted(locations.items()))
    if not has_adapter:
        return (
            "# What was trained\n\n`projector.safetensors` is the projector. The other weights that were trained are "
            f"in `../model/` alone, for they were trained as they are, without adapters.\n\n{rows}"
        )
    return (
        "# What was trained\n\n`adapter_model.safetensors` holds the language model's low-rank adapters as peft "
        "writes them, `projector.safetensors` the projector. They fit these base models:\n\n"
        f"{rows}\nWith `VISION` and `LANGUAGE` their folders or names on a hub, in the folder of this export:\n\n"
        f"{CODE}\n"
    )
