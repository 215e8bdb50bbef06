"""Checkpoints are whole or absent, recognised when damaged, and never continued with another configuration."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

import pytest
import torch

from multimodal_gemma.errors import InputError
from multimodal_gemma.training import checkpoint
from multimodal_gemma.training.checkpoint import Validated

IDENTITY = {"training.lora_lr": 0.1, "dataset": "abc"}


def save(folder, step=3, **state):
    weights = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    optimiser = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    }
    made = checkpoint.State(step=step, **state)
    checkpoint.save(folder, made, weights, optimiser, [checkpoint.random_state()], checkpoint.Settings(IDENTITY))
    return weights, optimiser


def test_everything_comes_back(tmp_path):
    best = [Validated(0.1 + 0.2, 3, 2 / 3), Validated(1.5, 1, 0.5)]
    weights, optimiser = save(tmp_path, best=best, best_loss=0.1 + 0.2, stale=2)
    state, loaded, loaded_optimiser, random_states = checkpoint.load(tmp_path, 3)
    assert state == checkpoint.State(step=3, best=best, best_loss=0.1 + 0.2, stale=2)
    assert loaded.keys() == weights.keys()
    assert all(
        torch.equal(loaded[name], weight) and loaded[name].dtype == weight.dtype for name, weight in weights.items()
    )
    assert torch.equal(loaded_optimiser["state"][0]["exp_avg"], optimiser["state"][0]["exp_avg"])
    assert loaded_optimiser["param_groups"] == optimiser["param_groups"]
    first = torch.rand(3)
    checkpoint.set_random_state(random_states[0])
    second = torch.rand(3)
    checkpoint.set_random_state(random_states[0])
    assert torch.equal(torch.rand(3), second)
    assert first.shape == second.shape


def test_a_killed_save_leaves_the_one_before(tmp_path, monkeypatch):
    save(tmp_path, 3)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 4)
    assert checkpoint.steps(tmp_path) == [3]
    checkpoint.load(tmp_path, 3)


def test_a_full_disk_is_said_and_the_one_before_stays(tmp_path, monkeypatch):
    save(tmp_path, 3)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="the disk is full"):
        save(tmp_path, 4)
    assert checkpoint.steps(tmp_path) == [3]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_a_disk_that_really_fills_up_leaves_the_one_before(tmp_path):
    """The kernel refuses the write in the middle of a file, whichever library is writing."""
    save(tmp_path, 3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 1500):  # within the weights, within the optimiser's file
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(InputError, match="cannot be written"):
                save(tmp_path, 4)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    checkpoint.load(tmp_path, 3)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [flip, halve, Path.unlink], ids=["edited", "half written", "gone"])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimiser.pt", "random.pt", "manifest.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, monkeypatch, name, harm):
    monkeypatch.setattr(logging.getLogger("multimodal_gemma"), "propagate", True)
    save(tmp_path, 2)
    save(tmp_path, 3, best=[(0.5, 3), (0.7, 2)])
    harm(tmp_path / "step-00000003" / name)
    if name == "manifest.json" and harm is flip:
        (tmp_path / "step-00000003" / name).write_text("{}")
    state, *_ = checkpoint.load_newest(tmp_path)
    assert state.step == 2
    assert "step 3 is damaged and left out" in caplog.text
    checkpoint.refuse_other(tmp_path, IDENTITY)


def test_a_damaged_best_checkpoint_is_not_taken_for_the_model(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    save(tmp_path, 3, best=[Validated(loss, step) for loss, step in ((0.1, 1), (0.2, 2), (0.3, 3))])
    flip(tmp_path / "step-00000001" / "weights.safetensors")
    state, *_ = checkpoint.load_newest(tmp_path)
    assert state.best == [Validated(0.2, 2), Validated(0.3, 3)]


def test_without_any_whole_checkpoint_nothing_is_guessed(tmp_path):
    assert checkpoint.load_newest(tmp_path) is None
    save(tmp_path, 3)
    flip(tmp_path / "step-00000003" / "optimiser.pt")
    with pytest.raises(InputError, match=r"none of the 1 checkpoints in .* is whole. Delete that folder"):
        checkpoint.load_newest(tmp_path)


def test_another_configuration_is_refused_by_its_keys(tmp_path):
    checkpoint.refuse_other(tmp_path / "none", IDENTITY)
    save(tmp_path)
    checkpoint.refuse_other(tmp_path, dict(IDENTITY))
    with pytest.raises(
        InputError, match=r"training.lora_lr \(0.1 there, 0.2 now\), training.new \(unset there, 1 now\)\. Choose"
    ):
        checkpoint.refuse_other(tmp_path, {**IDENTITY, "training.lora_lr": 0.2, "training.new": 1})


def test_pruning_keeps_what_is_named(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / ".step-00000009.tmp").mkdir()
    checkpoint.prune(tmp_path, {1, 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def carried(tmp_path, caplog, monkeypatch, then, now, **state):
    """The state that a checkpoint of step 3 is continued from, and what is said of it."""
    monkeypatch.setattr(logging.getLogger("multimodal_gemma"), "propagate", True)
    made = checkpoint.State(step=3, finished=True, **state)
    checkpoint.save(tmp_path, made, {"a": torch.ones(1)}, {}, [], then)
    with caplog.at_level(logging.INFO, "multimodal_gemma"):
        checkpoint.carry_on(tmp_path, made, now)
    return made, caplog.text


def test_what_saves_time_or_memory_may_change_and_is_said(tmp_path, caplog, monkeypatch):
    then, now = (
        checkpoint.Settings(IDENTITY, {"training.batch_tokens": room, "training.compile": "off"}, steps=3)
        for room in (512, 256)
    )
    state, said = carried(tmp_path, caplog, monkeypatch, then, now)
    assert state.finished
    assert "training.batch_tokens was 512 until this checkpoint and is 256 from now on" in said
    assert "compile" not in said


def test_a_longer_training_goes_on_and_says_what_becomes_of_the_rate(tmp_path, caplog, monkeypatch):
    """Of step 4: 0 where training ended with step 3; of 6 steps without warm-up 3/6."""
    then, now = (checkpoint.Settings(IDENTITY, steps=steps, patience=2) for steps in (3, 6))
    state, said = carried(tmp_path, caplog, monkeypatch, then, now)
    assert not state.finished
    assert "ends at step 6 instead of 3: the learning rates of step 4 are 50% of their peaks instead of 0%" in said


def test_more_patience_takes_back_an_early_stop_and_more_steps_alone_do_not(tmp_path, caplog, monkeypatch):
    then = checkpoint.Settings(IDENTITY, steps=9, patience=2)
    for patience, steps, finished in ((3, 9, False), (2, 12, True)):
        now = checkpoint.Settings(IDENTITY, steps=steps, patience=patience)
        state, _ = carried(tmp_path, caplog, monkeypatch, then, now, stale=2)
        assert state.finished is finished


def test_an_end_before_what_is_done_is_refused(tmp_path, caplog, monkeypatch):
    then, now = (checkpoint.Settings(IDENTITY, steps=steps) for steps in (3, 2))
    with pytest.raises(InputError, match=r"stands at step 3, and training.epochs and training.max_steps make 2 steps"):
        carried(tmp_path, caplog, monkeypatch, then, now)
