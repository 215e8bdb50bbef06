"""The arguments of `mmgemma preflight`; nothing heavy is imported to print their help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Look at a cluster as a run with these parameters would meet it: rights, nodes, quota, Secrets, servers, images, and
Kubeflow Trainer and Kueue where they are used. Nothing is changed."""
_MORE = """\
exit codes:
  0  nothing failed    2  something failed; each with what to do about it

examples:
  mmgemma preflight --namespace kubeflow
  mmgemma preflight --namespace kubeflow --params pipelines/parameters/gke-a100.yaml
"""


def add(commands: Any, add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command.

    Args:
        commands: the subparsers of `mmgemma`.
        add_command: adds one with the options that all have in common.
    """
    parser = add_command(commands, "preflight", _preflight, "check a cluster before a run")
    parser.description, parser.epilog = _DESCRIPTION, _MORE
    parser.usage = "mmgemma preflight [options] [key=value …]"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(preset_default="sample")
    parser.add_argument("--namespace", metavar="NAME", help="where runs live (default: the context's)")
    parser.add_argument("--service-account", default="multimodal-gemma", metavar="NAME", help="that the pods run as")
    parser.add_argument("--pipeline", type=Path, metavar="FILE", help="compiled pipeline (default: training.yaml)")
    parser.add_argument("--param", action="append", metavar="NAME=VALUE", help="a parameter of the pipeline")
    parser.add_argument("--params", type=Path, metavar="FILE", help="YAML file of parameters; --param wins over it")
    parser.add_argument("--kubeconfig", type=Path, metavar="FILE", help="default: KUBECONFIG or ~/.kube/config")
    parser.add_argument("--context", metavar="NAME", help="of the kubeconfig (default: its current one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")


def _preflight(args: argparse.Namespace) -> int:
    import sys

    from multimodal_gemma.cluster import client, needs, preflight, submit_parameters, submit_pipeline
    from multimodal_gemma.local.runner import compiled_pipeline

    filed = submit_parameters.read_file(args.params) if args.params else {}
    preset = str(args.preset or filed.get("preset") or args.preset_default)
    compiled = submit_pipeline.read(args.pipeline or compiled_pipeline())
    given = submit_parameters.collect(compiled.parameters, preset, args.overrides, args.param or [], filed)
    parameters = {name: spec.get("defaultValue") for name, spec in compiled.parameters.items()} | given
    config = submit_parameters.configured(given, preset, args.overrides)
    namespace = args.namespace or client.current_namespace(args.kubeconfig, args.context)
    asked = needs.of_run(parameters, config, namespace, service_account=args.service_account, images=compiled.images)
    findings = preflight.look(lambda: client.connect(args.kubeconfig, args.context), asked)
    sys.stdout.write((preflight.as_json(findings) if args.json else preflight.table(findings)) + "\n")
    return 2 if any(finding.state == "failed" for finding in findings) else 0
