"""Parameters of a run, from a preset, overrides and `--param name=value`.

Each has the type that the pipeline declares, so that a mistake is found here and not by a pod.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from multimodal_gemma.config import hardware
from multimodal_gemma.config.compose import compose
from multimodal_gemma.config.flat import as_overrides, bare
from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError

_OWN = {"preset": "--preset NAME", "overrides": "section.key=value"}  # parameters with a spelling of their own
TRAINS = "data_conversations"  # a parameter of pipelines that train
LIMIT = 10_000  # bytes of all parameters of a run, as KFP stores them


def read_file(path: Path) -> dict[str, Any]:
    """Read a YAML file of parameters by name.

    Raises:
        InputError: it is absent or no such file.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"submit: {path} cannot be read. Check --params.") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise InputError(f"submit: {path} is no file of parameters. Write NAME: VALUE lines, as YAML.")
    return value


def collect(
    declared: Mapping[str, Mapping[str, Any]],
    preset: str,
    overrides: Sequence[str],
    given: Sequence[str],
    filed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the parameters to send; what is not given keeps the pipeline's default.

    Args:
        declared: the pipeline's parameters by name; a number before a name (p01_preset) may be left out by the caller.
        preset: name of the preset; sent where the pipeline has such a parameter.
        overrides: `section.key=value` strings, sent likewise, after those of the file.
        given: `name=value` strings; the value is text for a STRING, JSON for a list or a struct.
        filed: values of a file; what is in `given` wins.

    Raises:
        InputError: an unknown parameter, a value of a wrong type or none of its choices, the empty name of a Secret, or
            too many bytes in all.
    """
    names = {bare(name): name for name in declared} | {name: name for name in declared}
    parameters: dict[str, Any] = {}
    if "preset" in names:
        parameters[names["preset"]] = preset
    for name, value in (filed or {}).items():
        if bare(name) != "preset":  # which has become `preset`
            full = _known(name, names, own=("preset",))
            parameters[full] = _checked(name, value, declared[full]["parameterType"])
    if overrides:
        if "overrides" not in names:
            raise InputError(
                f"submit: this pipeline takes no overrides such as {overrides[0]!r}. Its parameters, for --param: "
                f"{', '.join(sorted(declared))}."
            )
        parameters[names["overrides"]] = [*parameters.get(names["overrides"], ()), *overrides]
    for item in given:
        name, equals, text = item.partition("=")
        if not equals:
            raise InputError(f"submit: --param {item!r} is no NAME=VALUE.")
        full = _known(name, names, own=tuple(_OWN))
        parameters[full] = _typed(name, text, declared[full]["parameterType"])
    for full, value in parameters.items():
        _require_possible(bare(full), value, declared[full])
    _require_small(parameters)
    missing = [name for name, spec in declared.items() if not _optional(spec) and name not in parameters]
    if missing:
        raise InputError(f"submit: the pipeline needs {', '.join(missing)}. Give --param {missing[0]}=VALUE.")
    return parameters


def configured(parameters: Mapping[str, Any], declared: Mapping[str, Mapping[str, Any]]) -> Config:
    """Return the configuration that a run with these parameters will have, its hardware resolved.

    Args:
        parameters: of `collect`.
        declared: the pipeline's parameters by name.

    Raises:
        InputError: the run would refuse it.
    """
    asked = {bare(name): spec.get("defaultValue") for name, spec in declared.items()}
    asked |= {bare(name): value for name, value in parameters.items()}
    overrides = [str(override) for override in asked.get("overrides") or ()]
    config = hardware.resolve(compose(str(asked.get("preset") or "sample"), [*as_overrides(asked), *overrides]))
    if TRAINS in asked:
        hardware.require(config)
    return config


def nearest(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """Return a sentence that suggests the known name nearest to `word`, or lists them all."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Choose one of {', '.join(sorted(known))}." if known else "There is none."


def _known(name: str, names: Mapping[str, str], own: Sequence[str]) -> str:
    """Return the pipeline's own name of a parameter."""
    if bare(name) in own:
        raise InputError(f"submit: give {name} as {_OWN[bare(name)]}, not as a parameter.")
    if name not in names:
        raise InputError(
            f"submit: the pipeline has no parameter {name!r}. {nearest(name, sorted(set(map(bare, names))))}"
        )
    return names[name]


def _require_possible(name: str, value: Any, spec: Mapping[str, Any]) -> None:
    """Refuse what the run would only stumble over."""
    choices = spec.get("literals")
    if choices and name != "preset" and value not in choices:  # of presets the configuration speaks
        raise InputError(f"submit: parameter {name} is {value!r}. {nearest(str(value), choices)}")
    if name.startswith("secret_") and not str(value).strip():
        raise InputError(f"submit: parameter {name} is empty. Name a Secret, or leave it out; it need not exist.")


def _optional(spec: Mapping[str, Any]) -> bool:
    return bool(spec.get("isOptional")) or "defaultValue" in spec


def _typed(name: str, text: str, kind: str) -> Any:
    read, wanted = _KINDS.get(kind, (str, "a text"))
    try:
        return read(text)
    except ValueError:
        raise InputError(f"submit: parameter {name} is {wanted}, and {text[:80]!r} is none.") from None


def _checked(name: str, value: Any, kind: str) -> Any:
    """Check a value that has a type already: text stays text, and a number is not read as one."""
    types: dict[str, tuple[type, ...]] = {
        "NUMBER_INTEGER": (int,),
        "NUMBER_DOUBLE": (int, float),
        "BOOLEAN": (bool,),
        "LIST": (list,),
        "STRUCT": (dict,),
    }
    fits = isinstance(value, types.get(kind, (str,))) and (kind == "BOOLEAN" or not isinstance(value, bool))
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        hint = " Put it in quotes." if kind == "STRING" and isinstance(value, int | float) else ""
        raise InputError(f"submit: parameter {name} is {_KINDS[kind][1]}, and {str(value)[:80]} is none.{hint}")
    return value


def _whole(text: str) -> int:
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no(text)  # JSON has no other


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _no(text)


def _list(text: str) -> list[Any]:
    value = json.loads(text)
    return value if isinstance(value, list) else _no(text)


def _struct(text: str) -> dict[str, Any]:
    value = json.loads(text)
    return value if isinstance(value, dict) else _no(text)


def _no(text: str) -> Any:
    raise ValueError(text)


_KINDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "STRING": (str, "a text"),
    "NUMBER_INTEGER": (_whole, "a whole number, e.g. 3"),
    "NUMBER_DOUBLE": (_number, "a number, e.g. 0.001"),
    "BOOLEAN": (_truth, "true or false"),
    "LIST": (_list, 'a JSON list, e.g. ["training.epochs=1"]'),
    "STRUCT": (_struct, 'a JSON object, e.g. {"disk": "ssd"}'),
}


def _require_small(parameters: Mapping[str, Any]) -> None:
    sizes = {name: len(json.dumps(value).encode()) for name, value in parameters.items()}
    total = len(json.dumps(parameters).encode())
    if total > LIMIT:
        largest = max(sizes, key=lambda name: sizes[name])
        raise InputError(
            f"submit: the parameters take {total:,} bytes and KFP accepts {LIMIT:,} in all; the largest is {largest} "
            f"({sizes[largest]:,}). Put it into a preset, or into a file that a location names."
        )
