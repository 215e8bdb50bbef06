"""Whether a model may become champion: one pure decision, with a written reason for every rule.

Nothing here talks to MLflow or reads a file, so each case (worse, noisy, contaminated, infinite, no champion) is a line
in a table of tests.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import RegistryConfig

_LOWER_IS_BETTER = ("chair_i", "chair_s", "_ece", "_invalid_rate", "_loss", "_perplexity")  # how their names end


@dataclasses.dataclass(frozen=True)
class Rule:
    """One thing that was asked of the candidate, and the answer."""

    name: str
    passed: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class Difference:
    """Candidate minus champion in one metric, question by question.

    Attributes:
        mean: mean difference, in the metric's unit.
        low: lower end of its paired confidence interval, clustered by image.
        high: upper end.
        questions: how many questions both have answered.
    """

    mean: float
    low: float
    high: float
    questions: int


@dataclasses.dataclass(frozen=True)
class Best:
    """The highest score that a champion had on the candidate's benchmarks."""

    value: float
    version: str


@dataclasses.dataclass(frozen=True)
class Champion:
    """What the candidate is held against.

    Attributes:
        version: the champion's version.
        differences: by metric.
        best: by metric, over this champion and those before it; a metric that none was scored by is absent.
        problem: why no comparison could be made; "" if it could.
        page: the comparison for people, HTML; "" if there is none.
    """

    version: str
    differences: Mapping[str, Difference] = dataclasses.field(default_factory=dict)
    best: Mapping[str, Best] = dataclasses.field(default_factory=dict)
    problem: str = ""
    page: str = ""


@dataclasses.dataclass(frozen=True)
class Decision:
    """The gate's answer."""

    passed: bool
    rules: list[Rule]

    @property
    def word(self) -> str:
        """Return "passed" or "failed"."""
        return "passed" if self.passed else "failed"

    @property
    def reason(self) -> str:
        """Return one line: the reasons of the rules that failed, or that all were met."""
        failed = [f"{rule.name}: {rule.reason}" for rule in self.rules if not rule.passed]
        return "; ".join(failed) if failed else f"all {len(self.rules)} rules are met"

    def markdown(self) -> str:
        """Return the decision as a Markdown page with one row a rule."""
        rows = [
            f"| {rule.name} | {'passed' if rule.passed else '**failed**'} | {_cell(rule.reason)} |"
            for rule in self.rules
        ]
        verdict = f"# Gate: {self.word}\n\nThis version {'may be' if self.passed else 'is no'} champion."
        return "\n".join([verdict, "", "| rule | result | reason |", "| --- | --- | --- |", *rows, ""])


def check(registry: RegistryConfig) -> None:
    """Refuse what the gate cannot be asked, before any work is done for it.

    Raises:
        InputError: a floor or margin of a metric that is better when it is lower, or a compared metric that is no mean
            of scores of single questions, and so cannot be paired.
    """
    for key, asked in (("floors", registry.floors or {}), ("margins", registry.margins)):
        for metric in asked:
            if metric.endswith(_LOWER_IS_BETTER):
                instead = "chair_recall" if metric.startswith("chair") else "pope_accuracy or vqa_accuracy"
                raise InputError(
                    f"config: registry.{key} names {metric!r}, of which less is better: it would stop good models and "
                    f"let bad ones through. Leave it out, and ask for {instead} instead."
                )
    for metric in registry.compared:
        if not benchmark(metric):
            raise InputError(
                f"config: registry.compared names {metric!r}, which cannot be compared question by question. "
                "Choose from pope_accuracy, pope_SETTING_accuracy, vqa_accuracy."
            )


def benchmark(metric: str) -> str:
    """Return the benchmark, e.g. "pope/random", whose questions a metric is the mean of; "" if it is no such mean."""
    if metric in ("vqa_accuracy", "pope_accuracy"):
        return metric.removesuffix("_accuracy")
    setting = metric.removeprefix("pope_").removesuffix("_accuracy")
    return f"pope/{setting}" if metric == f"pope_{setting}_accuracy" and "_" not in setting else ""


def decide(
    registry: RegistryConfig, metrics: Mapping[str, Any], *, contamination: str, champion: Champion | None
) -> Decision:
    """Decide whether a candidate may become champion.

    A comparison is passed unless the whole paired interval lies below zero: what is merely noise never costs a
    promotion, and a loss that is measurable always does. A row of promotions, each a little worse within the noise, is
    stopped by the margins.

    Args:
        registry: what is asked: floors, compared, margins, required and rule.
        metrics: the candidate's metrics by flat name; anything but a finite number fails.
        contamination: "clean" is the only status that passes: "contaminated" scores count for nothing, "allowed" was
            waived for a look and not for a promotion, and "unknown" has not been shown to be clean.
        champion: None if there is none yet, which passes and says so.

    Returns:
        The decision; its rules are in a fixed order.
    """
    floors, margins, compared = registry.floors or {}, registry.margins, registry.compared
    rules = [_finite(metrics), _present(metrics, [*floors, *compared, *margins, *registry.required])]
    rules += [_floor(name, metrics.get(name), floor) for name, floor in sorted(floors.items())]
    rules += _against(champion, compared)
    if champion is not None and not champion.problem:
        rules += [_better(champion)] if registry.rule == "better" else []
        rules += [_near_best(name, metrics.get(name), margins[name], champion) for name in sorted(margins)]
    rules.append(_contamination(contamination))
    return Decision(all(rule.passed for rule in rules), rules)


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are finite numbers."""
    return {name: float(value) for name, value in metrics.items() if _is_finite(value)}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _finite(metrics: Mapping[str, Any]) -> Rule:
    wrong = [f"{name} is {value}" for name, value in sorted(metrics.items()) if not _is_finite(value)]
    if not metrics:
        return Rule("finite", False, "the evaluation has no metrics")
    return Rule("finite", not wrong, ", ".join(wrong) if wrong else f"all {len(metrics)} metrics are finite numbers")


def _present(metrics: Mapping[str, Any], wanted: Sequence[str]) -> Rule:
    names = sorted(set(wanted))
    missing = [name for name in names if name not in metrics]
    if missing:
        return Rule("required", False, f"the evaluation lacks {', '.join(missing)}")
    return Rule("required", True, f"{', '.join(names)} are there" if names else "no metric is required")


def _floor(name: str, value: Any, floor: float) -> Rule:
    rule = f"floor of {name}"
    if not _is_finite(value):
        return Rule(rule, False, f"there is no finite value to hold against {floor:g}")
    if not value >= floor:  # a floor that is no number is met by nothing
        return Rule(rule, False, f"{value:.4f} is below {floor:g}")
    return Rule(rule, True, f"{value:.4f} is at least {floor:g}")


def _against(champion: Champion | None, compared: Sequence[str]) -> list[Rule]:
    if champion is None:
        return [Rule("champion", True, "there is no champion to be held against")]
    if champion.problem:
        return [Rule("champion", False, champion.problem)]
    return [_not_worse(name, champion) for name in sorted(set(compared))]


def _not_worse(name: str, champion: Champion) -> Rule:
    rule = f"champion in {name}"
    difference = champion.differences.get(name)
    if difference is None:
        return Rule(rule, False, f"there is no paired comparison with version {champion.version}")
    figures = (difference.mean, difference.low, difference.high)
    if not all(_is_finite(figure) for figure in figures):
        return Rule(rule, False, f"the paired difference to version {champion.version} is no finite number")
    interval = (
        f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}] to version {champion.version} "
        f"on {difference.questions:,} questions"
    )
    if difference.high < 0:
        return Rule(rule, False, f"worse beyond the paired interval: {interval}")
    return Rule(rule, True, f"not worse beyond the paired interval: {interval}")


def _better(champion: Champion) -> Rule:
    ahead = sorted(name for name, found in champion.differences.items() if found.low > 0)
    than = f"better beyond the paired interval than version {champion.version}"
    if ahead:
        return Rule("better", True, f"{than}: {ahead[0]}")
    return Rule("better", False, f"in no compared metric {than}, as registry.rule=better asks")


def _near_best(name: str, value: Any, margin: float, champion: Champion) -> Rule:
    rule, best = f"best champion in {name}", champion.best.get(name)
    if best is None:
        return Rule(rule, True, "no champion was scored by it on these benchmarks")
    if not _is_finite(value):
        return Rule(rule, False, f"there is no finite value to hold against {best.value:.4f} of version {best.version}")
    figures = f"{value:.4f} to {best.value:.4f} of version {best.version}"
    if not value >= best.value - margin:  # a margin that is no number is met by nothing
        return Rule(rule, False, f"more than {margin:g} below the best champion so far: {figures}")
    return Rule(rule, True, f"not more than {margin:g} below the best champion so far: {figures}")


def _contamination(status: str) -> Rule:
    reasons = {
        "clean": "no training image is in a benchmark",
        "contaminated": "training images are in a benchmark",
        "allowed": "training images are in a benchmark; data.contamination=allow permits a look, not a champion",
        "unknown": "the training images are unknown, so nobody can say that none is in a benchmark",
    }
    reason = reasons.get(status, f"the evaluation states {status!r}, which is no known status")
    return Rule("contamination", status == "clean", reason)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
