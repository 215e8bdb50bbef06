"""curves.jsonl holds each step once, whatever was interrupted; the page shows it."""

from __future__ import annotations

import json

import pytest

from multimodal_gemma.training import curves


def row(step, **more):
    rates = {"lora_lr": 0.1, "projector_lr": 0.2}
    return {"step": step, "loss": 2.0 / step, "grad_norm": 1.0, "samples": 8, "seconds": 0.5, **rates, **more}


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / "curves.jsonl"
    first = curves.Curves(path, resume_at=0)
    for step in (1, 2, 3):
        first.add(row(step))
    first.close()
    second = curves.Curves(path, resume_at=2)
    second.add(row(3, loss=9.0))
    second.close()
    assert [(line["step"], line["loss"]) for line in map(json.loads, path.read_text().splitlines())] == [
        (1, 2.0),
        (2, 1.0),
        (3, 9.0),
    ]
    assert curves.Curves(path, resume_at=0).rows == []


def test_the_moving_average_starts_unbiased():
    assert curves.smoothed([4.0]) == pytest.approx([4.0])
    assert curves.smoothed([3.0] * 50) == pytest.approx([3.0] * 50)
    weight = 0.2  # 20 of 100
    values = [1.0, 2.0, *[0.0] * 98]
    expected = (weight * 2 + weight * (1 - weight) * 1) / (1 - (1 - weight) ** 2)
    assert curves.smoothed(values)[1] == pytest.approx(expected)


def test_the_page_names_the_step_whose_weights_are_kept():
    page = curves.page([row(1), row(2, validation_loss=0.75), row(3)], best_step=2, stopped_early=True)
    assert "step 2" in page
    assert "0.750" in page
    assert "stopped early" in page
    assert "of the lowest validation loss" in page
    assert page.count("<svg") == 3
    assert "<script" not in page


def test_the_page_shows_the_answers_that_chose_the_model():
    """Step 2 and 3 tie: the lower loss decides, although step 1 has the lowest."""
    rows = [
        row(step, validation_loss=loss, validation_yes_no_accuracy=accuracy)
        for step, loss, accuracy in ((1, 0.5, 0.75), (2, 0.7, 0.875), (3, 0.6, 0.875))
    ]
    assert curves.best_so_far(rows) == 3
    page = curves.page(rows, best_step=3, stopped_early=False)
    assert "step 3, which told yes from no best" in page
    assert page.count("<svg") == 4
