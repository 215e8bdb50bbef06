"""One identity for one photograph, whatever the dataset calls its file.

COCO's picture 310196 is `COCO_val2014_000000310196.jpg` in one release and `000000310196.jpg` in another. Both carry
the same twelve digits, and those tell whether a benchmark asks about a picture that was trained on.
"""

from __future__ import annotations

import re

_TWELVE_DIGITS = re.compile(r"(?<!\d)(\d{12})(?!\d)")


def image_id(file_name: str) -> str:
    """Return the twelve-digit COCO id in the last part of a file name, or the whole name where there is none.

    Args:
        file_name: e.g. "COCO_val2014_000000310196.jpg" or "coco/train2017/000000310196.jpg".

    Returns:
        E.g. "000000310196"; "gqa/images/2370799.jpg" stays as it is.
    """
    found = _TWELVE_DIGITS.search(file_name.rpartition("/")[2])
    return found.group(1) if found else file_name


def vqa_file_name(number: int, subtype: str) -> str:
    """Return the file name of a VQA v2 question's image.

    Args:
        number: the question's `image_id`.
        subtype: `data_subtype` of the question file; releases of 2014 put their name before the digits.

    Returns:
        E.g. "COCO_val2014_000000310196.jpg" for val2014, "000000310196.jpg" for train2017.
    """
    prefix = f"COCO_{subtype}_" if subtype.endswith("2014") else ""
    return f"{prefix}{number:012d}.jpg"
