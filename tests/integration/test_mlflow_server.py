"""The registry against a real MLflow server: versions are text, artifacts go through it, and it can be down."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from multimodal_gemma import manifest
from multimodal_gemma.config.schema import Config, RegistryConfig
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import server, versions
from multimodal_gemma.registry.resolve import resolve_model
from multimodal_gemma.stages import register
from tests.unit.registry import artifacts

NAME = "served"


class Server:
    """`mlflow server` on the loopback interface; it can be stopped and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", f"{self.folder}/artifacts",
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        raise AssertionError((self.folder / "server.log").read_text())

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # its workers too, as when a node goes away
            self.process.wait(timeout=60)
            self.process = None


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.model_folder(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def config(mlflow_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    for variable in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MMGEMMA_CACHE", str(tmp_path / "cache"))
    made = Config()
    made.registry = RegistryConfig(tracking_uri=mlflow_server.uri, name=NAME, floors=None)
    return made


def test_from_registration_to_answers_to_rollback_on_a_server(
    config: Config, mlflow_server: Server, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(accuracy: float, seed: int = 0) -> dict[str, str]:
        folder = tmp_path / f"evaluation-{accuracy}"
        evaluation = artifacts.evaluation_folder(folder, model, artifacts.answers(accuracy, seed=seed))
        return register.run(config, model, evaluation, tmp_path / f"out-{accuracy}", run_id=f"run-{accuracy}").facts

    first = submit(0.6)
    assert (first["version"], first["alias"]) == ("1", "champion")
    assert submit(0.6) == first
    assert submit(0.2)["alias"] == "challenger"
    assert submit(0.9)["alias"] == "champion"
    with server.connected(config.registry) as client:
        assert versions.aliases(client, NAME) == {"champion": "3", "previous-champion": "1", "challenger": "2"}
        run = client.get_run(first["run_id"])
        assert run.info.status == "FINISHED"
        assert run.data.metrics["pope_accuracy"] == pytest.approx(0.6)
        assert run.info.artifact_uri.startswith("mlflow-artifacts:")
        logged = client.get_logged_model(client.get_model_version(NAME, "1").tags[versions.LOGGED_MODEL])
        assert {metric.key for metric in logged.metrics} >= {"pope_accuracy", "vqa_accuracy"}

    fetched = resolve_model(f"models:/{NAME}@champion", config)
    assert manifest.verify(fetched, "model").digest == manifest.read(model).digest

    assert versions.rollback(config.registry).after == "1"
    with server.connected(config.registry) as client:
        assert versions.aliases(client, NAME)["champion"] == "1"

    check_answers(mlflow_server, model, tmp_path)

    # The server goes away between the version and its alias: a sentence, and no harm when it is back.
    real = versions.crown

    def dies(*arguments: Any, **named: Any) -> None:
        mlflow_server.stop()
        real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(versions, "crown", dies)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        with pytest.raises(InputError, match="went away in the middle of the work"):
            submit(0.95)
    mlflow_server.start()
    assert (submit(0.95)["version"], submit(0.95)["alias"]) == ("4", "champion")
    with server.connected(config.registry) as client:
        expected = {"champion": "4", "previous-champion": "1", "challenger": "2"}
        assert versions.aliases(client, NAME) == expected
        assert len(client.search_model_versions(f"name = '{NAME}'")) == 4


def check_answers(mlflow_server: Server, model: Path, scratch: Path) -> None:
    """The registered model answers as the stock model does, asked through plain MLflow."""
    import mlflow
    from transformers import AutoModelForImageTextToText, AutoProcessor

    picture = scratch / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(picture)
    question = "what color is the car ?"

    processor = AutoProcessor.from_pretrained(model)
    stock = AutoModelForImageTextToText.from_pretrained(model)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[Image.open(picture)], text=[prompt], add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        tokens = stock.generate(**inputs, max_new_tokens=12, do_sample=False)
    expected = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert expected

    mlflow.set_tracking_uri(mlflow_server.uri)
    try:
        served = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    finally:
        mlflow.set_tracking_uri("")
    image = base64.b64encode(picture.read_bytes()).decode()
    table = pandas.DataFrame({"image": [image, f"data:image/png;base64,{image}"], "question": [question] * 2})
    assert served.predict(table, params={"max_new_tokens": 12}) == [expected, expected]
    assert served.metadata.signature.inputs.input_names() == ["image", "question"]
    for broken, asked, words in [
        ("no base64!", "?", "row 0: the image is no base64"),
        (base64.b64encode(b"text").decode(), "?", "row 0: the image cannot be read"),
        (image, "<image> ?", "row 0: the question holds the image placeholder"),
    ]:
        with pytest.raises(ValueError, match=words):
            served.predict(pandas.DataFrame({"image": [broken], "question": [asked]}))
    with pytest.raises(ValueError, match="leaves no room"):
        served.predict(table, params={"max_new_tokens": 0})


LIVE = """
import sys
from pathlib import Path

from multimodal_gemma import config
from multimodal_gemma.stages import train
from multimodal_gemma.stages.component import guarded
from multimodal_gemma.training import trackers

trackers._PUBLISH_EVERY = 0.2  # its minute
with guarded():
    train.run(config.from_json(sys.argv[1]), *map(Path, sys.argv[2:]), run_id="pipeline-live")
"""


def test_a_training_that_is_killed_after_its_first_minute_has_curves_and_a_page(
    config: Config, mlflow_server: Server, tmp_path: Path
) -> None:
    """And one that continues it, killed as well, shows all of both."""
    from multimodal_gemma import config as configuration
    from multimodal_gemma.registry import runs
    from tests.unit.training import toys

    models = toys.write_models(tmp_path / "models")
    dataset = toys.write_dataset(tmp_path / "data", models)
    settings = ("training.epochs=4000", "training.patience=9999999", "training.trackers=[mlflow]")
    asked = toys.configuration(*settings, f"registry.tracking_uri={mlflow_server.uri}")
    output = tmp_path / "model"
    command = [sys.executable, "-c", LIVE, configuration.to_json(asked), *map(str, (dataset, models, output))]

    def killed_after_a_page_beyond(step: int) -> tuple[int, str]:
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(command, stderr=log)
        deadline = time.monotonic() + 300
        try:
            while time.monotonic() < deadline and process.poll() is None:
                with server.connected(asked.registry) as client:
                    found = runs.find(client, asked.registry, "pipeline-live")
                    there = client.list_artifacts(found.info.run_id, "training") if found else []
                    if found and "training/curves.html" in {item.path for item in there}:
                        page = Path(client.download_artifacts(found.info.run_id, "training/curves.html")).read_text()
                        shown = int(re.search(r"Step ([\d,]+) of 12,000", page)[1].replace(",", ""))
                        if shown > step and "training/samples.jsonl" in {item.path for item in there}:
                            return shown, page
                time.sleep(0.1)
        finally:
            process.kill()  # SIGKILL
            process.wait(timeout=60)
        raise AssertionError((tmp_path / "log").read_text())

    shown, page = killed_after_a_page_beyond(2)
    assert not (output / manifest.NAME).exists()
    assert page.count("<svg") == 3
    assert "Step " in (output / "curves.html").read_text()  # also for who has the folder alone
    with server.connected(asked.registry) as client:
        found = runs.find(client, asked.registry, "pipeline-live")
        losses = [metric.step for metric in client.get_metric_history(found.info.run_id, "loss")]
    assert found.info.status == "RUNNING"
    assert set(range(1, shown + 1)) <= set(losses)  # the scalars go before the page

    _, later = killed_after_a_page_beyond(shown)
    seconds = [float(re.search(r"([\d,]+) s<", text)[1].replace(",", "")) for text in (page, later)]
    assert seconds[1] >= seconds[0]  # of all steps, those of the first process too


STEP = """
import sys
from multimodal_gemma.stages import component

component.work(sys.argv[1], sys.argv[2], model="/nowhere", benchmarks="/nowhere", output=sys.argv[3])
"""


@pytest.mark.parametrize("away", [False, True])
def test_the_log_of_a_step_whose_plan_names_no_run_begins_with_the_runs_page(
    config: Config, mlflow_server: Server, tmp_path: Path, away: bool
) -> None:
    """The plan is the cache's key, so the step knows its run by the pod's label alone."""
    from multimodal_gemma.registry import runs

    place = runs.open_run(config.registry, "pipeline-first-line", "a name")
    uri = "http://127.0.0.1:9" if away else mlflow_server.uri
    plan = {"config": {"preset": "sample", "registry": {"tracking_uri": uri}}, "code": "x"}
    done = subprocess.run(
        [sys.executable, "-c", STEP, "evaluate", json.dumps(plan), str(tmp_path / "output")],
        env={**os.environ, "MMGEMMA_RUN_ID": "pipeline-first-line"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stderr.splitlines()
    assert said[: 1 if away else 2] == [*([] if away else [f"MLflow: {place}"]), "--- evaluate: try 1 of 3"]
    assert "/runs/" in place
    assert done.returncode == 2  # there is no such model: the work began
    assert said[-1].startswith("error: ")
    assert "MLflow" not in said[-1]
