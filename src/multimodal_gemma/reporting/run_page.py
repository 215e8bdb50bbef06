"""The page of a run, the same on a laptop and in the pipelines UI: first what came of it and why.

Whoever opens it wants to know whether there is a new champion, how good it is, and what to do next; everything else
follows below. The page is one file without scripts, so it shows in KFP's sandboxed frame and on a phone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from multimodal_gemma.reporting.page import Link, Page

SETTINGS = ("random", "popular", "adversarial")  # of POPE, from the easiest to the hardest
NAMES = {"pope": "POPE-format questions", "vqa": "VQA-format questions"}  # where an evaluation does not say
# What an outcome is called in one word, and whether it is good news.
_WORDS = {
    "passed": ("champion", "good"),
    "done": ("succeeded", "good"),
    "refused": ("not promoted", "plain"),
    "failed": ("failed", "bad"),
    "stopped": ("stopped", "plain"),
    "unknown": ("ended", "plain"),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the run.

    Attributes:
        name: of the task.
        status: e.g. "succeeded", "reused", "failed", "skipped", "not run".
        seconds: it took; None where it did not run or nobody knows.
        tries: pods or processes that were started for it.
    """

    name: str
    status: str
    seconds: float | None = None
    tries: int = 1


@dataclasses.dataclass(frozen=True)
class Score:
    """One row of the score table; None where something is not known.

    Attributes:
        name: of the benchmark, short.
        value: of the score, in [0, 1].
        interval: of the value.
        majority: what always giving the majority answer would score.
        champion: score of the version that was champion before.
        count: questions.
        asked: what the questions are called in full.
        f1: where the answers are yes and no.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    majority: float | None = None
    champion: float | None = None
    count: int | None = None
    asked: str = ""
    f1: float | None = None


@dataclasses.dataclass(frozen=True)
class RunPage:
    """What the page says, in the order of reading.

    Attributes:
        name: of the run.
        outcome: "passed", "done" (a pipeline without a gate), "refused", "failed", "stopped" or "unknown".
        verdict: one sentence.
        reason: why so, a sentence a line; "" where the verdict says it.
        advice: what to do next.
        scores: may be empty.
        contamination: what is known of training images in the benchmarks, a sentence.
        facts: what was trained on what, by name.
        graph: an SVG of the project's own.
        steps: in the order of the pipeline.
        links: addresses and places by name; a `Link` leads to another page of the same run.
        commands: what to type, by what it does.
        said: the last lines of the task that failed.
        details: more sections below.
    """

    name: str
    outcome: str
    verdict: str
    reason: str = ""
    advice: str = ""
    scores: Sequence[Score] = ()
    contamination: str = ""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    graph: str = ""
    steps: Sequence[Step] = ()
    links: Mapping[str, str | Link] = dataclasses.field(default_factory=dict)
    commands: Mapping[str, str] = dataclasses.field(default_factory=dict)
    said: Sequence[str] = ()
    details: Page | None = None


def render(page: RunPage) -> str:
    """Return the page as HTML; all text is escaped, but what the project itself drew."""
    word, mark = _WORDS[page.outcome]
    sections = page.details or Page("", "")
    sections.title = f"Run {page.name}: {word}"
    return sections.html("run_page", page=page, word=word, mark=mark, duration=duration)


def judged(name: str, version: str, alias: str, rules: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    """Return outcome, verdict and reason of a run whose model was registered; without rules nothing was decided."""
    called = f"version {version} of {name}"
    if rules and all(rule["passed"] for rule in rules):
        return "passed", f"The model passed the gate: {called} is {alias or 'registered'}.", ""
    return "refused", f"The gate refused the model: {called} is no champion.", refusals(rules)


def refusals(rules: Sequence[Mapping[str, Any]]) -> str:
    """Return why a gate refused, from the rules of its decision: a line each."""
    return "\n".join(f"{rule['name']}: {rule['reason']}." for rule in rules if not rule.get("passed"))


def scores(metrics: Mapping[str, Any], champion: Mapping[str, float]) -> list[Score]:
    """Return the score table of an evaluation.

    Args:
        metrics: metrics.json.
        champion: flat metrics of the version that was champion before; {} for none.
    """
    pope, vqa = metrics.get("pope") or {}, metrics.get("vqa") or {}
    names = NAMES | (metrics.get("names") or {})
    short = {kind: name.partition(" questions")[0] for kind, name in names.items()}  # of what is no published set
    rows = [
        (f"{short['pope']} {name}", pope[name], f"pope_{name}_accuracy", names["pope"])
        for name in SETTINGS
        if name in pope
    ]
    rows += [(short["vqa"], vqa, "vqa_accuracy", names["vqa"])] if vqa else []
    told = metrics.get("chair") or {}
    if told and told["chair_i"]["value"] is not None:
        entry = {"accuracy": told["chair_i"]["value"], "interval": told["chair_i"]["interval"]}
        counted = {**entry, "count": told["captions"]}
        rows.append(("CHAIRi, lower is better", counted, "chair_i", "descriptions (CHAIR)"))
    return [
        Score(
            name,
            entry["accuracy"],
            tuple(entry["interval"]) if entry.get("interval") else None,
            entry.get("majority_baseline"),
            champion.get(key),
            entry.get("count"),
            asked,
            entry.get("f1"),
        )
        for name, entry, key, asked in rows
    ]


def duration(seconds: float) -> str:
    """Return a time as people say it, e.g. "0.4 s", "41 s", "3 min 05 s" or "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
