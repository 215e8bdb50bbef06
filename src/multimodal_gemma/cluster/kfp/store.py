"""Pipelines, versions, experiments and runs on a KFP server, each made once however often it is asked for."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from multimodal_gemma.cluster.kfp.api import Api, Doubtful
from multimodal_gemma.cluster.kfp.parameters import nearest
from multimodal_gemma.cluster.kfp.pipeline import Compiled
from multimodal_gemma.cluster.patience import Refused
from multimodal_gemma.errors import InputError

_CONFLICT = 409
_PAGE = 100
_TRIES = 5  # to create something that a broken connection leaves in doubt


def predicate(key: str, value: str) -> str:
    """Return KFP's filter for records whose `key` is `value`."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})


def pages(api: Api, function: Callable[..., Any], field: str, **options: Any) -> Iterator[Any]:
    """Yield every record of a list, page by page."""
    token = ""
    while True:
        answer = api.call(function, page_size=_PAGE, page_token=token, **options)
        yield from getattr(answer, field) or []
        token = answer.next_page_token or ""
        if not token:
            return


def ensure_pipeline(api: Api, compiled: Compiled, namespace: str) -> str:
    """Return the id of the pipeline of that name; create it where there is none."""
    from kfp_server_api import V2beta1Pipeline

    def find() -> str | None:
        found = pages(
            api,
            api.pipelines.pipeline_service_list_pipelines,
            "pipelines",
            filter=predicate("display_name", compiled.name),
            **_within(namespace),
        )
        return next((item.pipeline_id for item in found), None)

    def create() -> str:
        wanted = V2beta1Pipeline(
            display_name=compiled.name, name=compiled.name, description=compiled.description, **_within(namespace)
        )
        made = api.call(api.pipelines.pipeline_service_create_pipeline, wanted, once=True)
        return str(made.pipeline_id)

    return _made(api, find, create)[0]


def ensure_version(api: Api, pipeline_id: str, compiled: Compiled) -> tuple[str, bool]:
    """Return the id of the version with this digest, and whether it had to be uploaded."""

    def find() -> str | None:
        found = pages(
            api,
            api.pipelines.pipeline_service_list_pipeline_versions,
            "pipeline_versions",
            pipeline_id=pipeline_id,
            filter=predicate("name", compiled.version),
        )
        return next((item.pipeline_version_id for item in found), None)

    def create() -> str:
        with tempfile.TemporaryDirectory(prefix="mmgemma-") as folder:
            file = Path(folder) / "pipeline.yaml"
            file.write_text(compiled.content, encoding="utf-8")
            made = api.call(
                api.uploads.upload_pipeline_version,
                str(file),
                once=True,
                name=compiled.version,
                display_name=compiled.title,
                pipelineid=pipeline_id,
                description=f"sha256:{compiled.digest}",
            )
            return str(made.pipeline_version_id)

    return _made(api, find, create)


def require_platform(api: Api, pipeline_id: str, version_id: str) -> None:
    """Read a version back, and see that the server kept all of it.

    Raises:
        InputError: the server keeps no platform specification: a run would have no Secrets, and run on any node.
    """
    kept = api.call(api.pipelines.pipeline_service_get_pipeline_version, pipeline_id, version_id).pipeline_spec
    if not (kept or {}).get("platform_spec"):
        raise InputError(
            f"submit: {api.host} drops the platform's part of a pipeline (Secrets, selectors, volumes), as servers "
            "before 2.17 may. Use Kubeflow Pipelines 2.17 or newer."
        )


def find_version(api: Api, name: str, version: str, namespace: str) -> tuple[str, str, dict[str, Any]]:
    """Return the ids and the specification of a version that must exist.

    Args:
        api: the server.
        name: of the pipeline.
        version: "latest", the name of the version, or the beginning of its digest.
        namespace: on a multi-user server.

    Raises:
        InputError: there is no such pipeline or version.
    """
    pipelines = {
        item.display_name: item.pipeline_id
        for item in pages(api, api.pipelines.pipeline_service_list_pipelines, "pipelines", **_within(namespace))
    }
    if name not in pipelines:
        raise InputError(f"submit: {api.host} has no pipeline {name!r}. {nearest(name, pipelines)}")
    identity = pipelines[name]
    listed = api.pipelines.pipeline_service_list_pipeline_versions
    newest = {"pipeline_id": identity, "sort_by": "created_at desc"}
    versions = list(pages(api, listed, "pipeline_versions", **newest))
    if version == "latest":
        found = versions[:1]
    else:
        digest = f"sha256-{version.removeprefix('sha256-')}"
        found = [item for item in versions if item.display_name == version or (item.name or "").startswith(digest)]
    if len(found) != 1:
        count = "no version" if not found else f"{len(found)} versions that are called"
        known = [item.display_name for item in versions]
        raise InputError(f"submit: pipeline {name} has {count} {version!r}. {nearest(version, known)}")
    return identity, found[0].pipeline_version_id, found[0].pipeline_spec


def experiments(api: Api, namespace: str) -> dict[str, str]:
    """Return the ids of all experiments by name."""
    found = pages(api, api.experiments.experiment_service_list_experiments, "experiments", **_within(namespace))
    return {item.display_name: item.experiment_id for item in found}


def ensure_experiment(api: Api, name: str, namespace: str, *, create: bool) -> str:
    """Return the id of an experiment.

    Args:
        api: the server.
        name: of the experiment.
        namespace: on a multi-user server.
        create: make it where there is none.

    Raises:
        InputError: there is none and it may not be made.
    """
    from kfp_server_api import V2beta1Experiment

    def find() -> str | None:
        return experiments(api, namespace).get(name)

    def make() -> str:
        wanted = V2beta1Experiment(display_name=name, **_within(namespace))
        made = api.call(api.experiments.experiment_service_create_experiment, wanted, once=True)
        return str(made.experiment_id)

    if create:
        return _made(api, find, make)[0]
    known = experiments(api, namespace)
    if name not in known:
        raise InputError(
            f"submit: there is no experiment {name!r}. {nearest(name, known)} --create-experiment makes a new one."
        )
    return known[name]


def create_run(api: Api, run: Any) -> str:
    """Create a run exactly once, though the connection may break before the answer; return its id.

    Args:
        api: the server.
        run: a `V2beta1Run`; a mark of this submission is added to its description.
    """
    mark = f"submission {uuid.uuid4()}"
    run.description = f"{run.description}; {mark}"

    def find() -> str | None:
        recent = api.call(
            api.runs.run_service_list_runs,
            experiment_id=run.experiment_id,
            sort_by="created_at desc",
            page_size=_PAGE,
        )
        return next((item.run_id for item in recent.runs or [] if mark in (item.description or "")), None)

    return once(api, lambda: str(api.call(api.runs.run_service_create_run, run, once=True).run_id), find)


def once(api: Api, create: Callable[[], str], find: Callable[[], str | None]) -> str:
    """Create exactly once something that may be there twice.

    Args:
        api: the server.
        create: sends the request, never again once it may have arrived; returns the id.
        find: returns the id of what an earlier request made, though its answer was lost.
    """
    return _made(api, find, create, look=False)[0]


def _made(
    api: Api, find: Callable[[], str | None], create: Callable[[], str], *, look: bool = True
) -> tuple[str, bool]:
    """Find (if it is looked for at all) or create; in doubt, and when somebody else was quicker, look again.

    Returns:
        The id, and whether it was created just now.
    """
    last: Exception | None = None
    for attempt in range(_TRIES):
        time.sleep(attempt * api.patience.pause)
        if (look or last) and (found := find()):
            return found, isinstance(last, Doubtful)
        try:
            return create(), True
        except Doubtful as doubt:
            last = doubt
        except Refused as refusal:
            if refusal.status != _CONFLICT:
                raise
            last = refusal
    raise InputError(f"kfp: {api.host} did not keep what was created ({last}). Try again later.")


def _within(namespace: str) -> dict[str, str]:
    return {"namespace": namespace} if namespace else {}


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Turn what the server refuses for good into one sentence."""
    try:
        yield
    except Refused as refusal:
        raise InputError(f"kfp: the server refuses this ({refusal.status}): {refusal.message.rstrip('.')}.") from None
