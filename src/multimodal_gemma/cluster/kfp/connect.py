"""From the connection options to a server: its address, a bearer token, or a way through Kubernetes' API server.

A token's file is read again and its command run again when it has expired; a token from an option or the environment
cannot be renewed. No token is ever printed or logged.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from multimodal_gemma.cluster.kfp.api import Api, Door, Patience
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.cluster.kube.client import Namespace

_IN_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"  # as the KFP SDK has it
_PORT = "8888"  # of the Service ml-pipeline
_VOLUME = "/var/run/secrets/kubeflow/pipelines/token"  # where KFP's documentation projects a pod's token
_VOLUME_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"  # the KFP SDK's name for another place
_COMMAND_SECONDS = 60
_KUBERNETES_PATIENCE = 5.0  # seconds; a run is followed without its pods too


def connected(args: argparse.Namespace) -> Api:
    """Return a connection to the server that the options name.

    Raises:
        InputError: no server is named, its address is misspelt, or there is no way to it.
    """
    if args.port_forward and args.host:
        raise InputError("kfp: give --host or --port-forward, not both.")
    door = _through_kubernetes(args) if args.port_forward else _straight(args)
    return Api(door, Patience(args.patience, min(1.0, args.patience / 4)))


def inside(seconds: float) -> Api:
    """Return a connection for a pod of the server's own cluster.

    Args:
        seconds: for which a silent server is asked again.

    Raises:
        InputError: the server cannot be reached.
    """
    tokens = choose()
    return Api(Door(_address(None), tokens.get, tokens.renewable), Patience(seconds))


def run_link(args: argparse.Namespace, api: Api, run_id: str) -> str:
    """Return where the run is seen in the UI."""
    ui = args.ui_host or os.environ.get("KF_PIPELINES_UI_ENDPOINT") or ("" if args.port_forward else api.host)
    return (
        f"{ui.rstrip('/')}/#/runs/details/{run_id}" if ui else f"run {run_id} in the KFP UI (--ui-host makes it a link)"
    )


def _straight(args: argparse.Namespace) -> Door:
    tokens = choose(args.token or "", args.token_file, args.token_command or "")
    trust = {"ssl_ca_cert": str(_existing(args.ca))} if args.ca else {}
    cluster = _cluster(args, "") if args.context or args.kubeconfig else None
    return Door(_address(args.host), tokens.get, tokens.renewable, trust, cluster)


def _through_kubernetes(args: argparse.Namespace) -> Door:
    """Return the way through the API server's proxy to a Service, with the credentials of the kubeconfig."""
    match = re.fullmatch(r"([a-z0-9-]+)/([a-z0-9.-]+)(?::(\d+))?", args.port_forward)
    if match is None:
        raise InputError(f"kfp: {args.port_forward!r} is no NAMESPACE/SERVICE. Give e.g. kubeflow/ml-pipeline.")
    if args.token or args.token_file or args.token_command:
        raise InputError(
            "kfp: a token does not reach KFP with --port-forward: Kubernetes takes that header for itself. Give --host "
            "and the token, e.g. after kubectl port-forward."
        )
    from multimodal_gemma.cluster.kube import client

    namespace, service, port = match.groups()
    settings = client.connect(args.kubeconfig, args.context).configuration
    path = f"/api/v1/namespaces/{namespace}/services/{service}:{port or _PORT}/proxy"
    tls = {name: getattr(settings, name) for name in ("ssl_ca_cert", "cert_file", "key_file", "verify_ssl")}

    def token() -> str:
        fresh = client.connect(args.kubeconfig, args.context).configuration
        return str(fresh.get_api_key_with_prefix("authorization") or "").removeprefix("Bearer ")

    return Door(f"{settings.host}{path}", token, True, tls, _cluster(args, namespace))


def _cluster(args: argparse.Namespace, namespace: str) -> Namespace:
    from multimodal_gemma.cluster.kube import client

    chosen = args.namespace or namespace or client.current_namespace(args.kubeconfig, args.context)
    return client.Namespace(
        lambda: client.connect(args.kubeconfig, args.context), chosen, patience=_KUBERNETES_PATIENCE
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


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Gives the token of the moment.

    Attributes:
        fixed: a token that never changes; "" without one.
        file: file whose content is the token, read at each renewal.
        command: shell words that print the token, run at each renewal.
    """

    fixed: str = dataclasses.field(default="", repr=False)
    file: Path | None = None
    command: str = ""

    @property
    def renewable(self) -> bool:
        """Whether a refused token can be replaced by another."""
        return bool(self.file or self.command)

    def get(self) -> str:
        """Return a token, or "" where none is used.

        Raises:
            InputError: the file cannot be read, or the command fails.
        """
        if self.file is not None:
            try:
                return self.file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(
                    f"token: {self.file} cannot be read ({type(error).__name__}). Check --token-file."
                ) from None
        return _printed(self.command) if self.command else self.fixed


def choose(token: str = "", file: Path | None = None, command: str = "") -> Tokens:
    """Return the source of tokens: what was given, else the environment's, else the pod's own token volume.

    Args:
        token: a token from an option.
        file: a token file from an option.
        command: a command from an option.
    """
    if sum(map(bool, (token, file, command))) > 1:
        raise InputError("token: give only one of --token, --token-file and --token-command.")
    if token or file or command:
        return Tokens(token, file, command)
    if named := os.environ.get("KFP_TOKEN_FILE"):
        return Tokens(file=Path(named))
    if given := os.environ.get("KFP_TOKEN"):
        return Tokens(given)
    volume = Path(os.environ.get(_VOLUME_VARIABLE) or _VOLUME)
    return Tokens(file=volume if volume.is_file() else None)


def _printed(command: str) -> str:
    try:
        done = subprocess.run(
            shlex.split(command), capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise InputError(
            f"token: --token-command could not be run ({type(error).__name__}). Try it in a shell."
        ) from None
    if done.returncode != 0 or not done.stdout.strip():
        said = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise InputError(f"token: --token-command ended with exit code {done.returncode}: {said}. Try it in a shell.")
    return done.stdout.strip()
