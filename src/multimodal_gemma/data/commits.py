"""Which shards of an unfinished download are done, so that an interrupted one continues where it was.

A shard is recorded with its sha256 when it lies whole on the disk. A later attempt keeps it as long as its bytes are
those of the record and every image in it is still wanted, and fetches only the images that no kept shard holds. A
finished dataset that grows is the same case: its shards stay as they are, and new ones are added.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from multimodal_gemma import files
from multimodal_gemma.data.shards import PATTERN, read_shard
from multimodal_gemma.errors import InputError

COMMITS = "commits.json"


class Commits:
    """The finished shards of a folder.

    Args:
        folder: where the shards are; those that cannot be kept are deleted.
        record: the file of the record, absent at first.
        names: every image that is wanted.
    """

    def __init__(self, folder: Path, record: Path, names: Collection[str]) -> None:
        self._record = record
        self.shards: list[Path] = []
        self.held: set[str] = set()
        self.image_bytes = 0
        wanted = set(names)
        for row in files.read_json(record, "download")["shards"] if record.is_file() else []:
            path = folder / row["shard"]
            if not path.is_file() or files.sha256_file(path) != row["sha256"]:
                break
            images = [(name, len(content)) for name, _, content in read_shard(path)]
            if not wanted.issuperset(name for name, _ in images):
                break
            self.shards.append(path)
            self.held.update(name for name, _ in images)
            self.image_bytes += sum(size for _, size in images)
        for path in folder.glob(PATTERN):
            if path not in self.shards:
                path.unlink()
        if not self.shards:
            record.unlink(missing_ok=True)

    def add(self, shard: Path) -> None:
        """Record a shard that lies whole on the disk."""
        self.shards.append(shard)
        value = files.read_json(self._record, "download") if self._record.is_file() else {}
        kept = {row["shard"]: row["sha256"] for row in value.get("shards", [])}
        sums = {path.name: kept.get(path.name) or files.sha256_file(path) for path in self.shards[:-1]}
        sums[shard.name] = files.sha256_file(shard)
        write(self._record, sums, value.get("extends", ""), value.get("base", 0))


def write(record: Path, sums: dict[str, str], extends: str = "", base: int = 0) -> None:
    """Write the record of finished shards.

    Args:
        record: the file.
        sums: sha256 by shard, in order.
        extends: manifest digest of the finished artifact that the first of them come from, "" for none.
        base: how many come from there.
    """
    rows = [{"shard": name, "sha256": digest} for name, digest in sums.items()]
    files.write_json(record, {"extends": extends, "base": base, "shards": rows})


def extended(record: Path) -> dict[str, str]:
    """Return the fact that an artifact has the shards of another one and more, {} if it does not.

    Raises:
        InputError: the record cannot be read.
    """
    value = files.read_json(record, "download") if record.is_file() else {}
    if not isinstance(value, dict):
        raise InputError(f"download: {record} is no record of shards. Delete its folder and run again.")
    grown = value.get("extends") and len(value["shards"]) > value["base"]
    return {"extends": value["extends"]} if grown else {}
