"""Versions of the registered model: found before they are made, and named by three aliases.

`champion` is what users load, `previous-champion` what a rollback returns to, `challenger` the newest version that the
gate did not let through. Versions carry as tags what they were made from and what was decided about them. A person may
promote a version by hand, and go back to the former champion.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import server
from multimodal_gemma.registry.server import quoted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from multimodal_gemma.config.schema import RegistryConfig

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous-champion", "challenger"
IDENTITY = "mmgemma.identity"  # tag: a digest of the model and its scores, see `register.Candidate`
MODEL_DIGEST, EVALUATION_DIGEST = "mmgemma.model_digest", "mmgemma.evaluation_digest"  # tags: manifest digests
LOGGED_MODEL = "mmgemma.logged_model"  # tag: id of the logged model that the version is of
PREDICTIONS = "mmgemma.predictions_sha256"  # tag: sha256 of the run's evaluation/predictions.jsonl
DECISION = "mmgemma.decision"  # tag: the gate's rules as JSON
SETTLED = "mmgemma.settled"  # tag, written last: what was decided under, see `register`
PREVIOUS_OF = "mmgemma.previous_champion"  # tag of a champion: the version that it replaced
BY_HAND = "mmgemma.promoted_by_hand"  # tag of a version that a person promoted although its gate had not passed
SCORES = "mmgemma.scores"  # tag: the flat metrics as JSON
BENCHMARKS = "mmgemma.benchmarks_digest"  # tag: manifest digest of what the scores were measured on
_NOTED = "mlflow.modelVersions"  # MLflow's own tag of a logged model
ROLLED_BACK = "mmgemma.rolled_back"  # tag of a version that a rollback took the title from: the version that got it


def check_name(name: str) -> None:
    """Refuse names that MLflow refuses, or that `models:/NAME@alias` could not spell, by an InputError."""
    if not name.strip():
        raise InputError("registry: registry.name is empty. Name the registered model.")
    if set("/:@") & set(name) or name in (".", ".."):
        raise InputError(
            f"registry: {name!r} cannot be a registered model's name: it must not be a path or hold '/', ':' or '@'. "
            "Change registry.name."
        )


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Return the version, as text, behind each alias; empty if there is no such model."""
    with server.tolerating(server.ABSENT):
        # Over REST a version is text, on a database a number.
        return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    return {}


def tags(client: MlflowClient, name: str, version: str) -> dict[str, str]:
    """Return the tags of a version; none if it was deleted."""
    with server.tolerating(server.ABSENT):
        return dict(client.get_model_version(name, version).tags)
    return {}


def require(client: MlflowClient, name: str, version: str) -> ModelVersion:
    """Return a version.

    Raises:
        InputError: it is no number, or there is none of this number.
    """
    where = f"registry: {name} has no version {version}. "
    if not version.isdigit():
        raise InputError(f"{where}Give a number, or an alias that it holds.")
    with server.tolerating(server.ABSENT):
        return client.get_model_version(name, version)
    raise InputError(f"{where}Look at its versions in MLflow.")


def find(client: MlflowClient, name: str, wanted: str) -> ModelVersion | None:
    """Return the oldest version with this identity, or None."""
    found = client.search_model_versions(f"name = {quoted(name)} and tags.`{IDENTITY}` = '{wanted}'")
    return min(found, key=lambda version: int(version.version), default=None)


def create(client: MlflowClient, name: str, model_id: str, run_id: str, tags: dict[str, str]) -> ModelVersion:
    """Make a version of a logged model, with `tags` that hold `IDENTITY`; return that of a faster process instead.

    `LOGGED_MODEL` is added, as a version's own model_id is empty when it is read back from a database.
    """
    with server.tolerating(server.TAKEN):
        client.create_registered_model(name)
    made = client.create_model_version(
        name, f"models:/{model_id}", run_id=run_id, tags={**tags, LOGGED_MODEL: model_id}, model_id=model_id
    )
    first = find(client, name, tags[IDENTITY])
    if first is not None and int(first.version) < int(made.version):
        client.delete_model_version(name, str(made.version))
        return first
    # A server notes this itself; on a database nobody else does, and the model's page would not name its version.
    noted = json.loads(client.get_logged_model(model_id).tags.get(_NOTED, "[]"))
    if not noted:
        note = [{"name": name, "version": made.version}]
        client.set_logged_model_tags(model_id, {_NOTED: json.dumps(note)})
    return made


def crown(client: MlflowClient, name: str, version: str, *, over: str | None) -> bool:
    """Make `version` the champion and keep the former one for a rollback; doing it twice changes nothing.

    Returns:
        Whether it is champion now: not if the title is no longer with `over`, the champion that it was held against.
    """
    held = aliases(client, name)
    former = held.get(CHAMPION)
    if former not in (over, version):
        return False
    if former != version:
        if former is not None:
            client.set_model_version_tag(name, version, PREVIOUS_OF, former)
            client.set_registered_model_alias(name, PREVIOUS, former)
        client.set_registered_model_alias(name, CHAMPION, version)
    if held.get(CHALLENGER) == version:
        client.delete_registered_model_alias(name, CHALLENGER)
    return True


def alias_of(held: dict[str, str], version: str) -> str:
    """Return the alias that tells most about a version, or ""."""
    return next((alias for alias in (CHAMPION, CHALLENGER, PREVIOUS) if held.get(alias) == version), "")


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
    check_name(name)
    with server.connected(registry) as client:
        held = aliases(client, name)
        number = held.get(str(version), str(version))
        gate = require(client, name, number).tags.get("gate", "")
        change = Change(name, held.get(CHAMPION, ""), number, gate, dry_run)
        if not dry_run and change.before != change.after:
            if gate != "passed":
                client.set_model_version_tag(name, number, BY_HAND, "true")
            crown(client, name, number, over=change.before or None)
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
    check_name(name)
    with server.connected(registry) as client:
        held = aliases(client, name)
        before, after = held.get(CHAMPION, ""), held.get(PREVIOUS, "")
        if not after:
            raise InputError(f"rollback: {name} has no former champion. Choose a version with promote.")
        former = require(client, name, after)
        change = Change(name, before, after, former.tags.get("gate", ""), dry_run)
        if not dry_run:
            # Both aliases on one version: a change of champion was cut short. Only its end is missing.
            if before and before != after:
                client.set_model_version_tag(name, before, ROLLED_BACK, after)
            client.set_registered_model_alias(name, CHAMPION, after)
            # One step further back for the next rollback, if that version is still there.
            earlier = former.tags.get(PREVIOUS_OF, "")
            if earlier and earlier != before and tags(client, name, earlier):
                client.set_registered_model_alias(name, PREVIOUS, earlier)
            else:
                client.delete_registered_model_alias(name, PREVIOUS)
    return change
