"""What the nodes of a TrainJob run, for real: two of them, each with its own disk, and a store between them."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from multimodal_gemma import manifest
from multimodal_gemma.cluster.trainjob import spec as train_job_spec
from multimodal_gemma.config.schema import NodesConfig
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages import train
from tests.servers.kubernetes_api import KubernetesServer
from tests.servers.train_job_controller import JOBS, Controller, Nodes, condition, runtime
from tests.unit.training import toys
from tests.unit.training.test_store import bucket, names  # noqa: F401

SETTINGS = (
    *("training.batch_tokens=100", "training.warmup_fraction=0", "training.sample_images=0"),
    *("training.epochs=12", "training.patience=100", "training.feature_cache=disk"),
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Cluster:
    """Starts the command of a TrainJob on two nodes, takes one of them away, and starts it anew on two others."""

    def __init__(self, server: KubernetesServer, store: Any, folder: Path) -> None:
        self.controller, self.store, self.folder = Controller(server), store, folder
        self.started: list[Nodes] = []
        self.codes: list[list[int]] = []
        server.on_create(JOBS, lambda job: threading.Thread(target=self._live, args=(job,), daemon=True).start())

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("*/*/log")))

    def _live(self, job: dict) -> None:
        first = self._start(job, "first")
        while first.processes[1].poll() is None and not any("/checkpoints/" in name for name in names(self.store)):
            time.sleep(0.02)
        first.end(1)
        self.codes.append(first.wait())
        self.codes.append(self._start(job, "second").wait())
        self.controller.status(condition("Failed" if any(self.codes[-1]) else "Complete", message=f"{self.codes}"))

    def _start(self, job: dict, name: str) -> Nodes:
        self.started.append(Nodes(job, self.folder / name, free_port()))
        return self.started[-1]


def test_two_nodes_of_which_one_is_lost_make_the_model_of_one(bucket, tmp_path, monkeypatch):  # noqa: F811
    """Over gloo, with text-only rows that leave a rank's projector without a gradient; each restart on empty disks."""
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    models = toys.write_models(tmp_path / "models")
    dataset = toys.write_dataset(tmp_path / "data", models, text_only=12)
    one = train.run(toys.configuration(*SETTINGS), dataset, models, tmp_path / "one")
    several = toys.configuration(*SETTINGS, "training.nodes=2", "nodes.work_uri=s3://spot/work")
    with KubernetesServer() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        cluster = Cluster(server, bucket, tmp_path / "nodes")
        try:
            two = train.run(several, dataset, models, tmp_path / "two", run_id="run-1")
        except InputError as error:
            pytest.fail(f"{error}\n{cluster.logs()}")
        finally:
            for nodes in cluster.started:
                nodes.kill()
        assert server.names(JOBS) == []
    assert cluster.codes == [[75, 75], [0, 0]]
    assert "continuing from the checkpoint of step" in (tmp_path / "nodes/second/node-0/log").read_text()
    assert not (tmp_path / "nodes/second/node-1/mmgemma/model/manifest.json").exists()  # its disk was its own
    assert two.numbers["steps"] == one.numbers["steps"]
    assert two.numbers["loss"] == pytest.approx(one.numbers["loss"], rel=1e-4)
    alone, together = (load_file(made.folder / "adapter/adapter_model.safetensors") for made in (one, two))
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, rtol=0, atol=2e-5)
    assert manifest.verify(two.folder, "model").config == manifest.read(one.folder).config
    assert (two.folder / "curves.html").is_file()  # the page of the task
    again = train.run(several, dataset, models, tmp_path / "three", run_id="run-1")  # a retry needs no cluster for it
    assert again.digest == two.digest


@pytest.mark.usefixtures("bucket")
def test_a_mistake_ends_a_node_with_two_so_that_the_cluster_does_not_repeat_it(tmp_path):
    """`podFailurePolicy` of the runtime goes by that code; torchrun itself would end with 1."""
    job = train_job_spec.build(
        "x", "s3://spot/nothing", 1, NodesConfig(), runtime(), train_job_spec.Surroundings(), run_id=""
    )
    nodes = Nodes(job, tmp_path, free_port())
    try:
        assert nodes.wait() == [2]
    finally:
        nodes.kill()
    assert "error: train: s3://spot/nothing/request.json cannot be read" in (tmp_path / "node-0/log").read_text()
