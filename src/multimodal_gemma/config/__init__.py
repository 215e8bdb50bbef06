"""Configuration: structured dataclasses, YAML presets, `key=value` overrides (Hydra compose)."""

from multimodal_gemma.config.compose import compose, from_json, presets, to_json
from multimodal_gemma.config.schema import Config

__all__ = ["Config", "compose", "from_json", "presets", "to_json"]
