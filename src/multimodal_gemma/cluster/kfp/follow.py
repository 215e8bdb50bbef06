"""Follow a run to its end, and say in one sentence what came of it."""

from __future__ import annotations

import dataclasses
import datetime
import time
from typing import Any

from multimodal_gemma.cluster.kfp.api import Api, Patience
from multimodal_gemma.cluster.kfp.pipeline import of_spec
from multimodal_gemma.cluster.kfp.screen import Screen
from multimodal_gemma.cluster.kfp.story import REGISTRATION, Row, Snapshot, snapshot
from multimodal_gemma.cluster.kfp.why import Causes
from multimodal_gemma.cluster.patience import Refused
from multimodal_gemma.errors import InputError

PASSED, FAILED, REFUSED, UNKNOWN = 0, 1, 3, 4  # exit codes; 2 is a mistake in what was given
_PATIENCE = 15 * 60.0  # seconds that a server may be away while a run is followed
_NOT_FOUND = 404
_UNTOLD = (
    "The server lists none of its tasks, as it does once Argo has to compress the workflow's status (1 MiB and more)."
)


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


def follow(api: Api, followed: Followed, screen: Screen, causes: Causes, *, every: float, after: int = 0) -> Snapshot:
    """Ask for the run until it has ended.

    Args:
        api: the server; it may be away for a while meanwhile.
        followed: the run.
        screen: shows what changes.
        causes: says why something failed or waits.
        every: seconds between two questions.
        after: an end that came with at most so many changes of the run's state is that of an attempt before.

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
                now = explained(look(api, followed), causes)
                if not now.ended or now.changes > after:
                    screen.show(now)
                    if now.ended:
                        return now
                time.sleep(every)
    finally:
        api.patience, api.troubled = before, told


def look(api: Api, followed: Followed) -> Snapshot:
    """Ask for the run once."""
    run = api.call(api.runs.run_service_get_run, followed.identity)
    return snapshot(run, followed.spec, datetime.datetime.now(datetime.UTC))


def explained(now: Snapshot, causes: Causes) -> Snapshot:
    """Return a run with the reasons of what failed, was tried again or waits, and with the gate's word at its end."""
    rows = tuple(_explained(row, now, causes) for row in now.rows)
    registered, gate = now.row(REGISTRATION), now.gate
    if now.ended and gate == "unknown" and registered and registered.pods:
        gate = causes.gate(registered.pods[-1])
    return dataclasses.replace(now, rows=rows, gate=gate)


def _explained(row: Row, now: Snapshot, causes: Causes) -> Row:
    if not row.pods:
        return row
    if row.state == "failed":
        return dataclasses.replace(row, reason=causes.ended(row.pods[-1], now.workflow))
    if row.state in ("running", "pending", "stopped") and (waits := causes.waits(row.pods[-1], now.workflow)):
        if row.state == "stopped" or now.stopped:
            return dataclasses.replace(row, state="stopped", reason=f"it had not begun: {waits}")
        return dataclasses.replace(row, state="pending", reason=waits)
    if len(row.pods) > 1 and row.state != "stopped":
        return dataclasses.replace(row, reason=causes.ended(row.pods[-2], now.workflow))
    return row


def verdict(end: Snapshot, link: str) -> tuple[int, str, str]:
    """Return the exit code, the word and the sentence that a finished run deserves.

    Args:
        end: the finished run.
        link: where its logs can be read.
    """
    again = " It had failed before, and went on when it was retried." if end.retried else ""
    hidden = "" if end.told else f" {_UNTOLD}"
    if end.stopped:
        row = next((row for row in end.rows if row.state == "stopped"), None)
        during = (f" during {row.name}" + (f"; {row.reason}" if row.reason else "")) if row else ""
        return FAILED, "stopped", f"The run was stopped{during}.{again}{hidden}"
    if end.state != "SUCCEEDED":
        return FAILED, "failed", f"{_failure(end, link)}{again}{hidden}"
    if end.gate in ("passed", "none"):
        done = " and passed the gate." if end.gate == "passed" else "; it has no gate."
        return PASSED, "passed", f"The run succeeded{done}{again}{hidden}"
    if end.gate == "refused":
        told = f"nothing was exported. register-model says which rule: {link}"
        return REFUSED, "refused", f"The run succeeded, but the gate refused the model: {told}{again}{hidden}"
    told = f"the server does not say whether the gate passed: see {link}"
    return UNKNOWN, "unknown", f"The run succeeded, but {told}{again}{hidden}"


def _failure(end: Snapshot, link: str) -> str:
    row = end.failed
    if row is None:
        return f"The run failed, though none of its tasks did: {end.reason or f'see {link}'}"
    tries = f" after {row.tries} tries" if (row.tries or 0) > 1 else ""
    what = f"{row.name} failed{tries}" if row.started else f"{row.name} could not be started"
    return f"{what}: {row.reason or end.reason or f'it left no log; see {link}'}"
