"""A person's word on who is champion: promote a version by hand, or go back to the former one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import server, versions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from multimodal_gemma.config.schema import RegistryConfig


@dataclasses.dataclass(frozen=True)
class Change:
    """Who held the title, and who holds it now (or would, in a dry run).

    Attributes:
        name: the registered model.
        before: the champion's version before; "" if there was none.
        after: the champion's version after.
        gate: what the gate had said of `after`: "passed", "failed", or "" if it was never asked.
        dry_run: nothing was changed.
    """

    name: str
    before: str
    after: str
    gate: str
    dry_run: bool

    def __str__(self) -> str:
        """Return what happened, for people."""
        verb = "would be" if self.dry_run else "is"
        if self.before == self.after:
            return f"{self.name}: version {self.after} is champion already; nothing to do."
        instead = f" in place of version {self.before}" if self.before else ""
        note = "" if self.gate == "passed" else f" (its gate: {self.gate or 'never asked'})"
        return f"{self.name}: version {self.after} {verb} champion{instead}{note}."


def promote(registry: RegistryConfig, version: str | int, *, dry_run: bool = False) -> Change:
    """Make a version champion, whatever its gate said; the former champion is kept for a rollback.

    Args:
        registry: the configuration's section; it names the registered model.
        version: a version's number or one of its aliases, e.g. "challenger".
        dry_run: change nothing, only say what would be.

    Raises:
        InputError: there is no such version, or MLflow cannot be reached.
    """
    name = registry.name
    versions.check_name(name)
    with server.connected(registry) as client:
        held = versions.aliases(client, name)
        number = held.get(str(version), str(version))
        gate = _get(client, name, number).tags.get("gate", "")
        change = Change(name, held.get(versions.CHAMPION, ""), number, gate, dry_run)
        if not dry_run and change.before != change.after:
            if gate != "passed":
                client.set_model_version_tag(name, number, versions.BY_HAND, "true")
            versions.crown(client, name, number, over=change.before or None)
    return change


def rollback(registry: RegistryConfig, *, dry_run: bool = False) -> Change:
    """Give the title back to the champion before; recorded in tags of the version that loses it.

    Args:
        registry: the configuration's section; it names the registered model.
        dry_run: change nothing, only say what would be.

    Raises:
        InputError: there is no former champion, it was deleted, or MLflow cannot be reached.
    """
    name = registry.name
    versions.check_name(name)
    with server.connected(registry) as client:
        held = versions.aliases(client, name)
        before, after = held.get(versions.CHAMPION, ""), held.get(versions.PREVIOUS, "")
        if not after:
            raise InputError(f"rollback: {name} has no former champion. Choose a version with promote.")
        former = _get(client, name, after)
        change = Change(name, before, after, former.tags.get("gate", ""), dry_run)
        if not dry_run:
            # Both aliases on one version: a change of champion was cut short. Only its end is missing.
            if before and before != after:
                client.set_model_version_tag(name, before, versions.ROLLED_BACK, after)
            client.set_registered_model_alias(name, versions.CHAMPION, after)
            # One step further back for the next rollback, if that version is still there.
            earlier = former.tags.get(versions.PREVIOUS_OF, "")
            if earlier and earlier != before and _exists(client, name, earlier):
                client.set_registered_model_alias(name, versions.PREVIOUS, earlier)
            else:
                client.delete_registered_model_alias(name, versions.PREVIOUS)
    return change


def _get(client: MlflowClient, name: str, version: str) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    where = f"registry: {name} has no version {version}. "
    if not version.isdigit():
        raise InputError(f"{where}Give a number, or an alias that it holds.")
    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError(f"{where}Look at its versions in MLflow.") from None


def _exists(client: MlflowClient, name: str, version: str) -> bool:
    try:
        _get(client, name, version)
    except InputError:
        return False
    return True
