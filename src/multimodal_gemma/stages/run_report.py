"""The last word of a pipeline run: its page, written whether it succeeded or not, and what is tidied up.

KFP's final status tells little: it calls a refused gate RUNNING and a stopped run FAILED. So the page is judged by what
was registered in MLflow and by what the server says about the run's tasks; where one of them cannot be asked, by the
other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files, logs
from multimodal_gemma.config.flat import bare
from multimodal_gemma.config.schema import Config
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import runs, server, versions
from multimodal_gemma.reporting import run_page
from multimodal_gemma.reporting.run_page import Link, RunPage, Step
from multimodal_gemma.stages.preflight import called, composed

if TYPE_CHECKING:
    from multimodal_gemma.cluster.kfp.api import Api
    from multimodal_gemma.cluster.kfp.follow import Followed
    from multimodal_gemma.cluster.kfp.story import Snapshot
    from multimodal_gemma.cluster.kube.client import Namespace

_PATIENCE = 60.0  # seconds for which a silent server is asked before the page goes out without it
_METRICS = "evaluation/metrics.json"  # of an MLflow run
_log = logs.get("report")


@dataclasses.dataclass(frozen=True)
class Registered:
    """What MLflow knows about a pipeline run.

    Attributes:
        run: address of the run's page; "" for a database, which has none.
        name: of the registered model.
        version: of this run's model; "" if none was registered.
        alias: of that version.
        rules: of the gate's decision.
        metrics: metrics.json of the evaluation.
        champion: flat metrics of the version that was champion before.
    """

    run: str = ""
    name: str = ""
    version: str = ""
    alias: str = ""
    rules: tuple[Mapping[str, Any], ...] = ()
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    champion: Mapping[str, float] = dataclasses.field(default_factory=dict)


def run(asked: Mapping[str, Any], status: Mapping[str, Any], output: Path) -> None:
    """Write the page of a run, end its MLflow run if it failed, and delete what it left; nothing here fails.

    Args:
        asked: the component's inputs: preset, overrides, registry_tracking_uri, run_id and run_name.
        status: the fields of KFP's `PipelineTaskFinalStatus`.
        output: the page.
    """
    config, run_id = _config(asked), str(asked.get("run_id", ""))
    end, graph = _asked_server(run_id)
    known = _asked_mlflow(config, run_id) if config else Registered()
    page = page_of(called(asked), status, end, known, config, run_id=run_id, graph=graph)
    files.write_text(output, run_page.render(page))
    _log.info(page.verdict)
    if config and page.outcome in ("failed", "stopped", "unknown"):
        runs.end(config.registry, run_id, "FAILED")
    clean_up(run_id)


def renew(api: Api, followed: Followed, end: Snapshot, output: Path) -> None:
    """Write the page of a run anew, as after KFP's own retry, which runs no exit handler twice."""
    given = api.call(api.runs.run_service_get_run, followed.identity).runtime_config
    declared = ((followed.spec.get("root") or {}).get("inputDefinitions") or {}).get("parameters") or {}
    asked = {name: spec.get("defaultValue") for name, spec in declared.items()} | dict(given.parameters or {})
    config = _config({bare(name): value for name, value in asked.items()})
    known = _asked_mlflow(config, followed.identity) if config else Registered()
    drawn = _drawn(followed.spec, end)
    page = page_of(followed.name, {}, end, known, config, run_id=followed.identity, graph=drawn)
    files.write_text(output, run_page.render(page))


def page_of(
    name: str,
    status: Mapping[str, Any],
    end: Snapshot | None,
    known: Registered,
    config: Config | None,
    *,
    run_id: str = "",
    graph: str = "",
) -> RunPage:
    """Return what the page of a run says by KFP's final status, the server (None: not asked) and MLflow.

    The run's id is for the commands, the graph a drawing of the steps.
    """
    outcome, verdict, reason = _judge(status, end, known)
    goes_on = outcome in ("failed", "stopped") and bool(run_id)
    again = {"continue this run": f"mmgemma submit --retry {run_id}"} if goes_on else {}
    retried = "It had failed before, and went on when it was retried. " if end and end.retried else ""
    version = f"models:/{known.name}/{known.version}" if known.version else ""
    ask = {"ask the model": f"mmgemma ask PICTURE 'What is this?' --model {version}"} if version else {}
    return RunPage(
        name=name,
        outcome=outcome,
        verdict=verdict,
        reason=reason,
        advice=f"{retried}{ADVICE.get(outcome, '')}".strip(),
        scores=run_page.scores(known.metrics, known.champion),
        contamination=_seen(known.metrics),
        facts=facts(config) if config else {},
        graph=graph,
        steps=steps(end) if end else [],
        links=_links(known, version, outcome, config),
        commands={**ask, **again},
    )


def steps(end: Snapshot) -> list[Step]:
    """Return the steps of a run; one that came after the end was never run."""
    called = {"waiting": "not run", "pending": "not run"}
    return [
        Step(row.name, called.get(row.state, row.state), None if row.state == "reused" else row.seconds, row.tries or 1)
        for row in end.rows
    ]


ADVICE = {
    "failed": "Where the cause lies outside the run (a file, a password, room), mend it and continue this run: what "
    "has succeeded is not repeated. Where a parameter was wrong, start a new run: it reuses what is still right.",
    "stopped": "It can be continued, or a new run reuses its downloads.",
    "refused": "Nothing was exported. Improve the model, or change what the gate asks for (registry.floors, "
    "registry.rule), and run again.",
}


def facts(config: Config) -> dict[str, str]:
    """Return what was trained on what, for people."""
    hardware = config.resources
    steps, epochs = config.training.max_steps, config.training.epochs
    length, unit = (steps, "step") if steps else (epochs, "epoch")
    count = f", {hardware.accelerator_count} x {hardware.accelerator}" if hardware.accelerator_count else ""
    return {
        "preset": config.preset,
        "conversations": ", ".join(config.data.conversations),
        "images": ", ".join([*config.data.images, *config.data.image_roots]),
        "vision encoder": f"{config.model.vision} ({config.model.vision_policy})",
        "language model": f"{config.model.language} ({config.model.language_policy})",
        "training": f"{length} {unit}{'' if length == 1 else 's'}, {config.training.batch_size} conversations a step",
        "hardware": f"{hardware.hardware}{count}",
    }


def _seen(metrics: Mapping[str, Any]) -> str:
    if not metrics:
        return ""
    from multimodal_gemma.evaluation import questions  # needs NumPy, as MLflow does, which gave the metrics

    return questions.seen(metrics)


def _judge(status: Mapping[str, Any], end: Snapshot | None, known: Registered) -> tuple[str, str, str]:
    """Return outcome, verdict and reason."""
    failed = end.failed if end else None
    if end and end.stopped:
        row = next((row for row in end.rows if row.state == "stopped"), None)
        during = f" during {row.name}" if row else ""
        return "stopped", f"The run was stopped{during}.", f"{row.name}: {row.reason}." if row and row.reason else ""
    if failed is not None:
        tries = f" after {failed.tries} tries" if (failed.tries or 0) > 1 else ""
        what = f"{failed.name} failed{tries}." if failed.started else f"{failed.name} could not be started."
        return "failed", what, failed.reason or "It left no log that could be read."
    if known.version:
        return run_page.judged(known.name, known.version, known.alias, known.rules)
    gate = end.gate if end else ""
    if gate in ("passed", "refused"):
        word = "passed the gate" if gate == "passed" else "was refused by the gate"
        return gate, f"The model {word}.", "MLflow could not be asked for its version."
    if gate == "none":
        return "done", "The run succeeded, and its scores are recorded.", ""
    state = status.get("state")
    if state == "CANCELED":
        return "stopped", "The run was stopped.", ""
    if state == "FAILED":
        return "failed", "The run failed.", str(status.get("error_message") or "Its tasks' logs say why.")
    if state in ("SUCCEEDED", "COMPLETE"):  # a scoring anew, or a model that was registered by an earlier run
        return "done", "The run succeeded.", ""
    return "unknown", "The run ended without a registered model.", "Neither the server nor MLflow says more."


def _links(known: Registered, version: str, outcome: str, config: Config | None) -> dict[str, str | Link]:
    links: dict[str, str | Link] = {"MLflow run": known.run} if known.run else {}
    if version:
        site = known.run.partition("/#/")[0]
        links["model version"] = f"{site}/#/models/{known.name}/versions/{known.version}" if site else version
    if outcome == "passed":
        published = config.export.publish if config else ""
        links["export"] = published or "output “export” of the step export-model"
    return links


def _config(asked: Mapping[str, Any]) -> Config | None:
    from multimodal_gemma.config import hardware

    try:
        return hardware.resolve(composed(asked))
    except InputError:  # preflight has said why
        return None


def _asked_server(run_id: str) -> tuple[Snapshot | None, str]:
    """Ask the KFP server of this cluster about the run, whose last task this is; return it and a drawing of it."""
    from multimodal_gemma.cluster.kfp import connect, follow, why
    from multimodal_gemma.cluster.kube import client

    if not client.in_cluster():
        return None, ""
    try:
        api = connect.inside(_PATIENCE)
        spec = follow.attach(api, run_id).spec
        end = ending(api, spec, run_id, why.Causes(api, run_id, _namespace()))
        return end, _drawn(spec, end)
    except Exception as error:  # noqa: BLE001 - whatever the server does, the page is written
        _log.info(f"the page goes without the server's word on the steps: {error}")
        return None, ""


def _drawn(spec: Mapping[str, Any], end: Snapshot) -> str:
    from multimodal_gemma.local import graph

    return graph.svg(graph.of_spec(dict(spec)), {step.name: step for step in steps(end)})


def ending(api: Any, spec: Mapping[str, Any], run_id: str, causes: Any) -> Snapshot:
    """Return a run that is about to end as it will have ended: nothing but this report is left of it."""
    from multimodal_gemma.cluster.kfp import follow
    from multimodal_gemma.cluster.kfp.story import REPORT, snapshot

    answer = api.call(api.runs.run_service_get_run, run_id)
    now = snapshot(answer, dict(spec), datetime.datetime.now(datetime.UTC))
    if now.ended:
        return follow.explained(now, causes)
    cut = ("running", "pending") if now.stopped else ()
    now = follow.explained(
        dataclasses.replace(now, state="FAILED" if now.stopped or now.failed else "SUCCEEDED"), causes
    )
    rows = [dataclasses.replace(row, state="stopped") if row.state in cut else row for row in now.rows]
    last = [dataclasses.replace(row, state="this page", seconds=None) if row.name == REPORT else row for row in rows]
    return dataclasses.replace(now, rows=tuple(last))


def _asked_mlflow(config: Config, run_id: str) -> Registered:
    """Ask MLflow what became of the run."""
    try:
        with server.connected(config.registry) as client:
            found = runs.find(client, config.registry, run_id)
            if found is None:
                return Registered()
            known = Registered(run=runs.page(config.registry, found), name=config.registry.name)
            metrics: dict[str, Any] = {}
            with contextlib.suppress(Exception):  # a store of artifacts that is away: the page goes without intervals
                path = client.download_artifacts(found.info.run_id, _METRICS)
                metrics = files.read_json(Path(path), "evaluation")
            of_run = client.search_model_versions(f"run_id = '{found.info.run_id}'")
            if not of_run:
                return dataclasses.replace(known, metrics=metrics)
            version = max(of_run, key=lambda one: int(one.version))
            held = versions.aliases(client, version.name)
            before = version.tags.get(versions.PREVIOUS_OF) or held.get(versions.CHAMPION, "")
            beaten = versions.tags(client, version.name, before) if before not in ("", str(version.version)) else {}
            return dataclasses.replace(
                known,
                name=version.name,
                version=str(version.version),
                alias=versions.alias_of(held, str(version.version)),
                rules=tuple(json.loads(version.tags.get(versions.DECISION) or "[]")),
                metrics=metrics,
                champion=json.loads(beaten.get(versions.SCORES) or "{}"),
            )
    except (InputError, ModuleNotFoundError) as error:  # whoever only submits runs has no MLflow installed
        _log.info(f"the page goes without MLflow's word: {error}")
        return Registered()


def clean_up(run_id: str) -> list[str]:
    """Delete the TrainJobs that a run has left: one that is terminated does not take them along.

    Args:
        run_id: the pipeline run.

    Returns:
        Names of what was deleted; nothing where there is no cluster, or the run may not see TrainJobs.
    """
    from multimodal_gemma.cluster.trainjob import job

    namespace = _namespace()
    if namespace is None:
        return []
    try:
        gone = job.delete_all(namespace, run_id)
    except InputError as error:  # a report that fails would hide how the run ended
        if "forbidden" not in str(error).lower():  # where the Trainer is not installed, nobody may see its kind
            _log.info(f"TrainJobs were not looked for. {error}")
        return []
    if gone:
        _log.info(f"deleted what the run had left: {', '.join(gone)}")
    return gone


def _namespace() -> Namespace | None:
    """Return the namespace that this pod lives in; None where there is no cluster to speak to."""
    from multimodal_gemma.cluster.kube import client
    from multimodal_gemma.cluster.trainjob import job

    if not client.in_cluster():
        return None
    try:
        namespace = job.here()
    except InputError as error:  # a report that fails would hide how the run ended
        _log.info(f"Kubernetes was not asked. {error}")
        return None
    namespace.patience = min(namespace.patience, _PATIENCE)
    return namespace
