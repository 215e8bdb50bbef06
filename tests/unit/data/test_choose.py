from __future__ import annotations

import hashlib

import numpy as np

from multimodal_gemma.data.choose import eldest, split_of, text_key
from multimodal_gemma.data.conversations import Conversation, Turn

IDS = [f"{number:012d}" for number in range(20_000)]


def held_out(ids: list[str], fraction: float, seed: int = 42) -> set[str]:
    return {name for name in ids if split_of(name, fraction=fraction, seed=seed) == "val"}


def test_the_rule_is_the_documented_one() -> None:
    """Anybody can compute where an image is: sha256, first 64 bits, as a fraction."""
    name = "000000310196"
    digest = hashlib.sha256(f"multimodal-gemma/split:42:{name}".encode()).hexdigest()
    place = int(digest[:16], 16) / 2**64
    assert split_of(name, fraction=place + 1e-9, seed=42) == "val"
    assert split_of(name, fraction=place - 1e-9, seed=42) == "train"


def test_added_images_move_no_other_image() -> None:
    assert held_out(IDS, 0.02) & set(IDS[::3]) == held_out(IDS[::3], 0.02)


def test_a_larger_fraction_keeps_what_a_smaller_one_held_out() -> None:
    assert held_out(IDS, 0.02) < held_out(IDS, 0.05)


def test_the_share_held_out_is_the_fraction() -> None:
    share = len(held_out(IDS, 0.05)) / len(IDS)
    assert abs(share - 0.05) < 4 * (0.05 * 0.95 / len(IDS)) ** 0.5  # four standard deviations of a binomial share


def test_another_seed_holds_other_images_out() -> None:
    assert len(held_out(IDS, 0.05, seed=1) & held_out(IDS, 0.05, seed=2)) < 0.01 * len(IDS)


def test_a_fraction_of_zero_holds_nothing_out() -> None:
    assert not held_out(IDS, 0.0)


def test_texts_are_split_by_what_they_say() -> None:
    """Whatever their ids: the same text is never learnt and validated on."""
    one, same = (Conversation(name, None, [Turn("user", "Hi."), Turn("assistant", "Hello.")]) for name in ("1", "2"))
    other = Conversation("1", None, [Turn("user", "Hi."), Turn("assistant", "Hello!")])
    assert text_key(one) == text_key(same) != text_key(other)


def test_near_copies_follow_one_of_them() -> None:
    """Always the one with the smallest sha256, so that their order does not matter; the others follow nobody."""
    digests = ["cc", "aa", "dd", "bb"]
    assert eldest(digests, np.array([0, 1, 0, 0])) == {"cc": "bb", "dd": "bb", "bb": "bb"}
    assert eldest(digests, np.array([0, 1, 2, 3])) == {}
    assert eldest([], np.empty(0, int)) == {}
