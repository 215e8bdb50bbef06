"""The candidate held against the champion on the same questions.

The champion's predictions lie with its run. Answers to one question are paired, so what both find hard cancels out, and
questions on one image count as one draw.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_gemma import files
from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation import questions, report
from multimodal_gemma.evaluation.questions import Row
from multimodal_gemma.registry import gate, server, versions
from multimodal_gemma.reporting.page import Page

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import FileInfo

    from multimodal_gemma.config.schema import Config
    from multimodal_gemma.data.shards import ImageShards
    from multimodal_gemma.registry.register import Candidate

PREDICTIONS = "evaluation/predictions.jsonl"  # artifact of a run
_MOST = 20  # questions shown on either side
_SMALLEST_SHARE = 0.5  # of the candidate's questions; with fewer in common, hardly anything could be found worse


def against(client: MlflowClient, config: Config, candidate: Candidate, version: str) -> gate.Champion:
    """Return the champion `version` with its paired differences, or with the reason why there can be none."""
    from multimodal_gemma.data.shards import ImageShards

    name, confidence = config.registry.name, config.evaluation.confidence
    answers = questions.read_rows(candidate.evaluation)
    rows, problem = _predictions(client, name, version)
    if problem:
        return gate.Champion(
            version,
            problem=f"{problem}, so nothing shows that this version is not worse; promote it by hand if it is right",
        )
    differences = {}
    for metric in config.registry.compared:
        ours = questions.of(answers, gate.benchmark(metric))
        common = questions.pairs(ours, rows)
        if not ours:
            continue
        if len(common) < _SMALLEST_SHARE * len(ours):
            return gate.Champion(
                version,
                problem=f"version {version} has answered {len(common):,} of the {len(ours):,} questions of {metric}: "
                "evaluate it on the same benchmarks, or promote this version by hand",
            )
        found = questions.difference(common, confidence=confidence)
        assert found.interval is not None
        differences[metric] = gate.Difference(found.mean, *found.interval, len(common))
    shards = ImageShards(candidate.benchmarks) if candidate.benchmarks is not None else None
    page = render(name, version, questions.pairs(answers, rows), confidence=confidence, shards=shards)
    return gate.Champion(version, differences, _best(client, name, version, candidate.benchmarks_digest), page=page)


def _best(client: MlflowClient, name: str, champion: str, benchmarks: str) -> dict[str, gate.Best]:
    """Return the highest score by metric of the champion and those before it, as far as they answered the same.

    A version that a person promoted against the gate's word ends the search: that level was accepted.
    """
    found: dict[str, gate.Best] = {}
    seen: set[str] = set()
    number = champion
    while number and number not in seen:
        seen.add(number)
        tags = versions.tags(client, name, number)
        if tags.get(versions.BENCHMARKS) == benchmarks:
            for metric, value in json.loads(tags.get(versions.SCORES, "{}")).items():
                if metric not in found or value > found[metric].value:
                    found[metric] = gate.Best(value, number)
        number = "" if versions.BY_HAND in tags else tags.get(versions.PREVIOUS_OF, "")
    return found


def _predictions(client: MlflowClient, name: str, version: str) -> tuple[list[Row], str]:
    """Return the rows that a version was scored by, or why they cannot be had."""
    champion = client.get_model_version(name, version)
    tags: Mapping[str, str] = champion.tags
    run = f"the predictions of version {version} (run {champion.run_id or 'unknown'})"
    # Only what is known to be absent is gone. A server that fails for a moment must not cost a candidate its promotion.
    listed: list[FileInfo] = []
    with server.tolerating(server.ABSENT):
        listed = client.list_artifacts(champion.run_id, PREDICTIONS.partition("/")[0]) if champion.run_id else []
    if PREDICTIONS not in (entry.path for entry in listed):
        return [], f"{run} are gone"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(client.download_artifacts(champion.run_id, PREDICTIONS, scratch))
        if tags.get(versions.PREDICTIONS) not in (None, files.sha256_file(path)):
            return [], f"{run} were overwritten by another evaluation"
        try:
            rows = files.read_jsonl(path, "predictions")
        except InputError:
            return [], f"{run} are broken"
    missing = {"benchmark", "question_id", "image", "question", "score"}
    if not all(missing <= row.keys() for row in rows):
        return [], f"{run} are of another format"
    return rows, ""


def render(
    name: str,
    version: str,
    pairs: Sequence[tuple[Row, Row]],
    *,
    confidence: float,
    shards: ImageShards | None = None,
) -> str:
    """Return comparison.html: candidate and champion, benchmark by benchmark, with the questions that changed sides.

    It is made when a model is registered and not when it is evaluated: what an evaluation says must not depend on who
    happens to be champion at that moment. Without a question in common it is "", without images it has no pictures.
    """
    if not pairs:
        return ""
    rows = []
    worse: list[str] = []
    better: list[str] = []
    for benchmark in dict.fromkeys(ours["benchmark"] for ours, _ in pairs):
        here = [(ours, theirs) for ours, theirs in pairs if ours["benchmark"] == benchmark]
        found = questions.difference(here, confidence=confidence)
        low, high = found.interval or (-1.0, 1.0)
        if high < 0 or low > 0:
            (worse if high < 0 else better).append(report.called(benchmark))
        means = [f"{sum(pair[side]['score'] for pair in here) / len(here):.1%}" for side in (0, 1)]
        points = (f"{100 * found.mean:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}")
        won, lost = (sum(sign * (ours["score"] - theirs["score"]) > 0 for ours, theirs in here) for sign in (1, -1))
        rows.append((report.called(benchmark), *means, *points, won, lost, len(here)))
    said = [f"{word} in {', '.join(names)}" for word, names in (("worse", worse), ("better", better)) if names]
    page = Page(
        "Candidate and champion",
        f"Beyond noise, the candidate is {' and '.join(said) or 'neither better nor worse'}: {name} beside version "
        f"{version} on {len(pairs):,} questions that both have answered. Intervals cover {confidence:.0%}, paired by "
        "question and clustered by image; a difference whose interval holds 0 is noise.",
    )
    page.section("Scores", "Percent, and the difference in points.")
    page.table(("benchmark", "candidate", "champion", "difference", "interval", "better", "worse", "questions"), rows)
    _changed(page, "Lost", "What the champion gets right and the candidate does not.", pairs, shards, sign=-1)
    _changed(page, "Won", "What the candidate gets right and the champion does not.", pairs, shards, sign=1)
    return page.html()


def _changed(
    page: Page, heading: str, sentence: str, pairs: Sequence[tuple[Row, Row]], shards: ImageShards | None, *, sign: int
) -> None:
    changed = [ours for ours, theirs in pairs if sign * (ours["score"] - theirs["score"]) >= 0.5]
    if not changed:
        return
    said = {id(ours): theirs.get("prediction", "") for ours, theirs in pairs}
    shown = report.draw(changed, _MOST)
    page.section(heading, f"{sentence} {len(shown)} of {len(changed):,}, drawn by a hash.")
    if shards is None:
        page.table(
            ("benchmark", "image", "question", "candidate", "champion"),
            [
                (report.called(o["benchmark"]), o["image"], o["question"], o.get("prediction", ""), said[id(o)])
                for o in shown
            ],
        )
        return
    marks = (("right", "good"), ("wrong", "bad"))[::sign]

    def told(ours: Row) -> list[tuple[str, str]]:
        answers = (("candidate", ours["prediction"]), ("champion", said[id(ours)]))
        return [
            (f"{who}, {word}: {text or '(no words)'}", mark)
            for (who, text), (word, mark) in zip(answers, marks, strict=True)
        ]

    page.gallery([report.item(ours, shards, told(ours)) for ours in shown])
