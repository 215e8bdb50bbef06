"""Settings are spelled once, for parameters and identities alike."""

from __future__ import annotations

from multimodal_gemma.config.flat import flatten


def test_settings_are_texts_under_dotted_keys() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1, 2]}) == {"a.b": "1", "a.c.d": "None", "e": "[1, 2]"}
