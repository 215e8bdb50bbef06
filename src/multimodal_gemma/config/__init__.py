"""Configuration: structured dataclasses, YAML presets, `key=value` overrides (Hydra compose)."""

from multimodal_gemma.config.compose import compose, differences, from_json, presets, to_json
from multimodal_gemma.config.schema import Config

__all__ = ["Config", "compose", "differences", "from_json", "presets", "to_json"]
