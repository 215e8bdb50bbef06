"""Image shards: what goes in comes out, by name and in order, and other tools can read it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from multimodal_gemma.data.shards import ImageShards, image_id, read_shard, write_image_shards, write_names
from multimodal_gemma.errors import InputError

IMAGES = [(f"{number:012d}.jpg", bytes([number % 251]) * (1000 + number)) for number in range(40)]


def test_every_byte_comes_back_by_name_and_in_order(tmp_path: Path) -> None:
    write_image_shards(tmp_path, IMAGES)
    shards = ImageShards(tmp_path)
    assert [(name, content) for name, _, content in read_shard(tmp_path / "images-00000.parquet")] == IMAGES
    assert shards.names() == [name for name, _ in IMAGES]
    for name, content in reversed(IMAGES):
        assert shards.read(name) == content


def test_a_shard_never_grows_beyond_its_limit(tmp_path: Path) -> None:
    paths = write_image_shards(tmp_path, IMAGES, max_bytes=10_000)
    assert len(paths) > 4
    for path in paths:
        held = [len(content) for content in pq.read_table(path, columns=["bytes"]).column(0).to_pylist()]
        assert sum(held) <= 10_000
    assert [(name, ImageShards(tmp_path).read(name)) for name, _ in IMAGES] == IMAGES


def test_an_image_larger_than_a_shard_has_one_to_itself(tmp_path: Path) -> None:
    assert (
        len(write_image_shards(tmp_path, [("a", b"1" * 50), ("b", b"2" * 500), ("c", b"3" * 50)], max_bytes=100)) == 3
    )
    assert ImageShards(tmp_path).read("b") == b"2" * 500


def test_large_images_are_split_into_groups_that_are_read_alone(tmp_path: Path) -> None:
    (path,) = write_image_shards(tmp_path, [(str(number), bytes(3_000_000)) for number in range(4)])
    assert pq.ParquetFile(path).num_row_groups == 2


MANY_READERS = """
import concurrent.futures, pathlib, random, sys
from multimodal_gemma.data.shards import ImageShards, write_image_shards
folder = pathlib.Path(sys.argv[1])
images = {str(number): random.Random(number).randbytes(1_500_000) for number in range(16)}
write_image_shards(folder, images.items())
shards = ImageShards(folder)
asked = random.Random(1).choices(list(images), k=400)
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    assert all(content == images[name] for name, content in zip(asked, pool.map(shards.read, asked)))
"""


def test_many_threads_read_one_folder(tmp_path: Path) -> None:
    """In a process of its own: a reader shared without a lock takes the whole process down."""
    done = subprocess.run([sys.executable, "-c", MANY_READERS, str(tmp_path)], check=False, timeout=300)
    assert done.returncode == 0


def test_the_columns_are_those_that_the_artifact_page_promises(tmp_path: Path) -> None:
    (path,) = write_image_shards(tmp_path, [("coco/train2017/000000310196.jpg", b"pixels")])
    (row,) = pq.read_table(path).to_pylist()
    assert row == {
        "image_id": "000000310196",
        "file_name": "coco/train2017/000000310196.jpg",
        "bytes": b"pixels",
        "sha256": hashlib.sha256(b"pixels").hexdigest(),
    }


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    (one,) = write_image_shards(tmp_path / "one", IMAGES)
    (two,) = write_image_shards(tmp_path / "two", IMAGES)
    assert one.read_bytes() == two.read_bytes()


def test_two_names_of_one_picture_share_its_row(tmp_path: Path) -> None:
    write_image_shards(tmp_path, [("gqa/1.jpg", b"pixels"), ("gqa/2.jpg", b"others")])
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in (("p", b"pixels"), ("o", b"others"))}
    write_names(tmp_path, {"vg/7.jpg": digests["p"], "gqa/1.jpg": digests["p"], "gqa/2.jpg": digests["o"]})
    shards = ImageShards(tmp_path)
    assert (len(shards), shards.names()) == (2, ["gqa/1.jpg", "gqa/2.jpg", "vg/7.jpg"])
    assert shards.read("vg/7.jpg") == shards.read("gqa/1.jpg") == b"pixels"
    assert shards.sha256("vg/7.jpg") == digests["p"]


def test_no_image_makes_no_shard(tmp_path: Path) -> None:
    assert write_image_shards(tmp_path, []) == []
    assert ImageShards(tmp_path).names() == []


def test_an_unknown_image_is_a_sentence(tmp_path: Path) -> None:
    write_image_shards(tmp_path, IMAGES[:1])
    with pytest.raises(InputError, match=r"holds no image 'x.jpg'"):
        ImageShards(tmp_path).read("x.jpg")


def test_a_broken_shard_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "images-00000.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(InputError, match="no readable Parquet"):
        ImageShards(tmp_path)


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
