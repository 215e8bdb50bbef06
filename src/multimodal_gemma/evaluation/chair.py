"""CHAIR: which of the objects that a description names are not in the picture (Rohrbach et al., 2018).

CHAIRi is the share of invented ones among all mentions of objects, CHAIRs the share of descriptions with at least one.
An object counts as there if an annotator outlined it or if one of the picture's published captions names it. Who says
nothing invents nothing, so both are worth reading only beside the recall.

Words are found by a table of our own, shorter than the published one: figures compare models that were scored here.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from multimodal_gemma.evaluation.statistics import clustered_mean

if TYPE_CHECKING:
    from multimodal_gemma.data.benchmarks import Described

Row = dict[str, Any]
CAPTIONS = "captions.jsonl"
_WORD = re.compile(r"[a-z]+")
# Other words for COCO's categories. Of a category that a set does not have, none counts.
_SYNONYMS = {
    "person": "man woman boy girl child kid baby toddler guy lady gentleman adult people player batter pitcher catcher "
    "skier snowboarder surfer skateboarder rider cyclist biker pedestrian passenger driver worker officer policeman "
    "fireman soldier chef cook waiter bride groom mother father son daughter spectator teenager",
    "bicycle": "bike cycle",
    "car": "automobile sedan suv taxi cab minivan jeep convertible",
    "motorcycle": "motorbike scooter moped",
    "airplane": "plane aeroplane aircraft jet airliner jetliner",
    "bus": "minibus trolleybus",
    "train": "locomotive tram subway",
    "truck": "lorry pickup van",
    "boat": "ship sailboat canoe kayak yacht ferry rowboat",
    "traffic light": "stoplight,traffic signal,stop light",
    "fire hydrant": "hydrant",
    "bird": "seagull gull pigeon duck duckling goose parrot owl eagle hawk swan chicken rooster penguin ostrich crow",
    "cat": "kitten kitty",
    "dog": "puppy pup hound terrier dachshund poodle bulldog labrador",
    "horse": "pony foal colt stallion mare",
    "sheep": "lamb ram ewe",
    "cow": "cattle calf bull ox oxen",
    "bear": "panda",
    "backpack": "knapsack rucksack",
    "handbag": "purse",
    "tie": "necktie,bow tie",
    "suitcase": "luggage baggage,suit case",
    "frisbee": "disc",
    "skis": "ski",
    "sports ball": "ball baseball football basketball softball,soccer ball,tennis ball",
    "baseball bat": "bat",
    "baseball glove": "mitt",
    "surfboard": "surf board",
    "tennis racket": "racket racquet,tennis racquet",
    "wine glass": "wineglass goblet",
    "cup": "mug",
    "knife": "pocketknife",
    "sandwich": "burger hamburger cheeseburger",
    "hot dog": "hotdog",
    "donut": "doughnut",
    "cake": "cupcake cheesecake",
    "chair": "stool armchair recliner seat",
    "couch": "sofa loveseat",
    "potted plant": "houseplant,house plant",
    "bed": "bunk",
    "dining table": "table desk",
    "toilet": "urinal,toilet seat",
    "tv": "television,tv screen",
    "laptop": "laptop computer,notebook computer",
    "remote": "remote control",
    "keyboard": "computer keyboard",
    "cell phone": "cellphone smartphone phone,mobile phone",
    "oven": "stove",
    "refrigerator": "fridge freezer",
    "teddy bear": "teddy",
    "hair drier": "hairdryer hairdrier,hair dryer,blow dryer",
}
_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
# Two words that name nothing of the second or first alone.
_NO_OBJECTS = ("home plate", "license plate", "train track", "train station", "bus stop", "bus station")
_IRREGULAR = {
    **{"men": "man", "women": "woman", "children": "child", "policemen": "policeman", "firemen": "fireman"},
    **{"geese": "goose", "calves": "calf", "knives": "knife", "mice": "mouse"},
}


@dataclasses.dataclass(frozen=True)
class Mention:
    """An object that a text names."""

    start: int  # where the words begin in the text, characters
    end: int  # where they end
    object: str  # the category they mean


class Finder:
    """Finds the mentions of some categories.

    Args:
        categories: names as the annotations have them, e.g. COCO's 80.
    """

    def __init__(self, categories: Iterable[str]) -> None:
        names = list(categories)
        self._means: dict[str, str | None] = dict.fromkeys(_NO_OBJECTS)
        for name in names:
            words, *phrases = _SYNONYMS.get(name, "").split(",")
            self._means |= dict.fromkeys([*words.split(), *phrases], name)
        for animal in _ANIMALS:
            if animal in names:
                self._means |= {f"{age} {animal}": animal for age in ("baby", "adult")}
        for vehicle, category in (("jet", "airplane"), ("plane", "airplane"), ("train", "train")):
            if category in names:
                self._means[f"passenger {vehicle}"] = category
        self._means |= {name: name for name in names}  # a category's own name is nothing else

    def mentions(self, text: str) -> list[Mention]:
        """Return what a text names, in its order; two words that belong together come before one."""
        words = [(match.start(), match.end(), match.group()) for match in _WORD.finditer(text.lower())]
        found, place = [], 0
        while place < len(words):
            for count in (2, 1):
                taken = words[place : place + count]
                joined = len(taken) == count and text[taken[0][1] : taken[-1][0]].strip() in ("", "-")
                key = self._key([word for _, _, word in taken]) if joined else None
                if key is not None:
                    if category := self._means[key]:
                        found.append(Mention(taken[0][0], taken[-1][1], category))
                    place += count
                    break
            else:
                place += 1
        return found

    def _key(self, words: Sequence[str]) -> str | None:
        """Return what is known of some words as they stand, else with the last one in the singular."""
        for last in _singulars(words[-1]):
            if (key := " ".join([*words[:-1], last])) in self._means:
                return key
        return None


@functools.lru_cache(maxsize=10_000)
def _singulars(word: str) -> tuple[str, ...]:
    """Return a word and what it may be the plural of, the likeliest first."""
    found = [word, _IRREGULAR.get(word, word)]
    for ending, instead in (("ies", "y"), ("ves", "f"), ("es", ""), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            found.append(word.removesuffix(ending) + instead)
    return tuple(dict.fromkeys(found))


def rows(
    described: Mapping[str, Described], categories: Sequence[str], said: Mapping[str, str], prompt: str
) -> list[Row]:
    """Return a row for each picture, by file name, of which it is known what is in it and what was `said` of it.

    Keys: benchmark ("chair"), image, image_id, question (the prompt), caption, truth (the categories that are there),
    mentions ([start, end, category, whether it is there] each, in the order of the text).
    """
    finder, found = Finder(categories), []
    for image, known in described.items():
        truth = set(known.objects) | {one.object for text in known.captions for one in finder.mentions(text)}
        named = [[one.start, one.end, one.object, one.object in truth] for one in finder.mentions(said[image])]
        shown = {"benchmark": "chair", "image": image, "image_id": known.image_id, "question": prompt}
        found.append({**shown, "caption": said[image], "truth": sorted(truth), "mentions": named})
    return found


def score(rows: Sequence[Row], confidence: float) -> dict[str, Any]:
    """Return the section "chair" of metrics.json.

    Each share is {"value", "interval"}, clustered by image: `chair_i`, `chair_s` and `recall` (of the objects that are
    there, the share that is named); value and interval are None where nothing can be counted.
    """
    mentioned = [(row["image_id"], not there) for row in rows for _, _, _, there in row["mentions"]]
    told = [(row["image_id"], not all(there for *_, there in row["mentions"])) for row in rows]
    named = [{category for _, _, category, _ in row["mentions"]} for row in rows]
    wanted = [(row["image_id"], one in said) for row, said in zip(rows, named, strict=True) for one in row["truth"]]
    return {
        "chair_i": _share(mentioned, confidence),
        "chair_s": _share(told, confidence),
        "recall": _share(wanted, confidence),
        "mentions": len(mentioned),
        "mentions_per_caption": len(mentioned) / len(rows),
        "captions": len(rows),
        "silent": sum(not row["caption"] for row in rows),
    }


def _share(counted: Sequence[tuple[str, bool]], confidence: float) -> dict[str, Any]:
    if not counted:
        return {"value": None, "interval": None}
    images, values = zip(*counted, strict=True)
    # With one score a mention this mean is Rohrbach's ratio of sums, and its error that of a ratio estimator.
    found = clustered_mean([float(value) for value in values], images, confidence=confidence)
    return {"value": found.mean, "interval": found.interval}
