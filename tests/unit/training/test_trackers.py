"""A training is shown while it runs, in a thread of its own, and who watches never holds it up."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
import types
from pathlib import Path

import numpy as np

from multimodal_gemma.config.flat import flatten
from multimodal_gemma.registry.tracking import MLflowBatches
from multimodal_gemma.training import trackers
from tests.unit.training import toys


def line(step, **more):
    rates = {"lora_lr": 0.1, "projector_lr": 0.2}
    return {"step": step, "loss": 2.0, "grad_norm": 1.0, "samples": 8, "seconds": 0.5, **rates, **more}


def until(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, "it has not come about"
        time.sleep(0.01)


class Watched:
    """A reporter whose minute is short, and what reached MLflow through it: the texts of each upload."""

    def __init__(self, folder, monkeypatch):
        from accelerate import PartialState

        PartialState(cpu=True)
        monkeypatch.setattr(trackers, "_PUBLISH_EVERY", 0.0)
        monkeypatch.setattr(trackers, "_LOOK_EVERY", 0.01)
        self.uploads: list[dict[str, str]] = []
        self.page, self.samples = folder / "curves.html", folder / "samples.jsonl"
        self.tracker = MLflowBatches.__new__(MLflowBatches)
        self.away = False
        monkeypatch.setattr(MLflowBatches, "keep", lambda _, paths, folder: self.keep(paths, folder))
        monkeypatch.setattr(MLflowBatches, "finish", lambda _: None)
        accelerator = types.SimpleNamespace(trackers=[self.tracker], log=lambda *_, **__: None)
        image = np.zeros((8, 8, 3), np.uint8)
        self.reporter = trackers.Reporter(accelerator, self.page, self.samples, lambda _: image)

    def keep(self, paths, folder):
        assert folder == "training"
        assert threading.current_thread().name in ("reporter", "MainThread")
        if not self.away:
            self.uploads.append({path.name: path.read_text() for path in paths if path.is_file()})
        return not self.away


def test_page_and_answers_are_published_while_training_runs_and_only_when_new(tmp_path, monkeypatch):
    watched = Watched(tmp_path, monkeypatch)
    watched.reporter.begin([], 9)
    time.sleep(0.1)
    assert watched.uploads == []  # there is nothing to see yet
    watched.reporter.send(line(1))
    until(lambda: len(watched.uploads) == 1)
    assert "Step 1 of 9" in watched.uploads[0]["curves.html"]
    assert watched.page.read_text() == watched.uploads[0]["curves.html"]
    time.sleep(0.1)
    assert len(watched.uploads) == 1
    answer = {"step": 1, "image_index": 0, "question": "What?", "answer": "a red square", "expected": "red"}
    watched.samples.write_text(json.dumps(answer) + "\n")
    until(lambda: len(watched.uploads) == 2)
    assert "a red square" in watched.uploads[1]["curves.html"]
    assert "a red square" in watched.uploads[1]["samples.jsonl"]
    watched.reporter.close()
    assert len(watched.uploads) == 2


def test_a_training_that_continues_shows_its_whole_history(tmp_path, monkeypatch):
    drawn: list[list[int]] = []
    page = trackers.curves.page

    def seen(rows, **more):
        drawn.append([row["step"] for row in rows])
        return page(rows, **more)

    monkeypatch.setattr(trackers.curves, "page", seen)
    watched = Watched(tmp_path, monkeypatch)
    watched.reporter.begin([line(1), line(2, validation_loss=0.25), line(3)], 9)
    until(lambda: len(watched.uploads) == 1)  # what was learnt before
    watched.reporter.send(line(4, validation_loss=0.5))
    until(lambda: len(watched.uploads) == 2)
    watched.reporter.close()
    assert drawn == [[1, 2, 3], [1, 2, 3, 4]]
    assert "Step 4 of 9" in watched.uploads[1]["curves.html"]
    assert "The best so far is step 2" in watched.uploads[1]["curves.html"]


def test_what_did_not_reach_mlflow_is_sent_when_it_is_back(tmp_path, monkeypatch):
    watched = Watched(tmp_path, monkeypatch)
    watched.away = True
    watched.reporter.begin([], 9)
    watched.reporter.send(line(1))
    until(lambda: watched.page.is_file())
    assert watched.uploads == []
    watched.away = False
    until(lambda: watched.uploads)
    watched.reporter.close()
    assert len(watched.uploads) == 1


def test_a_page_that_cannot_be_written_is_named_once_and_ends_nothing(tmp_path, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr("logging.Logger.warning", lambda _, text, *__: warnings.append(text))
    watched = Watched(tmp_path, monkeypatch)
    calls = []

    def broken(*_, **__):
        calls.append(threading.current_thread().name)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trackers.curves, "page", broken)
    watched.reporter.begin([], 9)
    watched.reporter.send(line(1))
    until(lambda: len(calls) > 2)
    watched.reporter.close()
    assert set(calls[:-1]) == {"reporter"}  # the training's own thread draws nothing before the end
    assert len(warnings) == 1
    assert "No space left on device" in warnings[0]


def test_the_last_page_says_how_training_ended(tmp_path, monkeypatch):
    from multimodal_gemma.training.loop import Outcome

    watched = Watched(tmp_path, monkeypatch)
    watched.reporter.begin([], 9)
    watched.reporter.send(line(1, validation_loss=0.5))
    rows = [line(1, validation_loss=0.5)]
    watched.reporter.close(Outcome(steps=1, best_step=1, validation_loss=0.5, stopped_early=True, rows=rows))
    assert "it stopped early" in watched.uploads[-1]["curves.html"]
    assert "it stopped early" in Path(watched.page).read_text()


def test_training_and_registration_write_equal_texts():
    """MLflow keeps the first text of a parameter: a second one would be a lie about the run."""
    config = toys.configuration("data.limit=7", "benchmarks.vqa_questions=9")
    registered = flatten(dataclasses.asdict(config))
    logged = trackers.parameters(config)
    assert {key: registered[key] for key in logged} == logged
    assert not any(key.startswith(("data.", "benchmarks.", "registry.")) for key in logged)
