"""The arguments of `mmgemma submit`, `schedule` and `preflight`; nothing heavy is imported to print their help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

    from multimodal_gemma.cluster.kfp.api import Api
    from multimodal_gemma.cluster.kfp.follow import Followed
    from multimodal_gemma.cluster.kfp.story import Snapshot

_SUBMIT = """\
Upload the compiled pipeline, create a run and follow it to its end.

The pipeline is uploaded as a version named by its digest: what the server has is not uploaded again. The parameters
`preset` and `overrides` come from --preset and from key=value; any other parameter is set by --param."""
_SUBMIT_MORE = """\
exit codes:
  0  the run succeeded and passed the gate    3  it succeeded, but the gate refused the model
  1  the run failed or was stopped            4  it succeeded, but whether it passed is not known
  2  a mistake in what was given            130  interrupted; the run goes on

examples:
  mmgemma submit --port-forward kubeflow/ml-pipeline
  mmgemma submit --preset llava-150k training.epochs=1 --param hardware=l4 \\
      --host https://kubeflow.example.com/pipeline --token-file ~/kfp-token
  mmgemma submit --follow RUN_ID
  mmgemma submit --retry RUN_ID
"""
_SCHEDULE = """\
Recurring runs. One name is one schedule: creating it again changes it, or says that nothing is to change.

A KFP schedule runs whether or not there is anything new. To retrain only on new data, let a CronJob or a CI schedule
run `mmgemma submit --new-data`, which submits nothing while the data is what the last run has seen."""


_PREFLIGHT = """\
Look at a cluster as a run with these parameters would meet it: rights, nodes, quota, Secrets, servers, and
Kubeflow Trainer and Kueue where they are used. Nothing is changed."""
_PREFLIGHT_MORE = """\
exit codes:
  0  nothing failed    2  something failed; each with what to do about it

examples:
  mmgemma preflight --namespace kubeflow
  mmgemma preflight --namespace kubeflow --params pipelines/parameters/gke-a100.yaml
  mmgemma preflight --preset llava-150k --lock llava.lock.json
"""


LOCKED: dict[str, Any] = {
    "type": Path,
    "metavar": "FILE",
    "help": "refuse sources that hold something else than when `preflight --lock FILE` was run",
}


def add(commands: Any, add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands.

    Args:
        commands: the subparsers of `mmgemma`.
        add_command: adds one with the options that all have in common.
    """
    submit = add_command(commands, "submit", _submit, "run the pipeline on a cluster and follow it")
    submit.description, submit.epilog = _SUBMIT, _SUBMIT_MORE
    submit.usage = "mmgemma submit [options] [key=value …]"
    submit.formatter_class = argparse.RawDescriptionHelpFormatter
    submit.set_defaults(preset_default="sample")
    _run_options(submit)
    submit.add_argument("--run-name", metavar="NAME", help="default: the preset and the time")
    submit.add_argument(
        "--pipeline-version",
        metavar="NAME",
        help="run this version of the server (a name, a digest, or latest); upload nothing",
    )
    submit.add_argument("--upload", action="store_true", help="upload the pipeline, and create no run")
    submit.add_argument("--new-data", action="store_true", help="submit nothing unless the data has changed")
    following = submit.add_argument_group("following")
    following.add_argument("--detach", action="store_true", help="do not wait for the end")
    following.add_argument("--follow", metavar="RUN_ID", help="follow a run that was submitted before")
    following.add_argument("--stop", metavar="RUN_ID", help="stop a run")
    following.add_argument("--retry", metavar="RUN_ID", help="let a failed run go on from what failed, and follow it")
    following.add_argument("--every", type=_seconds, default=5.0, metavar="SECONDS", help="ask so often (default: 5)")
    _output(submit)
    _connection(submit)

    schedule = add_command(commands, "schedule", _schedule, "run the pipeline again and again")
    schedule.description, schedule.usage = _SCHEDULE, "mmgemma schedule ACTION [NAME] [options] [key=value …]"
    schedule.formatter_class = argparse.RawDescriptionHelpFormatter
    schedule.set_defaults(preset_default="sample", pipeline_version=None)
    schedule.add_argument("action", choices=["create", "list", "pause", "resume", "delete"], metavar="ACTION",
                          help="create, list, pause, resume or delete")  # fmt: skip
    schedule.add_argument("name", nargs="?", metavar="NAME", help="of the schedule")
    schedule.add_argument(
        "--cron", metavar="TEXT", help="when, e.g. '0 3 * * 1' (Mondays at 3:00); six fields begin with the second"
    )
    schedule.add_argument("--catch-up", action="store_true", help="after a pause, run what was missed")
    _run_options(schedule)
    _output(schedule)
    _connection(schedule)

    _add_preflight(commands, add_command)


def _add_preflight(commands: Any, add_command: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_command(commands, "preflight", _preflight, "check a cluster before a run")
    parser.description, parser.epilog = _PREFLIGHT, _PREFLIGHT_MORE
    parser.usage = "mmgemma preflight [options] [key=value …]"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(preset_default="sample")
    parser.add_argument("--namespace", metavar="NAME", help="where runs live (default: the context's)")
    parser.add_argument("--service-account", default="", metavar="NAME", help="that the pods run as")
    parser.add_argument("--pipeline", type=Path, metavar="FILE", help="compiled pipeline (default: training.yaml)")
    parser.add_argument("--param", action="append", metavar="NAME=VALUE", help="a parameter of the pipeline")
    parser.add_argument("--params", type=Path, metavar="FILE", help="YAML file of parameters; --param wins over it")
    parser.add_argument("--kubeconfig", type=Path, metavar="FILE", help="default: KUBECONFIG or ~/.kube/config")
    parser.add_argument("--context", metavar="NAME", help="of the kubeconfig (default: its current one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument(
        "--lock", type=Path, metavar="FILE", help="look at no cluster: write what the sources of the run hold into FILE"
    )
    parser.add_argument("--locked", **LOCKED)


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--locked", **LOCKED)
    parser.add_argument("--pipeline", type=Path, metavar="FILE", help="compiled pipeline (default: training.yaml)")
    parser.add_argument(
        "--param", action="append", metavar="NAME=VALUE", help="a parameter of the pipeline; lists and objects as JSON"
    )
    parser.add_argument("--params", type=Path, metavar="FILE", help="YAML file of parameters; --param wins over it")
    parser.add_argument(
        "--experiment", default="multimodal-gemma", metavar="NAME", help="default: multimodal-gemma, made where missing"
    )
    parser.add_argument("--create-experiment", action="store_true", help="make the experiment where it is missing")
    parser.add_argument(
        "--service-account",
        metavar="NAME",
        help="that the pods run as (default: multimodal-gemma where a kubeconfig shows it, else the server's)",
    )
    parser.add_argument("--no-cache", action="store_true", help="run every task, whatever ran before")


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")


def _connection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "connection",
        "In a pod the server and the token of its service account are found.\n"
        "  Elsewhere KFP_HOST and KFP_TOKEN_FILE (or KFP_TOKEN) may stand for the options.",
    )
    group.add_argument("--host", metavar="URL", help="the server, e.g. https://kubeflow.example.com/pipeline")
    group.add_argument(
        "--port-forward",
        metavar="NAMESPACE/SERVICE",
        help="reach it through Kubernetes' API server, e.g. kubeflow/ml-pipeline (a proxy: no port is opened)",
    )
    group.add_argument(
        "--kubeconfig", type=Path, metavar="FILE", help="why a pod waits is told by it (default: KUBECONFIG)"
    )
    group.add_argument("--context", metavar="NAME", help="of the kubeconfig (default: its current one)")
    group.add_argument("--token-file", type=Path, metavar="FILE", help="bearer token; read again when it has expired")
    group.add_argument(
        "--token-command", metavar="COMMAND", help="prints a bearer token; run again when it has expired"
    )
    group.add_argument("--token", metavar="TEXT", help="bearer token (seen by whoever lists processes: prefer a file)")
    group.add_argument("--namespace", metavar="NAME", help="profile of a multi-user Kubeflow")
    group.add_argument("--ui-host", metavar="URL", help="the UI, for links, where it is not the server")
    group.add_argument("--ca", type=Path, metavar="FILE", help="certificates to trust")
    group.add_argument(
        "--patience", type=_seconds, default=20.0, metavar="SECONDS", help="try so long to reach it (default: 20)"
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return value


def _submit(args: argparse.Namespace) -> int:
    from multimodal_gemma.cluster.kfp import submit

    return submit.run(args, _renew)


def _renew(api: Api, followed: Followed, end: Snapshot, page: Path) -> None:
    from multimodal_gemma.stages import run_report

    run_report.renew(api, followed, end, page)


def _schedule(args: argparse.Namespace) -> int:
    from multimodal_gemma.cluster.kfp import schedule
    from multimodal_gemma.errors import InputError

    if args.action != "list" and not args.name:
        raise InputError(f"schedule: {args.action} which? Give a name: mmgemma schedule {args.action} NAME.")
    if args.action == "create" and not args.cron:
        raise InputError("schedule: when? Give --cron, e.g. --cron '0 3 * * 1' for Mondays at 3:00.")
    return schedule.run(args)


def _preflight(args: argparse.Namespace) -> int:
    import sys

    from multimodal_gemma.cluster.kfp import parameters, pipeline
    from multimodal_gemma.cluster.kube import client
    from multimodal_gemma.cluster.preflight import findings, look, needs
    from multimodal_gemma.cluster.trainjob import job, place
    from multimodal_gemma.config.flat import bare
    from multimodal_gemma.local.runner import compiled_pipeline

    filed = parameters.read_file(args.params) if args.params else {}
    preset = str(args.preset or filed.get("preset") or args.preset_default)
    compiled = pipeline.read(args.pipeline or compiled_pipeline())
    given = parameters.collect(compiled.parameters, preset, args.overrides, args.param or [], filed)
    defaults = {name: spec.get("defaultValue") for name, spec in compiled.parameters.items()}
    values = {bare(name): value for name, value in (defaults | given).items()}
    config = parameters.configured(given, compiled.parameters)
    if args.lock:
        from multimodal_gemma.data import downloads

        told = downloads.write_lock(args.lock, [make(config) for make in downloads.KINDS.values()])
        sys.stdout.write("\n".join(told) + "\n")
        return 0
    if args.locked:
        from multimodal_gemma.data import downloads

        for make in downloads.KINDS.values():
            make(config).fingerprint()
    namespace = args.namespace or client.current_namespace(args.kubeconfig, args.context)

    def connect() -> ApiClient:
        return client.connect(args.kubeconfig, args.context)

    if config.resources.spot:
        there = job.available(client.Namespace(connect, namespace, patience=look.PATIENCE), config.nodes.runtime)
        config, _ = place.divide(config, trainer=there)
    asked = needs.of_run(
        values,
        config,
        namespace,
        service_account=args.service_account,
        trains=parameters.TRAINS in values,
    )
    found = look.look(connect, asked)
    sys.stdout.write((findings.as_json(found) if args.json else findings.table(found)) + "\n")
    return 2 if any(finding.state == "failed" for finding in found) else 0
