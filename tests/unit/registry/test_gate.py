"""A confusion of champions: every case that must, or must not, get the title."""

from __future__ import annotations

import math
from typing import Any

import pytest

from multimodal_gemma.config.schema import RegistryConfig
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry.gate import Best, Champion, Decision, Difference, check, decide

GOOD = {"pope_accuracy": 0.8, "vqa_accuracy": 0.7, "vqa_over_baseline": 0.3}
COMPARED = ["pope_accuracy", "vqa_accuracy"]


def champion(**differences: tuple[float, float, float]) -> Champion:
    values = {"pope_accuracy": (0.0, 0.0, 0.0), "vqa_accuracy": (0.0, 0.0, 0.0), **differences}
    return Champion("3", {name: Difference(*figures, 100) for name, figures in values.items()})


def decision(metrics: dict[str, Any] | None = None, **others: Any) -> Decision:
    facts = {name: others.pop(name, value) for name, value in (("contamination", "clean"), ("champion", champion()))}
    asked = RegistryConfig(**({"floors": None, "compared": COMPARED, "margins": {}} | others))
    return decide(asked, GOOD if metrics is None else metrics, **facts)


@pytest.mark.parametrize(
    ("case", "others", "passed", "words"),
    [
        ("better", {"champion": champion(pope_accuracy=(0.05, 0.02, 0.08))}, True, "all"),
        ("equal", {}, True, "all"),
        ("noisily better", {"champion": champion(vqa_accuracy=(0.03, -0.04, 0.10))}, True, "all"),
        ("noisily worse", {"champion": champion(vqa_accuracy=(-0.03, -0.10, 0.04))}, True, "all"),
        ("worse", {"champion": champion(pope_accuracy=(-0.05, -0.08, -0.02))}, False, "worse beyond the paired"),
        (
            "better in one, worse in the other",
            {"champion": champion(pope_accuracy=(0.2, 0.1, 0.3), vqa_accuracy=(-0.02, -0.03, -0.01))},
            False,
            "champion in vqa_accuracy",
        ),
        ("no champion", {"champion": None}, True, "all"),
        ("champion without artifacts", {"champion": Champion("3", problem="they are gone")}, False, "they are gone"),
        ("champion never paired", {"champion": Champion("3")}, False, "no paired comparison"),
        ("difference is no number", {"champion": champion(pope_accuracy=(math.nan,) * 3)}, False, "no finite number"),
        ("contaminated", {"contamination": "contaminated"}, False, "training images are in a benchmark"),
        ("allowed", {"contamination": "allowed"}, False, "not a champion"),
        ("unknown contamination", {"contamination": "unknown"}, False, "unknown"),
        ("a status of the future", {"contamination": "fine"}, False, "no known status"),
        ("above its floor", {"floors": {"pope_accuracy": 0.8}}, True, "all"),
        ("below its floor", {"floors": {"pope_accuracy": 0.81}}, False, "0.8000 is below 0.81"),
        ("a floor that is no number", {"floors": {"pope_accuracy": math.nan}}, False, "floor of pope_accuracy"),
        ("a floor for what was not measured", {"floors": {"gqa": 0.1}}, False, "lacks gqa"),
    ],
)  # fmt: skip
def test_title_goes_to_the_fit_alone(case: str, others: dict[str, Any], passed: bool, words: str) -> None:
    made = decision(**others)
    assert made.passed is passed, case
    assert words in made.reason


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.8e308, None, "0.9", True])
def test_what_is_no_finite_number_never_passes(value: Any) -> None:
    made = decision({**GOOD, "vqa_accuracy": value}, floors={"vqa_accuracy": 0.1})
    failed = {rule.name for rule in made.rules if not rule.passed}
    assert {"finite", "floor of vqa_accuracy"} <= failed


def test_an_infinite_metric_that_nobody_asked_for_fails_too() -> None:
    assert not decision({**GOOD, "perplexity": math.inf}).passed


def test_required_metrics_may_not_be_left_out() -> None:
    made = decision({"pope_accuracy": 0.9})
    assert not made.passed
    assert "lacks vqa_accuracy" in made.reason


def test_no_metrics_at_all_is_no_pass() -> None:
    assert not decision({}, compared=[]).passed


def test_every_rule_has_a_reason_and_a_row() -> None:
    made = decision(floors={"pope_accuracy": 0.5}, champion=None)
    assert all(rule.reason for rule in made.rules)
    page = made.markdown()
    assert page.startswith("# Gate: passed")
    assert page.count("\n| ") == len(made.rules) + 2
    assert "there is no champion to be held against" in page


@pytest.mark.parametrize(
    ("best", "margin", "passed", "words"),
    [
        (0.82, 0.05, True, "not more than 0.05 below the best champion so far"),
        (0.86, 0.05, False, "more than 0.05 below the best champion so far: 0.8000 to 0.8600 of version 1"),
        (0.82, math.nan, False, "more than nan below"),
        (None, 0.05, True, "no champion was scored by it"),
    ],
)
def test_many_small_losses_do_not_add_up(best: float | None, margin: float, passed: bool, words: str) -> None:
    former = Champion("3", champion().differences, {} if best is None else {"pope_accuracy": Best(best, "1")})
    made = decision(champion=former, margins={"pope_accuracy": margin})
    assert made.passed is passed
    assert words in next(rule.reason for rule in made.rules if rule.name == "best champion in pope_accuracy")


def test_required_metrics_are_configuration() -> None:
    made = decision(required=["validation_loss"])
    assert not made.passed
    assert "lacks validation_loss" in made.reason
    assert decision({**GOOD, "validation_loss": 2.0}, required=["validation_loss"]).passed


@pytest.mark.parametrize("key", ["floors", "margins"])
@pytest.mark.parametrize("metric", ["chair_i", "chair_s", "pope_ece", "pope_random_invalid_rate", "validation_loss"])
def test_a_minimum_of_what_is_better_when_lower_is_refused(key: str, metric: str) -> None:
    """It would refuse the model that invents nothing, and let one through that invents everything."""
    with pytest.raises(InputError, match=rf"config: registry\.{key} names '{metric}', of which less is better") as said:
        check(RegistryConfig(**{key: {metric: 0.1}}))
    assert "Leave it out, and ask for" in str(said.value)


def test_what_is_no_mean_over_questions_is_not_compared() -> None:
    check(RegistryConfig(compared=["pope_accuracy", "pope_adversarial_accuracy", "vqa_accuracy"]))
    check(RegistryConfig(floors={"chair_recall": 0.5, "pope_accuracy": 0.8}))
    for metric in ("pope_f1", "pope_random_strict_accuracy", "vqa_over_baseline"):
        with pytest.raises(InputError, match=f"registry.compared names '{metric}'"):
            check(RegistryConfig(compared=[metric]))
