"""From a preset and `key=value` overrides to one checked `Config`.

Hydra composes; this module only turns what can go wrong into sentences and locations into URIs.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
import typing
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from multimodal_gemma.config import fields
from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError

_PRESETS = "multimodal_gemma.config.presets"
_FLOORS = "registry.floors"
_SHARE = re.compile(r"([#*]\s*[-+.\d]*(e[-+]?\d*|nan|inf(inity)?)?)+$", re.IGNORECASE)  # see data.choose.Share


def presets() -> list[str]:
    """Return the names of the presets that come with the package."""
    package, _, folder = _PRESETS.rpartition(".")  # importing the folder would put a module in this function's place
    names = (entry.name for entry in (resources.files(package) / folder).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def compose(preset: str, overrides: Sequence[str] = ()) -> Config:
    """Compose a configuration.

    Args:
        preset: one of `presets()`.
        overrides: `section.key=value` strings in Hydra's grammar, later ones win.

    Returns:
        The checked configuration; paths of this machine have become absolute file:// URIs.

    Raises:
        InputError: unknown preset or key, or a value of a wrong type or out of its range.
    """
    if preset not in presets():
        raise InputError(f"config: there is no preset {preset!r}. {_nearest(preset, presets())}")
    for override in overrides:
        _check_key(preset, override)
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name="schema", node=Config)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(_PRESETS, version_base="1.3"):
            tables = [override for override in overrides if override.partition("=")[0] in _tables()]
            texts = [override for override in overrides if override.partition("=")[0] in _texts()]
            lists = [override for override in overrides if override.partition("=")[0] in _lists()]
            rest = [override for override in overrides if override not in (*tables, *texts, *lists)]
            others = [f"++{one}" if one.startswith(f"{_FLOORS}.") else one for one in rest]  # any metric may have one
            composed = hydra_compose(preset, overrides=others)
            for table in tables:  # replaces the preset's; Hydra would merge the two, and knows no new names in it
                value = OverridesParser.create().parse_override(table).value()
                OmegaConf.update(composed, table.partition("=")[0], value, merge=False)
            config = OmegaConf.to_object(composed)
            for override in texts:
                key, _, value = override.partition("=")
                _put(config, key, _unquoted(value))
            for override in lists:
                key, _, value = override.partition("=")
                _put(config, key, _several(value))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_value_sentence(preset, overrides, error)) from None
    assert isinstance(config, Config)
    return _finish(config)


def to_json(config: Config) -> str:
    """Return the whole configuration as JSON."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def differences(config: Config) -> dict[str, Any]:
    """Return what of a configuration is not at its default, nested; `from_json` reads it too."""
    return _differences(dataclasses.asdict(config), dataclasses.asdict(Config()))


def _differences(value: dict[str, Any], default: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, item in value.items():
        if isinstance(item, dict) and f"{prefix}{key}" not in _tables():
            if inner := _differences(item, default[key], f"{prefix}{key}."):
                found[key] = inner
        elif item != default[key]:
            found[key] = item
    return found


def from_json(text: str) -> Config:
    """Return the configuration that was written; keys that are absent stand at their defaults."""
    from omegaconf import OmegaConf

    base = OmegaConf.structured(Config)
    leaves = dict(_leaves(json.loads(text)))
    for key, value in leaves.items():
        if key not in _texts():
            OmegaConf.update(base, key, value, merge=False)
    config = OmegaConf.to_object(base)
    assert isinstance(config, Config)
    for key in leaves.keys() & _texts():
        _put(config, key, str(leaves[key]))
    return _finish(config)


def _leaves(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict) and f"{prefix}{key}" not in _tables():
            yield from _leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


@functools.cache
def _tables() -> frozenset[str]:
    """Return the keys whose value is a table: it is replaced as a whole, never merged with another."""
    return frozenset(key for key, hint in _hinted(Config) if str(hint).startswith("dict["))


@functools.cache
def _texts() -> frozenset[str]:
    """Return the keys whose value is a text: it stays what was typed, whatever Hydra would read into it."""
    return frozenset(key for key, hint in _hinted(Config) if hint is str)


@functools.cache
def _lists() -> frozenset[str]:
    """Return the keys whose value is a list of locations, which may be written as one text."""
    found: set[str] = set()
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.default_factory):
            inner = dataclasses.fields(section.default_factory)
            found |= {f"{section.name}.{field.name}" for field in inner if field.metadata.get("locations")}
    return frozenset(found)


def _several(value: str) -> list[str]:
    """Return the locations of `[A,B]`, quoted or not; anything else is one."""
    if not (value.startswith("[") and value.endswith("]")):
        return [_unquoted(value)] if value else []
    found = re.findall(r"'[^']*'|\"[^\"]*\"|[^,\s'\"][^,]*", value[1:-1])
    return [_unquoted(text.strip()) for text in found]


def _put(config: Any, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        config = getattr(config, section)
    setattr(config, name, value)


def _unquoted(text: str) -> str:
    r"""Return a text without the quotes around it; within double ones \n is a line break and \t a tab."""
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        return text
    meant = {"\\": "\\", text[0]: text[0]} | ({"n": "\n", "t": "\t"} if text[0] == '"' else {})
    return re.sub(r"\\(.)", lambda found: meant.get(found[1], found[0]), text[1:-1], flags=re.DOTALL)


def _finish(config: Config) -> Config:
    for section in _sections(config):
        for field in dataclasses.fields(section):
            if field.metadata.get("location"):
                setattr(section, field.name, _as_uri(getattr(section, field.name)))
            elif field.metadata.get("locations"):
                given = getattr(section, field.name)
                setattr(section, field.name, [_set_as_uri(text) for text in given] if any(given) else [])
    fields.check(config)
    return config


def _sections(value: Any) -> Iterator[Any]:
    yield value
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            yield from _sections(item)


def _as_uri(text: str) -> str:
    if not text or "://" in text or text.startswith("models:/"):  # as MLflow writes a registered model
        return text
    return Path(text).expanduser().resolve().as_uri()


def _set_as_uri(text: str) -> str:
    """Return a location with its share (`#COUNT`, `*WEIGHT`), which is no part of a path."""
    found = _SHARE.search(text)
    share = found.group() if found else ""
    return f"{_as_uri(text.removesuffix(share))}{share}"


def _hinted(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key with its type."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _hinted(typing.cast(type, hints[field.name]), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hints[field.name]


def _check_key(preset: str, override: str) -> None:
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise InputError(f"config: {override!r} is no override. Write section.key=value.")
    known = [known for known, _ in _hinted(Config)]
    if key in known and key != "preset":
        return
    if key.startswith(f"{_FLOORS}."):
        return
    if key == "preset":
        raise InputError("config: 'preset' is chosen with --preset, not as an override.")
    raise InputError(f"config: {key!r} is no key of preset {preset}. {_nearest(key, known)}")


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not close:
        ending = word.rpartition(".")[2]
        by_ending = {name.rpartition(".")[2]: name for name in known}
        close = [by_ending[name] for name in difflib.get_close_matches(ending, list(by_ending), n=1, cutoff=0.4)]
    return f"Did you mean {close[0]!r}?" if close else f"Choose one of {', '.join(known)}."


def _value_sentence(preset: str, overrides: Sequence[str], error: Exception) -> str:
    """Name the override that Hydra refused: the first line of its message says why."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = str(cause).strip().splitlines()[0].rstrip(".")
    full_key = getattr(cause, "full_key", None)
    for override in overrides:
        key = override.partition("=")[0]
        if (full_key and (key == full_key or full_key.startswith(f"{key}["))) or override in str(error):
            return f"config: {override!r} does not fit preset {preset}: {reason}. `mmgemma config` prints every key."
    return f"config: the overrides do not fit preset {preset}: {reason}."
