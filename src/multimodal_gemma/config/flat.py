"""Nested settings as texts under dotted keys, as MLflow's parameters and a checkpoint's identity want them.

Training and registration write the same run, and MLflow keeps the first text of a parameter: there is one spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return dotted keys and texts of nested settings, e.g. {"model.lora.rank": "64"}."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(item)
    return flat
