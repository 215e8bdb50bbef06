"""A person's word: promotion by hand, and the way back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import server, versions
from multimodal_gemma.registry.versions import promote, rollback


@pytest.fixture
def name(config: Config) -> Iterator[str]:
    """Three bare versions, the second champion after the first, the third a challenger."""
    name = config.registry.name
    with server.connected(config.registry) as client:
        client.create_registered_model(name)
        for gate in ("passed", "passed", "failed"):
            client.create_model_version(name, "mlflow-artifacts:/x", tags={"gate": gate})
        versions.crown(client, name, "1", over=versions.aliases(client, name).get("champion"))
        versions.crown(client, name, "2", over=versions.aliases(client, name).get("champion"))
        client.set_registered_model_alias(name, versions.CHALLENGER, "3")
        yield name


def held(config: Config) -> dict[str, str]:
    with server.connected(config.registry) as client:
        return versions.aliases(client, config.registry.name)


def test_rollback_returns_the_title_and_says_so(config: Config, name: str) -> None:
    change = rollback(config.registry)
    assert (change.before, change.after) == ("2", "1")
    assert held(config) == {"champion": "1", "challenger": "3"}
    with server.connected(config.registry) as client:
        assert client.get_model_version(name, "2").tags[versions.ROLLED_BACK] == "1"
    assert "version 1 is champion in place of version 2" in str(change)


def test_rollback_goes_back_step_by_step(config: Config, name: str) -> None:
    promote(config.registry, "challenger")
    assert rollback(config.registry).after == "2"
    assert rollback(config.registry).after == "1"
    with pytest.raises(InputError, match="has no former champion"):
        rollback(config.registry)


def test_promotion_by_hand_is_recorded_when_the_gate_had_failed(config: Config, name: str) -> None:
    change = promote(config.registry, 3)
    assert change.gate == "failed"
    assert held(config) == {"champion": "3", "previous-champion": "2"}
    with server.connected(config.registry) as client:
        assert client.get_model_version(name, "3").tags["mmgemma.promoted_by_hand"] == "true"


def test_a_dry_run_changes_nothing(config: Config, name: str) -> None:
    before = held(config)
    assert "would be champion" in str(promote(config.registry, "3", dry_run=True))
    assert "would be champion" in str(rollback(config.registry, dry_run=True))
    assert held(config) == before


def test_promoting_the_champion_loses_nobody(config: Config, name: str) -> None:
    assert "nothing to do" in str(promote(config.registry, "champion"))
    assert held(config) == {"champion": "2", "previous-champion": "1", "challenger": "3"}


@pytest.mark.parametrize("version", ["9", "nobody", "0", "-1"])
def test_unknown_versions_are_named(config: Config, name: str, version: str) -> None:
    with pytest.raises(InputError, match=f"has no version {version}"):
        promote(config.registry, version)


def test_a_rollback_that_was_cut_short_is_finished(config: Config, name: str) -> None:
    with server.connected(config.registry) as client:
        client.set_registered_model_alias(name, versions.CHAMPION, "1")  # killed here
    rollback(config.registry)
    assert held(config) == {"champion": "1", "challenger": "3"}
