"""Settings in one level: as parameters of a pipeline, as texts of MLflow and of a checkpoint's identity.

Training and registration write the same run, and MLflow keeps the first text of a parameter: there is one spelling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

AS_PRESET = "as the preset says"  # a choice in a form that leaves the preset's value
_SHORT = {"hardware": "resources.hardware", "contamination": "data.contamination"}  # keys by their parameter's name
_SECTIONS = ("data", "benchmarks", "registry")  # whose keys may be parameters, as section_key


def bare(parameter: str) -> str:
    """Return a parameter's name without the number that sorts KFP's form, e.g. "preset" of "p01_preset"."""
    return re.sub(r"^p\d\d_", "", parameter)


def as_overrides(parameters: Mapping[str, Any]) -> list[str]:
    """Return those parameters of a pipeline that are configuration keys, as `section.key=value` strings.

    Args:
        parameters: values by name, e.g. {"registry_name": "mine"}; "", 0, None and `AS_PRESET` leave the preset's
            value.
    """
    overrides = []
    for name, value in parameters.items():
        section, _, rest = name.partition("_")
        key = _SHORT.get(name) or (f"{section}.{rest}" if section in _SECTIONS and rest else "")
        if not key or value in ("", 0, None, AS_PRESET):
            continue
        quoted = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'" if isinstance(value, str) else value
        overrides.append(f"{key}={quoted}")
    return overrides


def portable(value: Any) -> Any:
    """Return settings as they may be passed on: of a folder or file of this machine, its last name."""
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    return re.sub(r"file://.*?([^/]+)/*$", r"\1", value) if isinstance(value, str) else value


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return dotted keys and texts of nested settings, e.g. {"model.lora.rank": "64"}."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(item)
    return flat
