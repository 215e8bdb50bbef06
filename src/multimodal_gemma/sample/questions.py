"""What can be asked of a scene, with the one right answer.

Questions are worded as VQA v2 and POPE word them, and each family is asked only where the scene leaves no doubt: a
color is asked of a kind that stands there once, a kind is asked by a color that occurs once.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from multimodal_gemma.sample.scenes import COLORS, KINDS, PLACES, Scene

# Appended to a question whose answer is scored; the wording LLaVA-1.5 trained with and the benchmarks are asked with.
SHORT_ANSWER_SUFFIX = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True)
class Question:
    """A question about one scene, with what VQA v2 records of it."""

    text: str
    answer: str
    question_type: str  # the opening words, as VQA v2 groups questions
    answer_type: str  # "yes/no", "number" or "other"
    mistakes: tuple[str, ...]  # wrong answers that a careless person could give


def article(noun: str) -> str:
    """Return the noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(kind: str) -> str:
    """Return the plural of a kind: balls, boxes, crosses."""
    return kind + ("es" if kind.endswith(("x", "ss")) else "s")


def presence(scene: Scene, kind: str) -> Question:
    """Ask whether a kind is there, in POPE's words."""
    return _yes_no(f"Is there {article(kind)} in the image?", "is there", scene.count(kind) > 0)


def color_of(scene: Scene) -> list[Question]:
    """Ask the color of every kind that is there once."""
    questions = []
    for thing in scene.objects:
        if scene.count(thing.kind) == 1:
            text = f"What color is the {thing.kind}?"
            questions.append(Question(text, thing.color, "what color is the", "other", _others(thing.color, COLORS)))
    return questions


def kind_by_color(scene: Scene) -> list[Question]:
    """Ask which object has a color, for every color that occurs once."""
    colors = [thing.color for thing in scene.objects]
    return [
        Question(f"What is the {thing.color} object?", thing.kind, "what is the", "other", _others(thing.kind, KINDS))
        for thing in scene.objects
        if colors.count(thing.color) == 1
    ]


def kind_by_place(scene: Scene) -> list[Question]:
    """Ask what stands at each place that is taken."""
    return [
        Question(_what_is_at(thing.place), thing.kind, "what is", "other", _others(thing.kind, KINDS))
        for thing in scene.objects
    ]


def place_of(scene: Scene) -> list[Question]:
    """Ask where each object is whose kind is there once."""
    return [
        Question(f"Where is the {thing.kind}?", thing.place, "where is the", "other", _others(thing.place, PLACES))
        for thing in scene.objects
        if scene.count(thing.kind) == 1
    ]


def color_check(scene: Scene, rng: random.Random) -> list[Question]:
    """Ask of each kind that is there once whether it has a color: half of the time its own."""
    questions = []
    for thing in scene.objects:
        if scene.count(thing.kind) == 1:
            color = thing.color if rng.random() < 0.5 else rng.choice(_others(thing.color, COLORS))
            questions.append(_yes_no(f"Is the {thing.kind} {color}?", "is the", color == thing.color))
    return questions


def count_of(scene: Scene) -> list[Question]:
    """Ask how many there are of each kind present."""
    return [_count(f"How many {plural(kind)} are in the image?", scene.count(kind)) for kind in scene.kinds]


def count_all(scene: Scene) -> Question:
    """Ask how many objects there are."""
    return _count("How many objects are in the image?", len(scene.objects))


def _what_is_at(place: str) -> str:
    if place == "center":
        return "What is in the center?"
    return f"What is {'in' if ' ' in place else 'at' if place in ('top', 'bottom') else 'on'} the {place}?"


def _yes_no(text: str, question_type: str, truth: bool) -> Question:
    return Question(text, "yes" if truth else "no", question_type, "yes/no", ("no" if truth else "yes",))


def _count(text: str, number: int) -> Question:
    mistakes = tuple(str(wrong) for wrong in (number - 1, number + 1) if wrong > 0)
    return Question(text, str(number), "how many", "number", mistakes)


def _others(right: str, choices: Iterable[str]) -> tuple[str, ...]:
    return tuple(choice for choice in choices if choice != right)
