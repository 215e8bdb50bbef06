"""One photograph has one identity across releases; contamination would go unseen without it."""

from __future__ import annotations

import pytest

from multimodal_gemma.data.image_names import image_id, vqa_file_name


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("COCO_val2014_000000310196.jpg", "000000310196"),
        ("coco/train2017/000000310196.jpg", "000000310196"),
        ("000000310196.jpg", "000000310196"),
        ("gqa/images/2370799.jpg", "gqa/images/2370799.jpg"),
        ("vg/VG_100K/1.jpg", "vg/VG_100K/1.jpg"),
        ("0000003101961.jpg", "0000003101961.jpg"),  # thirteen digits are no COCO id
        ("000000310196/picture.jpg", "000000310196/picture.jpg"),  # a folder is no identity
    ],
)
def test_the_twelve_digits_of_coco_are_the_identity(name: str, identity: str) -> None:
    assert image_id(name) == identity


def test_vqa_images_are_called_as_coco_released_them() -> None:
    assert vqa_file_name(262148, "val2014") == "COCO_val2014_000000262148.jpg"
    assert vqa_file_name(262148, "train2014") == "COCO_train2014_000000262148.jpg"
    assert vqa_file_name(79841, "train2017") == "000000079841.jpg"
    assert vqa_file_name(900001, "held_out") == "000000900001.jpg"
