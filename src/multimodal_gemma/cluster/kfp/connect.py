"""From the connection options to a server: an address, a token, a port-forward."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from multimodal_gemma.cluster.kfp import forward as forwards
from multimodal_gemma.cluster.kfp import tokens as bearer
from multimodal_gemma.cluster.kfp.api import Api, Patience
from multimodal_gemma.errors import InputError

_IN_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"  # as the KFP SDK has it


@contextlib.contextmanager
def connected(args: argparse.Namespace) -> Iterator[Api]:
    """Yield a connection to the server that the options name; end a port-forward afterwards.

    Raises:
        InputError: no server is named, its address is misspelt, or it cannot be reached.
    """
    tokens = bearer.choose(args.token or "", args.token_file, args.token_command or "")
    patience = Patience(args.patience, min(1.0, args.patience / 4))
    ca_file = str(_existing(args.ca)) if args.ca else None
    with contextlib.ExitStack() as stack:
        if args.port_forward:
            if args.host:
                raise InputError("kfp: give --host or --port-forward, not both.")
            forward = stack.enter_context(forwards.forwarded(args.port_forward))
            yield Api(forward.address(), tokens, patience=patience, ca_file=ca_file, moved=forward.address)
            return
        yield Api(_address(args.host), tokens, patience=patience, ca_file=ca_file)


def run_link(args: argparse.Namespace, api: Api, run_id: str) -> str:
    """Return where the run is seen in the UI."""
    ui = args.ui_host or os.environ.get("KF_PIPELINES_UI_ENDPOINT") or ("" if args.port_forward else api.host)
    return (
        f"{ui.rstrip('/')}/#/runs/details/{run_id}" if ui else f"run {run_id} in the KFP UI (--ui-host makes it a link)"
    )


def _address(given: str | None) -> str:
    named = given or os.environ.get("KFP_HOST") or os.environ.get("KF_PIPELINES_ENDPOINT")
    if not named and os.environ.get("KUBERNETES_SERVICE_HOST"):
        named = _IN_CLUSTER
    if not named:
        raise InputError(
            "kfp: which server? Give --host https://…/pipeline, set KFP_HOST, or use "
            "--port-forward kubeflow/ml-pipeline."
        )
    split = urlsplit(named if "://" in named else f"https://{named}")
    if split.scheme not in ("http", "https") or not re.fullmatch(r"[\w.:-]+", split.hostname or ""):
        raise InputError(f"kfp: {named!r} is no address of a server. Give e.g. https://kubeflow.example.com/pipeline.")
    return split._replace(query="", fragment="").geturl()


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"kfp: {path} does not exist. Give --ca a file of certificates.")
    return path
