"""Conversations about scenes, in the format LLaVA-Instruct-150K is published in.

One conversation a scene: several short questions, often with a description before or after them. One question a scene
teaches a small model nothing (it stays at chance): many answers to one picture are what makes it look. The image
stands at the beginning or at the end of the first turn. As in LLaVA-1.5's mix, the request for a short answer
accompanies the first short question, and some of the later ones.
"""

import random

from multimodal_gemma.sample import questions as ask
from multimodal_gemma.sample.questions import SHORT_ANSWER_SUFFIX, Question, article, plural
from multimodal_gemma.sample.scenes import KINDS, Scene

IMAGE_TAG = "<image>"
QUESTIONS = (5, 8)  # fewest and most short questions a conversation
IMAGE_FIRST_SHARE = 0.75
LATER_SUFFIX_SHARE = 0.25
# How a short question is drawn. Presence leads: it is learned last.
FAMILY_WEIGHTS = {
    "presence": 4.0,
    "color_of": 2.0,
    "kind_by_color": 1.0,
    "kind_by_place": 1.0,
    "place_of": 1.0,
    "color_check": 1.0,
    "count_of": 0.6,
    "count_all": 0.4,
}
CAPTION_PROMPTS = (
    "Provide a one-sentence caption for the provided image.",
    "Describe the image concisely.",
    "Give a short and clear explanation of the image.",
    "What can you see in this image?",
)
DETAIL_PROMPTS = ("Describe the image in detail.", "What is where in this image?")
BACKGROUND_WORDS = {"plain": "a plain", "gradient": "a shaded", "striped": "a striped", "speckled": "a speckled"}
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five")

Turn = tuple[str, str]  # what the person says, what the assistant answers


def conversation(scene: Scene, rng: random.Random) -> list[dict[str, str]]:
    """Return the turns of one conversation: {"from": "human" | "gpt", "value": text}, alternating."""
    turns: list[Turn] = []
    for question in short_questions(scene, rng, rng.randint(*QUESTIONS)):
        suffixed = not turns or rng.random() < LATER_SUFFIX_SHARE
        turns.append((question.text + (SHORT_ANSWER_SUFFIX if suffixed else ""), question.answer))
    where = rng.random()
    if where < 0.2:
        turns.insert(0, description(scene, rng))
    elif where < 0.6:
        turns.append(description(scene, rng))
    first, answer = turns[0]
    first = f"{IMAGE_TAG}\n{first}" if rng.random() < IMAGE_FIRST_SHARE else f"{first}\n{IMAGE_TAG}"
    messages = []
    for said, answered in [(first, answer), *turns[1:]]:
        messages += [{"from": "human", "value": said}, {"from": "gpt", "value": answered}]
    return messages


def short_questions(scene: Scene, rng: random.Random, count: int) -> list[Question]:
    """Draw up to `count` different questions; presence is asked as often of what is there as of what is not."""
    families = {
        "color_of": ask.color_of(scene),
        "kind_by_color": ask.kind_by_color(scene),
        "kind_by_place": ask.kind_by_place(scene),
        "place_of": ask.place_of(scene),
        "color_check": ask.color_check(scene, rng),
        "count_of": ask.count_of(scene),
        "count_all": [ask.count_all(scene)],
    }
    absent = [kind for kind in KINDS if kind not in scene.kinds]
    drawn: dict[str, Question] = {}
    for _ in range(count):
        family = rng.choices(list(FAMILY_WEIGHTS), list(FAMILY_WEIGHTS.values()))[0]
        if family == "presence":
            question = ask.presence(scene, rng.choice(scene.kinds if rng.random() < 0.5 else absent))
        elif families[family]:
            question = rng.choice(families[family])
        else:
            continue
        drawn.setdefault(question.text, question)
    return list(drawn.values()) or [ask.count_all(scene)]


def description(scene: Scene, rng: random.Random) -> Turn:
    """Return a request to describe the scene and its answer: a caption, or one sentence an object with its place."""
    if rng.random() < 0.6:
        return rng.choice(CAPTION_PROMPTS), caption(scene)
    return rng.choice(DETAIL_PROMPTS), detail(scene)


def caption(scene: Scene) -> str:
    """Return one sentence: "Two red balls and an orange star on a striped background."."""
    groups: dict[tuple[str, str], int] = {}
    for thing in scene.objects:
        groups[thing.color, thing.kind] = groups.get((thing.color, thing.kind), 0) + 1
    names = [
        article(f"{color} {kind}") if number == 1 else f"{NUMBER_WORDS[number]} {color} {plural(kind)}"
        for (color, kind), number in groups.items()
    ]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{listed[0].upper()}{listed[1:]} on {BACKGROUND_WORDS[scene.background.style]} background."


def detail(scene: Scene) -> str:
    """Return a sentence an object in reading order: "A red ball is at the top left."."""
    sentences = [f"{article(f'{thing.color} {thing.kind}')} is at the {thing.place}." for thing in scene.objects]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
