"""The way to MLflow, and what it says when it cannot be had, as one sentence within seconds.

MLflow's own defaults retry a dead server for minutes and end in a traceback. Here the server is asked for its health
first, retries are few, and each refusal (401, 403, 500) becomes a sentence that says what to do about it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from multimodal_gemma import environment, locks
from multimodal_gemma.errors import InputError, Outage

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from multimodal_gemma.config.schema import RegistryConfig

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_VARIABLE, _REGISTRY_VARIABLE = "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"
ABSENT, TAKEN = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"  # error codes of MLflow
_HEALTH_TIMEOUT = 5.0  # seconds
_OLDEST = 3  # major version of a server: 2 knows no logged models
# What an artifact store is spoken to with; MLflow passes their exceptions on as they are.
_STORES = {"boto3", "botocore", "s3transfer", "google", "azure", "paramiko", "pysftp"}
# MLflow's defaults block about four minutes; a user's own setting of any of these stays.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true"}  # nobody asked for reports to a third party, and a pod cannot send them
_COLLISION = re.compile("UniqueViolation|UNIQUE constraint failed|Duplicate entry|deadlock detected|database is locked")
_STATUS = re.compile(r"error code (\d{3})|too many (\d{3}) error responses")


def tracking_uri(registry: RegistryConfig) -> str:
    """Return MLflow's location: the configuration's, else that of MLFLOW_TRACKING_URI, else ""."""
    return registry.tracking_uri or os.environ.get(_VARIABLE, "")


def shown(text: str) -> str:
    """Return a tracking URI, or a text of another program, without the passwords and tokens that it may carry."""
    secrets = [os.environ.get(name, "") for name in environment.CREDENTIALS if name != "MLFLOW_TRACKING_USERNAME"]
    for uri in (os.environ.get(_VARIABLE, ""), text):
        password = re.search(r"://[^:/@\s]+:([^@/\s]*)@", uri)
        secrets += [password[1], unquote(password[1])] if password else []
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def check(registry: RegistryConfig) -> None:
    """Find out cheaply whether runs can be recorded later: MLflow is named, and a server answers and is new enough.

    Raises:
        InputError: no MLflow is named, or its server cannot be reached or is too old.
    """
    uri = tracking_uri(registry)
    _check_scheme(uri)
    if uri.startswith(("http://", "https://")):
        _check_health(uri)


@contextlib.contextmanager
def connected(registry: RegistryConfig) -> Iterator[MlflowClient]:
    """Yield a client of the configured MLflow, which is also the process's MLflow inside the block.

    Args:
        registry: the configuration's section; see `tracking_uri`.

    Raises:
        InputError: no MLflow is named, or it cannot be reached, refuses or fails.
    """
    uri = tracking_uri(registry)
    _check_scheme(uri)
    for name, value in {**_PATIENCE, **_QUIET}.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # carriage returns fill a pod's log
    if uri.startswith(("http://", "https://")):
        _check_health(uri)
    elif uri.startswith("sqlite:"):
        _prepare_sqlite(uri)

    import mlflow
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # a fresh database tells each migration
    logging.getLogger("alembic").setLevel(logging.WARNING)
    variables = {name: os.environ.get(name) for name in (_VARIABLE, _REGISTRY_VARIABLE)}
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    before_registry = mlflow.get_registry_uri()
    followed = before_registry == mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        path = sqlite_file(uri)
        # The first to come makes the tables; two at once would both try.
        with locks.in_turn(path.parent) if path else contextlib.nullcontext():
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            if path:
                client.search_registered_models(max_results=1)
        yield client
    except Exception as error:
        if sentence := _sentence(uri, error):
            raise InputError(sentence) from error
        raise
    finally:
        mlflow.set_tracking_uri(before)
        mlflow.set_registry_uri("" if followed else before_registry)
        # MLflow writes its locations into variables, where they would outlive the block and hide what a platform set.
        for variable, earlier in variables.items():
            if earlier is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = earlier


def _sentence(uri: str, error: Exception) -> str:
    """Return what is said of an error on the way to MLflow; "" if it has nothing to do with that."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    store = f"registry: the artifact store of MLflow at {shown(uri)}"
    if isinstance(error, MlflowException):
        return refusal(uri, error)
    if isinstance(error, requests.exceptions.RequestException):  # the store, behind the server or beside it
        return f"{store} failed: {first_line(error)}. Check it, then run again."
    if isinstance(error, SQLAlchemyError):
        return f"registry: the database {shown(uri)} failed: {first_line(error)}. Check it, then run again."
    if isinstance(error, ModuleNotFoundError) and error.name in _STORES:
        return (
            f"{store} needs the package {error.name}, which is not installed. Install it, or let the server pass "
            "artifacts on (mlflow server --serve-artifacts)."
        )
    if isinstance(error, OSError):
        return (
            f"{store} does not take {error.filename or 'a file'} ({error.strerror or first_line(error)}). Check its "
            "place, then run again; nothing is repeated."
        )
    if type(error).__module__.partition(".")[0] in _STORES:
        return (
            f"{store} refuses: {first_line(error)}. Check its bucket and the credentials, then run again; nothing is "
            "repeated."
        )
    return ""


@contextlib.contextmanager
def tolerating(code: str) -> Iterator[None]:
    """End the block quietly where MLflow refuses with this error code, e.g. `ABSENT`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != code:
            raise


@contextlib.contextmanager
def tolerating_collisions() -> Iterator[None]:
    """End the block quietly where another process wrote the same row at the same instant.

    MLflow looks whether a row is there before it makes it, without a lock: of two that look at once, one is refused by
    the database. What it wanted is there, so the work can simply be done again.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if not _COLLISION.search(str(error)):
            raise


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute file behind a sqlite URI; None for any other URI and for databases in memory."""
    if not uri.startswith("sqlite:"):
        return None
    name = uri.partition("///")[2].partition("?")[0]
    return Path(name).expanduser().absolute() if name and name != ":memory:" else None


def quoted(text: str) -> str:
    """Return `text` as a string of MLflow's search grammar, which knows no escapes.

    Raises:
        InputError: it holds both kinds of quotes, so it cannot be searched for.
    """
    if "'" not in text:
        return f"'{text}'"
    if '"' not in text:
        return f'"{text}"'
    raise InputError(
        f"registry: {text!r} holds both kinds of quotes, and MLflow cannot search for it. Leave one kind out."
    )


def refusal(uri: str, error: MlflowException) -> str:
    """Return the sentence for a request that MLflow did not grant."""
    at = f"registry: MLflow at {shown(uri)}"
    match = _STATUS.search(str(error))
    status = int(match[1] or match[2]) if match else error.get_http_status_code()
    reason = first_line(error)
    if status == 401:
        return (
            f"{at} does not know who asks (401). Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or MLFLOW_TRACKING_TOKEN."
        )
    if status == 403:
        return (
            f"{at} forbids this (403). Ask for permission on the experiment and the model; a server reached by a new "
            "name must list that name in --allowed-hosts."
        )
    if match and status == 404:
        return f"{at} is no MLflow server, or an old one (404). Correct registry.tracking_uri (MLFLOW_TRACKING_URI)."
    if match and status >= 500:
        return (
            f"{at} fails with error {status}. Look into the server's log, and run again when it is well; "
            "nothing is repeated."
        )
    if "Connection" in reason or "timeout" in reason or "timed out" in reason:
        return f"{at} went away in the middle of the work. Start it, then run again; nothing is repeated."
    return f"{at} refused: {reason}."


def _check_scheme(uri: str) -> None:
    where = "Set registry.tracking_uri or MLFLOW_TRACKING_URI, e.g. to sqlite:////home/me/mlflow.db or http://localhost:5000."
    if not uri:
        raise InputError(f"registry: no MLflow is named. {where}")
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("http", "https", *_DATABASES):
        return
    if scheme in ("", "file"):
        raise InputError(
            f"registry: {uri} is a folder, and MLflow keeps no runs in folders any more. Name a database in it, "
            f"e.g. sqlite:///{Path(urlsplit(uri).path).absolute() / 'mlflow.db'}, or a server."
        )
    raise InputError(f"registry: {shown(uri)} is no MLflow that can be used here. {where}")


def _check_health(uri: str) -> None:
    """Ask the server which version it is; any answer at all is a sign of life, as a proxy may guard this address."""
    import requests

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true")
    try:
        answer = requests.get(
            f"{uri.rstrip('/')}/version", timeout=_HEALTH_TIMEOUT, verify=not insecure, allow_redirects=False
        )
    except requests.exceptions.SSLError:
        raise InputError(
            f"registry: the certificate of MLflow at {shown(uri)} is not trusted. "
            "Name your authority's file in REQUESTS_CA_BUNDLE, or use http:// if the server speaks no TLS."
        ) from None
    except requests.exceptions.Timeout:
        raise Outage(
            f"registry: MLflow at {shown(uri)} does not answer within {_HEALTH_TIMEOUT:.0f} s. Check the address and "
            "the network."
        ) from None
    except requests.exceptions.RequestException:
        raise Outage(
            f"registry: MLflow at {shown(uri)} cannot be reached. Start it, or correct registry.tracking_uri "
            "(MLFLOW_TRACKING_URI)."
        ) from None
    stated = re.fullmatch(r"(\d+)\.\d+[\w.]*", answer.text.strip()) if answer.ok else None
    if stated and int(stated[1]) < _OLDEST:
        raise InputError(
            f"registry: MLflow at {shown(uri)} is version {stated[0]}, which knows no logged models. Use a server of "
            f"version {_OLDEST} or later."
        )


def _prepare_sqlite(uri: str) -> None:
    """Make the database's folder, and refuse a file that is no database."""
    path = sqlite_file(uri)
    if path is None:
        raise InputError(
            f"registry: {uri} names no database file. Write sqlite:///relative/mlflow.db or "
            "sqlite:////absolute/mlflow.db."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_size:
            with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
                database.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise InputError(f"registry: {path} is no SQLite database ({error}). Name another file.") from None
    except OSError as error:
        raise InputError(
            f"registry: {path} cannot be made ({error.strerror}). Name a place that you may write to."
        ) from None
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"registry: {path} may not be written. Name a place that you may write to.")


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, without secrets and full stop; the type's name if it has none."""
    lines = shown(str(error)).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
