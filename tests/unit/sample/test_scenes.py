"""Scenes: the same everywhere, split for good, and drawn as they say."""

import math
from collections import Counter

from multimodal_gemma.sample.drawing import draw
from multimodal_gemma.sample.scenes import CELL, COLORS, IMAGE_SIZE, KINDS, PLACES, generate, generate_distinct


def test_a_seed_names_the_same_scene_wherever_it_is_drawn():
    scene = generate(7, 3, "train")
    assert scene.arrangement == (("ball", "red", "left"), ("ball", "orange", "bottom left"))
    assert generate(7, 3, "train") == scene
    assert generate(8, 3, "train") != scene


def test_no_seed_can_leak_a_held_out_arrangement_into_training():
    training = {generate(seed, index, "train").arrangement for seed in range(5) for index in range(200)}
    held_out = {scene.arrangement for scene in generate_distinct(11, 200, "held_out")}
    assert len(held_out) == 200
    assert not training & held_out


def test_objects_stay_apart_in_the_cell_they_are_said_to_be_in():
    for index in range(200):
        for thing in generate(1, index, "train").objects:
            row, column = divmod(PLACES.index(thing.place), 3)
            for centre, cell in ((thing.x, column), (thing.y, row)):
                assert cell * CELL - 0.02 <= centre - thing.size / 2
                assert centre + thing.size / 2 <= (cell + 1) * CELL + 0.02


def test_a_picture_shows_the_color_that_its_truth_names():
    solid = ("ball", "box", "star", "cross", "triangle")  # kinds whose centre is filled
    checked = 0
    for index in range(60):
        scene = generate(2, index, "train")
        image = draw(scene)
        assert (image.mode, image.size) == ("RGB", (IMAGE_SIZE, IMAGE_SIZE))
        for thing in scene.objects:
            if thing.kind in solid:
                seen = image.getpixel((round(thing.x), round(thing.y)))
                assert min(COLORS, key=lambda name: math.dist(seen, COLORS[name])) == thing.color
                checked += 1
    assert checked > 50


def test_kinds_are_frequent_and_keep_company_unequally():
    scenes = [generate(3, index, "train") for index in range(1500)]
    frequency = Counter(kind for scene in scenes for kind in scene.kinds)
    assert set(frequency) == set(KINDS)
    assert frequency["ball"] > 1.5 * frequency["ring"]

    def share_of_moons_beside(kind: str) -> float:
        beside = [scene for scene in scenes if kind in scene.kinds]
        return sum("moon" in scene.kinds for scene in beside) / len(beside)

    assert share_of_moons_beside("star") > 1.2 * share_of_moons_beside("triangle")
