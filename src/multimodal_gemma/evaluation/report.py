"""report.html: the scores with their intervals beside what a blind model gets, and the pictures behind them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files
from multimodal_gemma.evaluation import lmms
from multimodal_gemma.evaluation.questions import Row, seen
from multimodal_gemma.reporting import charts
from multimodal_gemma.reporting.page import GalleryItem, Page

if TYPE_CHECKING:
    from PIL.Image import Image

    from multimodal_gemma.data.shards import ImageShards

_MOST_OBJECTS = 25
_MOST_TYPES = 30
_PER_GALLERY = 12
_MOST_TRUTHS = 3  # of the annotators' answers, the most frequent ones
_ANSWERS = ("yes", "no")
_VQA_COLUMNS = ("accuracy", "interval", "majority answer", "which is", "questions")
_VQA_SHOWN = ("accuracy", "interval", "majority_baseline", "majority_answer", "count")


def render(
    rows: Sequence[Row],
    captions: Sequence[Row],
    metrics: dict[str, Any],
    shards: ImageShards,
    *,
    confidence: float,
    model: str,
    date: str,
) -> str:
    """Return the page, self-contained and below 3 MB.

    Args:
        rows: see `questions.rows`.
        captions: see `chair.rows`.
        metrics: what metrics.json holds.
        shards: the benchmark's images.
        confidence: of the intervals.
        model: what the scored model is called.
        date: when it was scored, as text.
    """
    questions, images = len(rows), len({row["image_id"] for row in rows})
    asked = " and ".join(metrics["names"][kind] for kind in ("pope", "vqa") if metrics[kind])
    lead = (
        f"{model} (digest {metrics['model_digest'][:12]}), {date}: {asked}. {questions:,} questions about {images:,} "
        f"images. Intervals cover {confidence:.0%}, clustered by image; a dash stands for fewer than ten images. "
        "Beside the scores is what always giving the majority answer gets, which needs no image. "
        f"{seen(metrics)}"
    )
    page = Page("Evaluation", lead).cards(_cards(metrics))
    if metrics["pope"]:
        _pope(page, metrics)
    if metrics["vqa"]:
        _vqa(page, metrics["vqa"], metrics["names"]["vqa"])
    if captions:
        _chair(page, captions, metrics["chair"], shards)
    if metrics["lmms"]:
        _lmms(page, metrics["lmms"])
    _examples(page, rows, shards)
    return page.html()


def draw(rows: Sequence[Row], most: int) -> list[Row]:
    """Draw rows for people to look at, from every benchmark and every kind of truth in turn.

    No image is drawn twice while there are others. Which ones is a matter of a hash, so that neither the order of the
    file nor a person has chosen them.
    """
    strata: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: files.digest_of([row["image"], row["question"]])):
        strata.setdefault((row["benchmark"], row.get("label") or row.get("answer_type", "")), []).append(row)
    chosen: list[Row] = []
    seen: set[str] = set()
    waiting = [strata[key] for key in sorted(strata)]
    while len(chosen) < most and any(waiting):
        for stratum in filter(None, waiting):
            if len(chosen) < most:
                new = next((place for place, row in enumerate(stratum) if row["image"] not in seen), 0)
                chosen.append(stratum.pop(new))
                seen.add(chosen[-1]["image"])
    return chosen


def item(row: Row, shards: ImageShards, answers: Sequence[tuple[str, str]]) -> GalleryItem:
    """Return a picture with its question, answers as (text, class), and the truth."""
    told = [*answers, (f"truth: {truth(row)}", ""), (called(row["benchmark"]), "")]
    return GalleryItem(_picture(row, shards), row["question"], told)


def answered(row: Row) -> tuple[str, str]:
    """Return a row's answer in words, and the class that colours it."""
    sure = "" if row["p_yes"] is None or "label" not in row else f", P(yes) {row['p_yes']:.2f}"
    word, mark = ("right", "good") if row["score"] >= 0.5 else ("wrong", "bad")
    return f"{word}: {row['prediction'] or '(no words)'}{sure}", mark


def called(benchmark: str) -> str:
    """Return what people call a row's benchmark, e.g. "POPE random"."""
    kind, _, setting = benchmark.partition("/")
    return f"{kind.upper()} {setting}".strip()


def truth(row: Row) -> str:
    """Return what would have been right."""
    if "label" in row:
        return str(row["label"])
    counts = Counter[str](row["answers"]).most_common(_MOST_TRUTHS)
    return ", ".join(f"{answer} ({count} of {len(row['answers'])})" for answer, count in counts)


def _cards(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    cards = []
    if mean := metrics["pope_mean"]:
        blind = sum(section["majority_baseline"] for section in metrics["pope"].values()) / len(metrics["pope"])
        note = f"{_span(mean['interval'])}; majority answer {_share(blind)}"
        cards.append(("POPE accuracy", _share(mean["accuracy"]), note))
        note = "of the questions; half of them are yes" if blind == 0.5 else "of the questions"
        cards.append(("POPE says yes", _share(metrics["metrics"]["pope_yes_ratio"]), note))
        if known := mean["calibration"]:
            rank = "-" if known["auroc"] is None else f"{known['auroc']:.3f}"
            cards.append(("AUROC of P(yes)", rank, f"0.5 is chance; calibration error {known['ece']:.3f}"))
    if vqa := metrics["vqa"]:
        note = f"majority answer {_share(vqa['majority_baseline'])}"
        cards.append(("VQA accuracy", _share(vqa["accuracy"]), f"{_span(vqa['interval'])}; {note}"))
    if told := metrics["chair"]:
        invented, recall = told["chair_i"], told["recall"]["value"]
        note = "" if recall is None else f"; {_share(recall)} of what is there is named"
        cards.append(("Objects invented (CHAIRi)", _share(invented["value"]), _span(invented["interval"]) + note))
    if found := metrics["validation"]:
        source = "as training left it"
        if "conversations" in found:
            source = f"{found['conversations']:,} held-out conversations"
        cards.append(("Validation loss", f"{found['loss']:.3f}", f"perplexity {found['perplexity']:.2f}; {source}"))
    return cards


def _pope(page: Page, metrics: dict[str, Any]) -> None:
    pope = metrics["pope"]
    page.section(
        f"{metrics['names']['pope']}: are objects seen that are not there?",
        "Half of the questions ask for an object that is absent: drawn at random, a frequent one, or one that keeps "
        "company with what is there. A model that always says yes scores half of the accuracy but two thirds of F1, "
        "so look at the yes-ratio first.",
    )
    shown = ("accuracy", "interval", "majority_baseline", "yes_ratio", "f1", "always_yes_f1", "count")
    page.table(
        ("setting", "accuracy", "interval", "majority answer", "says yes", "F1", "F1 of all yes", "questions"),
        [(setting, *_told(section, *shown)) for setting, section in pope.items()],
    )
    page.table(
        ("setting", "precision", "recall", "strict accuracy", "invalid"),
        [
            (setting, *_told(section, "precision", "recall"), *_told(section["strict"], "accuracy", "invalid_rate"))
            for setting, section in pope.items()
        ],
        "Official parsing reads whatever does not say no as yes; strict counts an answer that is neither as wrong "
        "(invalid).",
    )
    page.figures(
        [
            (charts.confusion([[entry["tp"], entry["fn"]], [entry["fp"], entry["tn"]]], _ANSWERS, setting), "")
            for setting, entry in pope.items()
        ]
    )
    if known := metrics["pope_mean"]["calibration"]:
        page.section(
            "Calibration",
            "Of the questions that the model holds to be yes with some probability, that share should be yes: the "
            f"nearer to the diagonal, the better it knows what it knows. Expected calibration error: "
            f"{known['ece']:.3f}.{_tuned(metrics)}",
        )
        page.figure(charts.calibration(known["bins"]), "The larger a dot, the more questions it stands for.")
        page.table(("mean P(yes)", "share of yes", "questions"), [tuple(entry) for entry in known["bins"]])
    objects = metrics["objects"][:_MOST_OBJECTS]
    every = len(metrics["objects"])
    page.section(
        "Objects, worst first",
        "Which things are overlooked, and which are imagined: compare the last two columns."
        + (f" The worst {len(objects)} of {every:,}." if every > len(objects) else ""),
    )
    page.table(
        ("object", "accuracy", "questions", "says yes", "is yes"),
        [(entry["object"], *_told(entry, "accuracy", "count", "yes_ratio", "label_ratio")) for entry in objects],
    )


def _tuned(metrics: dict[str, Any]) -> str:
    """Say what the threshold of the validation data would make of POPE."""
    tuned = metrics["pope_mean"]["at_threshold"]
    if tuned is None:
        return ""
    found = metrics["validation"]["threshold"]
    return (
        f" If P(yes) of at least {tuned['threshold']:.2f} counted as yes, which separates {found['questions']:,} yes "
        f"and no answers of the validation data best, accuracy would be {_share(tuned['accuracy'])} "
        f"({_span(tuned['interval'])}) and the yes-ratio {_share(tuned['yes_ratio'])}."
    )


def _vqa(page: Page, vqa: dict[str, Any], called: str) -> None:
    page.section(
        f"{called}: open questions",
        "Bars are official accuracy with its interval; the tick is what the majority answer of its kind gets.",
    )
    kinds = sorted(vqa["by_answer_type"].items(), key=lambda item: -item[1]["count"])
    page.figure(
        charts.bars(
            [name for name, _ in kinds],
            [100 * entry["accuracy"] for _, entry in kinds],
            "accuracy, %",
            intervals=[[100 * end for end in entry["interval"] or ()] for _, entry in kinds],
            baselines=[100 * entry["majority_baseline"] for _, entry in kinds],
        )
    )
    few = vqa["fewer_than_ten_answers"]
    said = f" {few:,} questions have fewer than ten answers; they are scored by the same rule." if few else ""
    page.table(
        ("answers", *_VQA_COLUMNS),
        [(name, *_told(entry, *_VQA_SHOWN)) for name, entry in [("all", vqa), *kinds]],
        f"Always normalised (strict): {_share(vqa['strict_accuracy'])}. The most frequent answer of each question "
        f"type, known without the image: {_share(vqa['question_type_baseline'])}.{said}",
    )
    types = sorted(vqa["by_question_type"].items(), key=lambda item: (-item[1]["count"], item[0]))
    page.section(
        "By question type", f"The {_MOST_TYPES} most frequent of {len(types)}." if len(types) > _MOST_TYPES else ""
    )
    page.table(
        ("question begins", *_VQA_COLUMNS),
        [(name, *_told(entry, *_VQA_SHOWN)) for name, entry in types[:_MOST_TYPES]],
    )


def _examples(page: Page, rows: Sequence[Row], shards: ImageShards) -> None:
    for heading, chosen in (
        ("Wrong answers", [row for row in rows if row["score"] < 0.5]),
        ("Right answers", [row for row in rows if row["score"] >= 0.5]),
    ):
        if chosen:
            page.section(heading, f"{len(chosen):,} in all; drawn by a hash from every benchmark and kind of truth.")
            page.gallery([item(row, shards, [answered(row)]) for row in draw(chosen, _PER_GALLERY)])


def _chair(page: Page, captions: Sequence[Row], found: dict[str, Any], shards: ImageShards) -> None:
    page.section(
        "Descriptions: are objects named that are not there? (CHAIR)",
        f"Asked for: {captions[0]['question']} CHAIRi is the share of invented objects among all that are mentioned, "
        "CHAIRs the share of descriptions with at least one: the lower, the better. Who names little invents little: "
        "read them beside the recall, the share of the objects there that are named.",
    )
    shares = {"CHAIRi": "chair_i", "CHAIRs": "chair_s", "recall": "recall"}
    page.table(
        ("measure", "value", "interval"),
        [(name, *_told(found[key], "value", "interval")) for name, key in shares.items()],
        f"{found['captions']:,} descriptions with {found['mentions_per_caption']:.1f} mentions each; "
        f"{found['silent']:,} are empty. The words for objects are this project's own: compare with figures made here.",
    )
    faulty = [row for row in captions if not all(there for *_, there in row["mentions"])]
    for chosen in (faulty, [row for row in captions if row not in faulty]):
        page.gallery([_described(row, shards) for row in draw(chosen, _PER_GALLERY // 2)])


def _lmms(page: Page, found: dict[str, Any]) -> None:
    page.section(
        "Other benchmarks, by lmms-eval",
        f"Asked and scored by lmms-eval {found['version']} by its adapter llava_hf, each in its own scorer's unit and "
        "without an interval of ours. Pictures of these benchmarks were not compared with the training images.",
    )
    page.table(
        ("task", "measure", "value", "questions"),
        [(task, metric, f"{value:.4g}", f"{count:,}") for task, metric, value, count in lmms.rows(found["tasks"])],
    )


def _described(row: Row, shards: ImageShards) -> GalleryItem:
    """Return a picture with its description, in which the words for what is not there are marked."""
    from markupsafe import Markup, escape

    text, parts, place = row["caption"], [], 0
    invented = [mention for mention in row["mentions"] if not mention[3]]
    for start, end, _, _ in invented:
        parts += [escape(text[place:start]), Markup("<mark>{}</mark>").format(text[start:end])]
        place = end
    caption = Markup("").join([*parts, escape(text[place:])]) or "(no words)"
    absent = ", ".join(dict.fromkeys(mention[2] for mention in invented))
    verdict = (f"not there: {absent}", "bad") if absent else ("nothing invented", "good" if row["mentions"] else "")
    there = ", ".join(row["truth"]) or "no known object"
    return GalleryItem(_picture(row, shards), row["question"], [(caption, ""), verdict, (f"there: {there}", "")])


def _picture(row: Row, shards: ImageShards) -> Image:
    from PIL import Image as opener
    from PIL import ImageOps

    with opener.open(io.BytesIO(shards.read(row["image"]))) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


def _told(section: dict[str, Any], *names: str) -> list[str | int]:
    """Return what a table shows of a section: shares and intervals in percent, counts and words as they are."""
    found = (section[name] for name in names)
    return [
        value if isinstance(value, str | int) else _share(value) if isinstance(value, float) else _span(value)
        for value in found
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _span(interval: Sequence[float] | None) -> str:
    return f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}%" if interval else "-"
