"""Settings in one level: as parameters of a pipeline, as texts of MLflow and of a checkpoint's identity.

Training and registration write the same run, and MLflow keeps the first text of a parameter: there is one spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return single parameters of a pipeline as `section.key=value` strings.

    Args:
        settings: values by section_key, e.g. {"training_epochs": 3}; "", 0 and None leave the preset's value.
    """
    overrides = []
    for name, value in settings.items():
        if value in ("", 0, None):
            continue
        key = name.replace("_", ".", 1)  # training_batch_size is training.batch_size
        quoted = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'" if isinstance(value, str) else value
        overrides.append(f"{key}={quoted}")
    return overrides


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return dotted keys and texts of nested settings, e.g. {"model.lora.rank": "64"}."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(item)
    return flat
