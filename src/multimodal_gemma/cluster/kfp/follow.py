"""Follow a run to its end, and say in one sentence what came of it."""

from __future__ import annotations

import dataclasses
import datetime
import time
from typing import Any

from multimodal_gemma.cluster.kfp.api import Api, Patience, Refused
from multimodal_gemma.cluster.kfp.pipeline import of_spec
from multimodal_gemma.cluster.kfp.screen import Screen
from multimodal_gemma.cluster.kfp.story import Snapshot, snapshot
from multimodal_gemma.errors import InputError

PASSED, FAILED, REFUSED, UNKNOWN = 0, 1, 3, 4  # exit codes; 2 is a mistake in what was given
_PATIENCE = 15 * 60.0  # seconds that a server may be away while a run is followed
_NOT_FOUND = 404


@dataclasses.dataclass(frozen=True)
class Followed:
    """A run and the specification of its pipeline.

    Attributes:
        identity: of the run.
        name: of the run.
        spec: of its pipeline.
    """

    identity: str
    name: str
    spec: dict[str, Any] = dataclasses.field(repr=False)


def attach(api: Api, identity: str) -> Followed:
    """Find a run that somebody else, or an earlier command, created.

    Raises:
        InputError: there is no such run, or the server does not say what it runs.
    """
    try:
        run = api.call(api.runs.run_service_get_run, identity)
    except Refused as refusal:
        if refusal.status != _NOT_FOUND:
            raise
        raise InputError(f"submit: {api.host} has no run {identity!r}. `mmgemma submit` printed its id.") from None
    spec = run.pipeline_spec
    if not spec and (reference := run.pipeline_version_reference):
        spec = api.call(
            api.pipelines.pipeline_service_get_pipeline_version, reference.pipeline_id, reference.pipeline_version_id
        ).pipeline_spec
    if not isinstance(spec, dict):
        raise InputError(f"submit: the server does not say which pipeline run {identity} runs; look at it in the UI.")
    return Followed(identity, run.display_name or identity, of_spec(spec).spec)


def follow(api: Api, followed: Followed, screen: Screen, *, every: float) -> Snapshot:
    """Ask for the run until it has ended.

    Args:
        api: the server; it may be away for a while meanwhile.
        followed: the run.
        screen: shows what changes.
        every: seconds between two questions.

    Returns:
        The run after its end.

    Raises:
        InputError: the server stayed away too long, or the token could not be renewed. The run goes on.
    """
    before, api.patience = api.patience, Patience(max(api.patience.seconds, _PATIENCE), api.patience.pause)
    told, api.troubled = api.troubled, screen.trouble
    try:
        with screen.open():
            while True:
                run = api.call(api.runs.run_service_get_run, followed.identity)
                now = snapshot(run, followed.spec, datetime.datetime.now(datetime.UTC))
                screen.show(now)
                if now.ended:
                    return now
                time.sleep(every)
    finally:
        api.patience, api.troubled = before, told


def verdict(end: Snapshot, link: str) -> tuple[int, str]:
    """Return the exit code and the sentence that a finished run deserves.

    Args:
        end: the finished run.
        link: where its logs can be read.
    """
    if end.state == "CANCELED":
        return FAILED, "The run was stopped."
    if end.state != "SUCCEEDED":
        return FAILED, _failure(end, link)
    if end.gate in ("passed", "none"):
        return PASSED, "The run succeeded" + (" and passed the gate." if end.gate == "passed" else "; it has no gate.")
    if end.gate == "refused":
        return REFUSED, (
            "The run succeeded, but the gate refused the model: nothing was exported. "
            f"register-model says which rule: {link}"
        )
    return UNKNOWN, f"The run succeeded, but the server does not say whether the gate passed: see {link}"


def _failure(end: Snapshot, link: str) -> str:
    first = next((row for row in end.failed if row.name != "report-run"), None)
    if first is None:
        return f"The run failed before any task did: {end.reason or f'the server does not say why, see {link}'}"
    tries = f" after {first.tries} tries" if (first.tries or 0) > 1 else ""
    # KFP 2.17 defines the field for a task's error and leaves it empty: kubeflow/pipelines#14007.
    reason = first.reason or end.reason
    return f"{first.name} failed{tries}: {reason or f'the server does not say why, its log does: {link}'}"
