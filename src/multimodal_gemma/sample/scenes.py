"""Scenes whose truth is known: what stands where, in which color, how often.

A scene is one to five flat objects on a 3 x 3 grid, each in a cell of its own, so that nothing is hidden and every
question has one answer. Kinds are not equally frequent and prefer company (a theme favours four of them), which gives
POPE's popular and adversarial negatives something to be drawn from.

Whether a scene may be trained on is a property of the scene itself: a digest of its arrangement puts one arrangement
in eight on the held-out side. So no seed, neither of pretraining nor of training, can show a model what the
benchmarks will ask about.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held_out"]

IMAGE_SIZE = 112  # pixels, square: 7 x 7 patches of 16

KIND_WEIGHTS = {
    "ball": 1.6,
    "box": 1.4,
    "star": 1.2,
    "umbrella": 1.1,
    "heart": 1.0,
    "moon": 0.9,
    "triangle": 0.9,
    "arrow": 0.8,
    "cross": 0.7,
    "ring": 0.7,
}
KINDS = tuple(KIND_WEIGHTS)
THEMES = (
    ("ball", "box", "ring", "heart"),
    ("star", "moon", "umbrella", "heart"),
    ("triangle", "arrow", "cross", "box"),
)
THEME_BOOST = 3.0

COLORS = {
    "red": (220, 30, 35),
    "orange": (250, 135, 15),
    "yellow": (245, 220, 30),
    "green": (30, 155, 55),
    "blue": (30, 80, 220),
    "purple": (125, 40, 165),
    "pink": (250, 130, 185),
    "black": (25, 25, 28),
}
BACKGROUND_STYLES = ("plain", "gradient", "striped", "speckled")
# Pale, so that no object disappears into its background.
TINTS = ((236, 236, 236), (250, 244, 228), (226, 238, 248), (228, 244, 232), (240, 232, 246), (205, 208, 212))

PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
CELL = IMAGE_SIZE / 3
SMALLEST, LARGEST = 23.0, 35.0

OBJECT_COUNT_WEIGHTS = {1: 1.0, 2: 2.0, 3: 3.0, 4: 2.5, 5: 1.5}
REPEAT_SHARE = 0.22  # how often a further object repeats an earlier kind: gives counting something to count
HELD_OUT_SHARE = 8  # one arrangement in so many is held out


@dataclass(frozen=True)
class SceneObject:
    """One object; `x`, `y` (centre) and `size` (extent) are in pixels of the finished image."""

    kind: str
    color: str
    place: str
    x: float
    y: float
    size: float
    tilt: float  # degrees
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Background:
    """What lies behind the objects; `texture` seeds the speckles."""

    style: str
    first: tuple[int, int, int]
    second: tuple[int, int, int]
    angle: int  # degrees, of the gradient or the stripes
    texture: int


@dataclass(frozen=True)
class Scene:
    """Objects in reading order on a background."""

    objects: tuple[SceneObject, ...]
    background: Background

    @property
    def arrangement(self) -> tuple[tuple[str, str, str], ...]:
        """What a description could tell: (kind, color, place) of each object, in reading order."""
        return tuple((thing.kind, thing.color, thing.place) for thing in self.objects)

    @property
    def split(self) -> Split:
        """Which side of the fence this arrangement is on, whatever seed it came from."""
        digest = hashlib.sha256(repr(self.arrangement).encode()).digest()
        return "held_out" if digest[0] % HELD_OUT_SHARE == 0 else "train"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds present, each once, in the order of KINDS."""
        present = {thing.kind for thing in self.objects}
        return tuple(kind for kind in KINDS if kind in present)

    def count(self, kind: str) -> int:
        """Return how many objects are of this kind."""
        return sum(thing.kind == kind for thing in self.objects)


def generate(seed: int, index: int, split: Split) -> Scene:
    """Return scene number `index` of a seed: the same scene on every machine.

    Args:
        seed: names an endless series of scenes.
        index: position in that series.
        split: the side it must fall on; arrangements of the other side are drawn again.
    """
    rng = random.Random(f"{split}/{seed}/{index}")
    while True:
        scene = _draw_scene(rng)
        if scene.split == split:
            return scene


def generate_distinct(seed: int, count: int, split: Split) -> list[Scene]:
    """Return `count` scenes of a seed, no two of the same arrangement."""
    scenes: dict[tuple, Scene] = {}
    index = 0
    while len(scenes) < count:
        scene = generate(seed, index, split)
        scenes.setdefault(scene.arrangement, scene)
        index += 1
    return list(scenes.values())


def _draw_scene(rng: random.Random) -> Scene:
    theme = rng.choice(THEMES)
    weights = [KIND_WEIGHTS[kind] * (THEME_BOOST if kind in theme else 1.0) for kind in KINDS]
    count = rng.choices(list(OBJECT_COUNT_WEIGHTS), list(OBJECT_COUNT_WEIGHTS.values()))[0]
    kinds: list[str] = []
    for _ in range(count):
        repeat = kinds and rng.random() < REPEAT_SHARE
        kinds.append(rng.choice(kinds) if repeat else rng.choices(KINDS, weights)[0])
    cells = sorted(rng.sample(range(len(PLACES)), count))
    rng.shuffle(kinds)
    objects = tuple(_place(rng, kind, cell) for kind, cell in zip(kinds, cells, strict=True))
    return Scene(objects, _draw_background(rng))


def _place(rng: random.Random, kind: str, cell: int) -> SceneObject:
    color = rng.choice(list(COLORS))
    size = rng.uniform(SMALLEST, LARGEST)
    slack = (CELL - size) / 2
    row, column = divmod(cell, 3)
    red, green, blue = COLORS[color]
    return SceneObject(
        kind=kind,
        color=color,
        place=PLACES[cell],
        x=round((column + 0.5) * CELL + rng.uniform(-slack, slack), 2),
        y=round((row + 0.5) * CELL + rng.uniform(-slack, slack), 2),
        size=round(size, 2),
        tilt=round(rng.uniform(-12, 12), 1),
        rgb=(_vary(rng, red), _vary(rng, green), _vary(rng, blue)),
    )


def _vary(rng: random.Random, channel: int) -> int:
    return min(255, max(0, channel + rng.randint(-10, 10)))


def _draw_background(rng: random.Random) -> Background:
    first, second = rng.sample(TINTS, 2)
    return Background(rng.choice(BACKGROUND_STYLES), first, second, rng.choice((0, 45, 90, 135)), rng.getrandbits(32))
