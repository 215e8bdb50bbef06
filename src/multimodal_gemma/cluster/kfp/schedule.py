"""`mmgemma schedule`: recurring runs, one a name.

KFP cannot change a recurring run, and lets several have one name. Here a name is one schedule: creating it again with
the same settings changes nothing, with others it puts the new one in the old one's place (first the new one is made,
then the old one deleted, so that there is no moment without). What is deleted leaves its runs behind: without
propagation_policy=ORPHAN Kubernetes would delete their Workflows with it, and KFP show them as running for ever.

Cron expressions are what KFP reads: six fields, the first of them seconds. The five fields that everybody writes are
accepted; what KFP would refuse is refused here, and so is what it would take and never run (30 February).
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from multimodal_gemma import files
from multimodal_gemma.cluster.kfp import store, submit
from multimodal_gemma.cluster.kfp.api import Api
from multimodal_gemma.cluster.kfp.connect import connected
from multimodal_gemma.cluster.kfp.parameters import nearest
from multimodal_gemma.errors import InputError

_SHOWN = 2  # coming moments that are printed
_SPOKEN = {
    "@hourly": "0 0 * * * *",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@weekly": "0 0 0 * * 0",
    "@monthly": "0 0 0 1 * *",
    "@yearly": "0 0 0 1 1 *",
}
_ORPHANED: dict[str, Any] = {"propagation_policy": "ORPHAN"}
_SPAN = r"(?:\*|\?|\w+(?:-\w+)?)(?:/\d+)?"
_FIELD = re.compile(rf"{_SPAN}(?:,{_SPAN})*")


def run(args: argparse.Namespace) -> int:
    """Do what `mmgemma schedule ACTION` says; return the exit code.

    Raises:
        InputError: what was given is wrong, or the server cannot be used.
    """
    actions = {"create": _create, "list": _list, "pause": _pause, "resume": _resume, "delete": _delete}
    with store.sentences():
        return actions[args.action](args)


def _create(args: argparse.Namespace) -> int:
    cron = normal(args.cron)
    planned = submit.plan(args)
    if args.dry_run:
        facts = {"name": args.name, "cron": cron, "pipeline": planned.compiled.name, "parameters": planned.parameters}
        return _said(args, json.dumps(facts, indent=2), facts)
    api = connected(args)
    target = submit.place(api, args, planned)
    account = submit.account(api, args)
    settings = [cron, target.version_id, target.experiment_id, planned.parameters, account]
    mark = f"settings sha256:{files.digest_of([*settings, args.catch_up])}"
    before = [item for item in _all(api, args) if item.display_name == args.name]
    if len(before) == 1 and mark in (before[0].description or ""):
        return _said(args, f"Schedule {args.name} is like that already; nothing was changed.", _facts(before[0]))
    paused = bool(before) and all(item.status == "DISABLED" for item in before)
    made = _make(api, args, _wanted(args, cron, planned, target, account, mark, paused=paused), before)
    for item in before:
        api.call(api.recurring.recurring_run_service_delete_recurring_run, item.recurring_run_id, **_ORPHANED)
    facts = {"name": args.name, "id": made, "cron": cron, "state": "paused" if paused else "active"}
    return _said(args, _created(args.name, cron, changed=bool(before), paused=paused), facts)


def _wanted(
    args: argparse.Namespace,
    cron: str,
    planned: submit.Plan,
    target: submit.Target,
    account: str | None,
    mark: str,
    *,
    paused: bool,
) -> Any:
    import kfp_server_api as generated

    return generated.V2beta1RecurringRun(
        display_name=args.name,
        description=f"mmgemma schedule; {mark}",
        experiment_id=target.experiment_id,
        pipeline_version_reference=generated.V2beta1PipelineVersionReference(
            pipeline_id=target.pipeline_id, pipeline_version_id=target.version_id
        ),
        runtime_config=generated.V2beta1RuntimeConfig(parameters=planned.parameters),
        service_account=account,
        trigger=generated.V2beta1Trigger(cron_schedule=generated.V2beta1CronSchedule(cron=cron)),
        mode="DISABLE" if paused else "ENABLE",
        max_concurrency="1",  # a retrain that takes longer than the interval is not overtaken by the next
        no_catchup=not args.catch_up,
    )


def _make(api: Api, args: argparse.Namespace, wanted: Any, before: list[Any]) -> str:
    known = {item.recurring_run_id for item in before}

    def find() -> str | None:
        found = (item for item in _all(api, args) if item.description == wanted.description)
        return next((item.recurring_run_id for item in found if item.recurring_run_id not in known), None)

    def create() -> str:
        made = api.call(api.recurring.recurring_run_service_create_recurring_run, wanted, once=True)
        return str(made.recurring_run_id)

    return store.once(api, create, find)


def _created(name: str, cron: str, *, changed: bool, paused: bool) -> str:
    done = f"Schedule {name} is {'changed' if changed else 'created'}: {cron}."
    if paused:
        return f"{done} It is paused, as it was."
    when = " and ".join(f"{moment:%a %Y-%m-%d %H:%M}" for moment in _coming(cron))
    return f"{done} It comes next at {when}, by the clock of KFP (UTC unless its CRON_SCHEDULE_TIMEZONE is set)."


def _list(args: argparse.Namespace) -> int:
    api = connected(args)
    found = list(_all(api, args))
    experiments = {identity: name for name, identity in store.experiments(api, args.namespace or "").items()}
    if args.json:
        return _said(args, "", {"schedules": [_facts(item) for item in found]})
    if not found:
        return _said(args, "There is no schedule.", {})
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "state", "cron", "next", "experiment"):
        table.add_column(column)
    for facts in map(_facts, found):
        coming = next(iter(_coming(facts["cron"])), None) if facts["state"] == "active" and facts["cron"] else None
        shown = f"{coming:%a %Y-%m-%d %H:%M}" if coming else ""
        table.add_row(facts["name"], facts["state"], facts["cron"], shown, experiments.get(facts["experiment_id"], ""))
    Console(file=sys.stdout, highlight=False, soft_wrap=True).print(table)
    return 0


def _pause(args: argparse.Namespace) -> int:
    return _each(args, lambda api: api.recurring.recurring_run_service_disable_recurring_run, "paused")


def _resume(args: argparse.Namespace) -> int:
    return _each(args, lambda api: api.recurring.recurring_run_service_enable_recurring_run, "active again")


def _delete(args: argparse.Namespace) -> int:
    done = "deleted; its runs are kept"
    return _each(args, lambda api: api.recurring.recurring_run_service_delete_recurring_run, done, **_ORPHANED)


def _each(args: argparse.Namespace, function: Callable[[Api], Any], done: str, **options: Any) -> int:
    """Do something to the recurring run of that name (to all of them, should an interrupted change have left two)."""
    api = connected(args)
    known = list(_all(api, args))
    named = [item for item in known if item.display_name == args.name]
    if not named:
        names = sorted({item.display_name for item in known})
        raise InputError(f"schedule: there is no schedule {args.name!r}. {nearest(args.name, names)}")
    for item in named:
        api.call(function(api), item.recurring_run_id, **options)
    return _said(args, f"Schedule {args.name} is {done}.", {"name": args.name, "done": done})


def _all(api: Api, args: argparse.Namespace) -> Any:
    within = {"namespace": args.namespace} if args.namespace else {}
    return store.pages(api, api.recurring.recurring_run_service_list_recurring_runs, "recurring_runs", **within)


def _facts(item: Any) -> dict[str, Any]:
    cron = item.trigger.cron_schedule if item.trigger else None
    return {
        "name": item.display_name,
        "id": item.recurring_run_id,
        "state": "paused" if item.status == "DISABLED" else "active",
        "cron": (cron.cron if cron else "") or "",
        "experiment_id": item.experiment_id,
        "parameters": (item.runtime_config.parameters if item.runtime_config else None) or {},
    }


def normal(text: str) -> str:
    """Return a cron expression with six fields.

    Args:
        text: five or six fields, or a word such as @daily.

    Raises:
        InputError: it is no cron expression, or it never comes.
    """
    from croniter import CroniterBadDateError

    fields = _SPOKEN.get(text.strip(), text).split()
    fields = ["0", *fields] if len(fields) == 5 else fields
    if len(fields) != 6:
        raise InputError(
            f"schedule: {text!r} is no cron expression. Give five fields (minute, hour, day of month, month, day of "
            "week), e.g. '0 3 * * 1' for Mondays at 3:00, or six with the second first, as KFP has them."
        )
    for field in fields:
        backwards = any(int(first) > int(last) for first, last in re.findall(r"(\d+)-(\d+)", field))
        if not _FIELD.fullmatch(field) or backwards:
            raise InputError(f"schedule: {text!r} is no cron expression: KFP does not read {field!r}.")
    if re.search(r"[7-9]|[LRH]\d?$", fields[5]):
        raise InputError(f"schedule: {text!r} is no cron expression: days of the week are 0 (Sunday) to 6, or names.")
    try:
        coming(" ".join(fields), datetime.datetime.now(datetime.UTC), 1)
    except CroniterBadDateError:
        raise InputError(
            f"schedule: {text!r} never comes: no such day of that month exists. Check the two fields."
        ) from None
    except ValueError as error:
        raise InputError(f"schedule: {text!r} is no cron expression: {error}.") from None
    return " ".join(fields)


def coming(cron: str, after: datetime.datetime, count: int) -> list[datetime.datetime]:
    """Return the next moments at which a six-field expression comes, in the zone of `after`."""
    from croniter import croniter

    moments = croniter(cron, after, second_at_beginning=True)
    return [moments.get_next(datetime.datetime) for _ in range(count)]


def _coming(cron: str) -> list[datetime.datetime]:
    if len(cron.split()) != 6:  # another program made it, in words that this one does not read
        return []
    return coming(cron, datetime.datetime.now(datetime.UTC), _SHOWN)


def _said(args: argparse.Namespace, sentence: str, facts: dict[str, Any]) -> int:
    sys.stdout.write((json.dumps(facts) if args.json else sentence) + "\n")
    return 0
