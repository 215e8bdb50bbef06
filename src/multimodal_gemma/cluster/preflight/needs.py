"""What one run asks of a cluster, as its parameters say it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from multimodal_gemma.cluster.trainjob.place import divide
from multimodal_gemma.errors import InputError
from multimodal_gemma.planning import sources as planned
from multimodal_gemma.registry import server

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config

_GATED = ("hf://google/gemma", "hf://meta-llama/")  # models whose terms must be accepted first
SERVICE_ACCOUNT = "multimodal-gemma"  # of manifests/base/runs
_OWN_BUCKET = "s3://mlpipeline/"  # of the store that Kubeflow Pipelines brings, where artifacts are too


@dataclasses.dataclass(frozen=True)
class Needs:
    """What one run asks of a cluster.

    Attributes:
        namespace: where its pods live.
        service_account: whom they run as; "": multimodal-gemma where it is, else pipeline-runner.
        inside: it is asked from a pod of the run itself, as that account.
        accelerator: resource name, e.g. nvidia.com/gpu.
        count: accelerators a training pod; 0: a CPU.
        cpu: cores of a training pod, as Kubernetes writes them.
        memory: of a training pod, as Kubernetes writes it.
        node_selector: labels that its node must have.
        tolerations: taints that it accepts.
        secrets: keys that each Secret must have, by its name.
        required: names of the Secrets that this run cannot do without.
        registry: MLflow's address, e.g. http://mlflow.mlflow:5000.
        experiment: of MLflow, that the run is recorded in.
        written: `s3://` places that it writes to.
        disks: what each task writes on its node, as Kubernetes writes amounts; empty where that is not known.
        store: what the run puts into the platform's own store; "" where that is not known.
        train_job: train-model hands its work to Kubeflow Trainer.
        runtime: the TrainingRuntime it names then.
        scratch: what a node of it writes on its scratch volume; "" where that is not known.
        scratch_given: the volume of its own that a node is given; "": the runtime's.
        queue: Kueue's LocalQueue that it waits in; "": none.
    """

    namespace: str
    service_account: str = ""
    inside: bool = False
    accelerator: str = "nvidia.com/gpu"
    count: int = 0
    cpu: str = "2"
    memory: str = "8Gi"
    node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    secrets: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    required: Sequence[str] = ()
    registry: str = ""
    experiment: str = "multimodal-gemma"
    written: Sequence[str] = ()
    disks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    store: str = ""
    train_job: bool = False
    runtime: str = ""
    scratch: str = ""
    scratch_given: str = ""
    queue: str = ""


def of_run(
    parameters: Mapping[str, Any],
    config: Config,
    namespace: str,
    *,
    service_account: str = "",
    inside: bool = False,
    trains: bool = True,
) -> Needs:
    """Return what a run with these parameters asks for.

    Args:
        parameters: of the pipeline, without their numbers; secret_* are read.
        config: the composed configuration, with its hardware resolved.
        namespace: where its pods live.
        service_account: whom they run as; "": see `Needs`.
        inside: it is asked from a pod of the run itself.
        trains: it trains; one that only evaluates needs no room for a dataset, and no TrainJob.

    Raises:
        InputError: a parameter is none.
    """
    hub, store, registry = (str(parameters.get(f"secret_{name}") or "") for name in ("hub", "store", "registry"))
    sources = [*config.data.conversations, *config.data.images, *config.data.image_roots, config.model.vision]
    sources += [config.benchmarks.pope, config.benchmarks.vqa, config.benchmarks.images, config.model.language]
    sources.append(config.benchmarks.instances)
    places = (config.training.checkpoint_uri, config.nodes.work_uri, config.data.work_uri, config.export.publish)
    written = [place for place in places if place.startswith("s3://")]
    required = [store] if written or any("s3://" in place for place in sources) else []
    if config.model.language.startswith(_GATED):
        required.append(hub)
    disks, artifacts, scratch = _room(config) if trains else ({}, "", "")
    needs = Needs(
        namespace=namespace,
        service_account=service_account,
        inside=inside,
        accelerator=config.resources.accelerator,
        count=config.resources.accelerator_count or 0,
        cpu=config.resources.cpu or Needs.cpu,
        memory=config.resources.memory or Needs.memory,
        node_selector=dict(config.resources.node_selector),
        tolerations=list(config.resources.tolerations),
        secrets={hub: ["token"], store: ["accesskey", "secretkey"], registry: ["username", "password"]},
        required=[name for name in required if name],
        registry=server.tracking_uri(config.registry) if inside else config.registry.tracking_uri,
        experiment=config.registry.experiment,
        written=written,
        disks=disks,
        store=artifacts,
    )
    if trains and config.delegates:
        needs = dataclasses.replace(_on_nodes(needs, divide(config)[0]), scratch=scratch)
    _require_quantity("resources.cpu", needs.cpu)
    _require_quantity("resources.memory", needs.memory)
    return needs


def _room(config: Config) -> tuple[dict[str, str], str, str]:
    """Return what each task writes on its node, what a run puts into the platform's store, and a node's scratch."""
    try:
        found = planned.room_of(config, train_job=config.delegates)
    except InputError:  # the sample, or models and data that only their folders can tell of
        return {}, "", ""
    shared = found.work if config.nodes.work_uri.startswith(_OWN_BUCKET) else 0.0
    shared += found.slices if config.data.work_uri.startswith(_OWN_BUCKET) else 0.0
    disks = {task: planned.gib(size) for task, size in found.tasks.items()}
    return disks, planned.gib(found.store + shared), planned.gib(found.node) if found.node else ""


def _on_nodes(needs: Needs, config: Config) -> Needs:
    """Return what one node of a TrainJob asks for; the pod that submits it is small."""
    nodes = config.nodes
    return dataclasses.replace(
        needs,
        accelerator=nodes.accelerator,
        count=nodes.accelerator_count or 0,
        cpu=nodes.cpu or Needs.cpu,
        memory=nodes.memory or Needs.memory,
        node_selector=dict(nodes.node_selector),
        tolerations=list(nodes.tolerations),
        train_job=True,
        runtime=nodes.runtime,
        scratch_given=nodes.scratch,
        queue=nodes.queue,
    )


def _require_quantity(name: str, text: str) -> None:
    from kubernetes.utils.quantity import parse_quantity

    try:
        parse_quantity(text)
    except ValueError:
        raise InputError(
            f"preflight: {name}={text!r} is no amount as Kubernetes writes it. Give e.g. 8 or 500m cores, or 32Gi of "
            "memory."
        ) from None
