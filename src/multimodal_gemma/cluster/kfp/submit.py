"""`mmgemma submit`: from a compiled file to a run on a cluster, followed to its end."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multimodal_gemma import logs
from multimodal_gemma.cluster.kfp import data, follow, parameters, pipeline, store
from multimodal_gemma.cluster.kfp.api import Api
from multimodal_gemma.cluster.kfp.connect import connected, run_link
from multimodal_gemma.cluster.kfp.screen import Screen, print_final
from multimodal_gemma.cluster.kfp.story import REPORT, Snapshot
from multimodal_gemma.cluster.kfp.why import Causes
from multimodal_gemma.cluster.patience import Refused
from multimodal_gemma.cluster.preflight.needs import SERVICE_ACCOUNT
from multimodal_gemma.config.flat import bare
from multimodal_gemma.errors import InputError
from multimodal_gemma.local.runner import compiled_pipeline

_ACCOUNTS = "/api/v1/namespaces/{namespace}/serviceaccounts"
DEFAULT_EXPERIMENT = "multimodal-gemma"
_INTERRUPTED = 130
Renew = Callable[[Api, follow.Followed, Snapshot, Path], None]  # writes the page of a run that has ended
_log = logs.get("submit")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will be sent, fixed before anything is.

    Attributes:
        compiled: the pipeline.
        parameters: of the run.
        known: ids of the pipeline and of the version on the server that was chosen; None where a file is sent.
    """

    compiled: pipeline.Compiled
    parameters: dict[str, Any]
    known: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a run is created.

    Attributes:
        pipeline_id: of the pipeline.
        version_id: of its version.
        experiment_id: of the experiment.
        uploaded: whether the version was uploaded just now.
    """

    pipeline_id: str
    version_id: str
    experiment_id: str
    uploaded: bool


def run(args: argparse.Namespace, renew: Renew) -> int:
    """Submit, or follow or stop an earlier run; return the exit code.

    Args:
        args: of the command.
        renew: writes the page of a run that was retried.

    Raises:
        InputError: what was given is wrong, or the server cannot be used.
    """
    with store.sentences():
        if args.follow or args.stop or args.retry:
            api = connected(args)
            if args.follow:
                return _follow(api, args, follow.attach(api, args.follow), {})
            return _stop(api, args) if args.stop else _retry(api, args, renew)
        if args.upload:
            return _upload(args)
        planned = None if args.pipeline_version else plan(args)  # refuses what is wrong before the server is asked
        if args.dry_run and planned:
            return _dry_run(args, planned)
        api = connected(args)
        planned = planned or _known_version(api, args)
        return _dry_run(args, planned) if args.dry_run else _submit(api, args, planned)


def plan(args: argparse.Namespace) -> Plan:
    """Read the pipeline and check every parameter against it and against the configuration."""
    compiled = pipeline.read(args.pipeline or compiled_pipeline(), cache=not args.no_cache)
    return Plan(compiled, _parameters(args, compiled))


def preset(args: argparse.Namespace) -> str:
    """Return the preset that was given, else that of the parameters' file, else the default."""
    filed = parameters.read_file(args.params).get("preset") if args.params and not args.preset else None
    return str(args.preset or filed or args.preset_default)


def place(api: Api, args: argparse.Namespace, planned: Plan) -> Target:
    """See to it that pipeline, version and experiment are there, and say what was made."""
    compiled, namespace = planned.compiled, args.namespace or ""
    create = args.create_experiment or args.experiment == DEFAULT_EXPERIMENT
    experiment_id = store.ensure_experiment(api, args.experiment, namespace, create=create)
    if planned.known:
        return Target(*planned.known, experiment_id, uploaded=False)
    pipeline_id, version_id, uploaded = _version(api, compiled, namespace)
    _log.info(_placed(compiled, uploaded))
    return Target(pipeline_id, version_id, experiment_id, uploaded)


def _upload(args: argparse.Namespace) -> int:
    compiled = pipeline.read(args.pipeline or compiled_pipeline(), cache=not args.no_cache)
    *_, uploaded = _version(connected(args), compiled, args.namespace or "")
    facts = {"submitted": False, "pipeline": {"name": compiled.name, "version": compiled.title, "uploaded": uploaded}}
    return _said(args, 0, _placed(compiled, uploaded), facts)


def _version(api: Api, compiled: pipeline.Compiled, namespace: str) -> tuple[str, str, bool]:
    pipeline_id = store.ensure_pipeline(api, compiled, namespace)
    version_id, uploaded = store.ensure_version(api, pipeline_id, compiled)
    if compiled.platform:
        store.require_platform(api, pipeline_id, version_id)
    return pipeline_id, version_id, uploaded


def _placed(compiled: pipeline.Compiled, uploaded: bool) -> str:
    done = "uploaded" if uploaded else "is on the server already; nothing was uploaded"
    return f"{compiled.name} {compiled.title} {done}"


def account(api: Api, args: argparse.Namespace) -> str | None:
    """Return the service account of the pods: what was given, else the project's where it is known to exist.

    KFP does not say which accounts there are; a kubeconfig does. Without one the server's default is taken, and said.
    """
    if args.service_account:
        return str(args.service_account)
    known = None
    if api.cluster is not None:
        with contextlib.suppress(Refused, InputError):
            known = api.cluster.get(_ACCOUNTS, SERVICE_ACCOUNT)
    if known is not None:
        return SERVICE_ACCOUNT
    why = (
        f"{SERVICE_ACCOUNT} is not known to exist there" if api.cluster else "which others exist only a kubeconfig says"
    )
    _log.info(f"the pods run as the server's own account ({why}); --service-account names another")
    return None


def _parameters(args: argparse.Namespace, compiled: pipeline.Compiled) -> dict[str, Any]:
    filed = parameters.read_file(args.params) if args.params else {}
    found = parameters.collect(compiled.parameters, preset(args), args.overrides, args.param or [], filed)
    known = {bare(name) for name in found}
    if "preset" in known and (known != {"preset"} or preset(args) != "sample"):
        parameters.configured(found, compiled.parameters)  # refuses what the run would refuse
    return found


def _known_version(api: Api, args: argparse.Namespace) -> Plan:
    name = pipeline.read(args.pipeline or compiled_pipeline()).name
    *known, spec = store.find_version(api, name, args.pipeline_version, args.namespace or "")
    compiled = pipeline.of_spec(spec)
    return Plan(compiled, _parameters(args, compiled), (known[0], known[1]))


def _submit(api: Api, args: argparse.Namespace, planned: Plan) -> int:
    from kfp_server_api import V2beta1PipelineVersionReference, V2beta1Run, V2beta1RuntimeConfig

    description = "mmgemma submit"
    if args.new_data:
        sources = data.Sources.of(parameters.configured(planned.parameters, planned.compiled.parameters))
        if same := data.run_on(api, sources, args.experiment, args.namespace or ""):
            sentence = f"No new data since run {same}; nothing was submitted."
            return _said(args, 0, sentence, {"submitted": False, "data": sources.digest, "last_run": same})
        description = f"{description}; {sources.mark}"
    target = place(api, args, planned)
    name = args.run_name or f"{preset(args)}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    identity = store.create_run(
        api,
        V2beta1Run(
            display_name=name,
            description=description,
            experiment_id=target.experiment_id,
            pipeline_version_reference=V2beta1PipelineVersionReference(
                pipeline_id=target.pipeline_id, pipeline_version_id=target.version_id
            ),
            runtime_config=V2beta1RuntimeConfig(parameters=planned.parameters),
            service_account=account(api, args),
        ),
    )
    facts = {
        "submitted": True,
        "experiment": args.experiment,
        "pipeline": {
            "name": planned.compiled.name,
            "version": args.pipeline_version or planned.compiled.title,
            "uploaded": target.uploaded,
        },
        "parameters": planned.parameters,
    }
    _log.info(f"run {name} ({identity}) is created in experiment {args.experiment}")
    if args.detach:
        return _said(args, 0, run_link(args, api, identity), {**facts, **_names(args, api, identity, name)})
    return _follow(api, args, follow.Followed(identity, name, planned.compiled.spec), facts)


def _retry(api: Api, args: argparse.Namespace, renew: Renew) -> int:
    """Let a run that ended badly go on from what failed, by KFP's own retry, and follow it."""
    followed = follow.attach(api, args.retry)
    before = follow.look(api, followed)
    if not before.ended:
        raise InputError(f"submit: run {followed.name} has not ended. Follow it with --follow, or stop it first.")
    if before.state == "SUCCEEDED":
        raise InputError(f"submit: run {followed.name} has succeeded, so there is nothing to retry. Submit a new one.")

    def retry() -> str:
        api.call(api.runs.run_service_retry_run, followed.identity, once=True)
        return followed.identity

    def begun() -> str | None:
        return followed.identity if follow.look(api, followed).changes > before.changes else None

    store.once(api, retry, begun)
    _log.info(f"run {followed.name} ({followed.identity}) goes on from what failed")
    if args.detach:
        return _said(
            args, 0, run_link(args, api, followed.identity), _names(args, api, followed.identity, followed.name)
        )

    def told(end: Snapshot) -> str:
        page = Path(f"{followed.name}.html")
        renew(api, followed, end, page)
        return f" Its page is {page}: KFP may leave that of {REPORT} as the attempt before has written it."

    return _follow(api, args, followed, {}, before.changes, told)


def _follow(
    api: Api,
    args: argparse.Namespace,
    followed: follow.Followed,
    facts: dict[str, Any],
    after: int = 0,
    told: Callable[[Snapshot], str] = lambda end: "",
) -> int:
    """Follow a run to its end and say what came of it: past its first `after` states, with what `told` adds."""
    link = run_link(args, api, followed.identity)
    _log.info(link)
    try:
        causes = Causes(api, followed.identity, api.cluster)
        end = follow.follow(api, followed, Screen(followed.name), causes, every=args.every, after=after)
    except KeyboardInterrupt:
        again = f"mmgemma submit --follow {followed.identity}"
        _write(sys.stderr, f"The run goes on. Follow it: {again}. Stop it: {again.replace('--follow', '--stop')}.")
        return _INTERRUPTED
    except InputError as error:
        raise InputError(f"{error} The run goes on: mmgemma submit --follow {followed.identity}") from None
    code, outcome, sentence = follow.verdict(end, link)
    sentence += told(end)
    if not args.json:
        print_final(end, followed.name)
    return _said(
        args, code, sentence, {**facts, **_names(args, api, followed.identity, followed.name), **_result(end, outcome)}
    )


def _stop(api: Api, args: argparse.Namespace) -> int:
    followed = follow.attach(api, args.stop)
    api.call(api.runs.run_service_terminate_run, followed.identity)
    facts = _names(args, api, followed.identity, followed.name)
    return _said(args, 0, f"Run {followed.name} ({followed.identity}) is being stopped.", facts)


def _dry_run(args: argparse.Namespace, planned: Plan) -> int:
    compiled = planned.compiled
    shown = {
        "pipeline": compiled.name,
        "version": args.pipeline_version or compiled.title,
        "experiment": args.experiment,
        "service_account": args.service_account,
        "parameters": planned.parameters,
    }
    _write(sys.stdout, json.dumps(shown, indent=None if args.json else 2))
    return 0


def _names(args: argparse.Namespace, api: Api, identity: str, name: str) -> dict[str, Any]:
    return {"run_id": identity, "run_name": name, "link": run_link(args, api, identity)}


def _result(end: Snapshot, outcome: str) -> dict[str, Any]:
    shown = ("name", "state", "seconds", "tries", "reason")
    tasks = [{name: getattr(row, name) for name in shown} for row in end.rows]
    return {"outcome": outcome, "state": end.state, "gate": end.gate, "retried": end.retried, "tasks": tasks}


def _said(args: argparse.Namespace, code: int, sentence: str, facts: dict[str, Any]) -> int:
    """Print what came of the command, as a sentence or as one JSON object; return the exit code."""
    if args.json:
        _write(sys.stdout, json.dumps({**facts, "exit_code": code, "message": sentence}))
    else:
        _write(sys.stdout if code == 0 else sys.stderr, sentence)
    return code


def _write(stream: Any, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()
