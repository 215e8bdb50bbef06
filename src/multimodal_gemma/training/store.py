"""Copies of checkpoints in an object store, so that a training outlives the machine that it runs on.

Each checkpoint is copied as soon as it is whole, and a training that starts on an empty disk fetches them. A copy's
manifest goes last: one without it was cut off and counts as absent. A store that is away while a training runs costs
the copy, not the training.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from multimodal_gemma import logs, manifest
from multimodal_gemma.data.sources import buckets
from multimodal_gemma.errors import InputError

_MANIFEST = re.compile(rf"(step-\d{{8}})/{re.escape(manifest.NAME)}")


class CheckpointStore:
    """Checkpoints below one prefix of a bucket.

    Args:
        uri: `s3://bucket/prefix`; endpoint and keys come from the environment, as for datasets.

    Raises:
        InputError: the location is malformed.
    """

    def __init__(self, uri: str) -> None:
        split = urlsplit(uri)
        if split.scheme != "s3" or not split.netloc:
            raise InputError(f"config: training.checkpoint_uri={uri} is no place in a store. Write s3://BUCKET/PREFIX.")
        self.uri, self._bucket, self._prefix = uri, split.netloc, split.path.strip("/")
        self._client = buckets.s3_client()

    def restore(self, folder: Path) -> None:
        """Fetch every whole checkpoint into an empty folder.

        Raises:
            InputError: the store cannot be asked, or the folder cannot be written.
        """
        with self._spoken():
            names = self._names()
            whole = sorted(match[1] for name in names if (match := _MANIFEST.fullmatch(name)))
            for step in whole:
                temporary = folder / f".{step}.tmp"
                shutil.rmtree(temporary, ignore_errors=True)
                for name in names:
                    if name.startswith(f"{step}/"):
                        target = temporary / name.removeprefix(f"{step}/")
                        self._client.fget_object(self._bucket, f"{self._prefix}/{name}", str(target))
                temporary.replace(folder / step)
        if whole:
            logs.get("train").info(f"{len(whole)} checkpoints came back from {self.uri}")

    def mirror(self, folder: Path, keep: set[int]) -> None:
        """Copy the checkpoints of `keep` that are not in the store yet, and delete the others there."""
        try:
            with self._spoken():
                names = self._names()
                there = {match[1] for name in names if (match := _MANIFEST.fullmatch(name))}
                wanted = {name for step in keep if (folder / (name := f"step-{step:08d}")).is_dir()}
                for step in sorted(wanted - there):
                    for path in sorted((folder / step).iterdir(), key=lambda path: path.name == manifest.NAME):
                        self._client.fput_object(self._bucket, f"{self._prefix}/{step}/{path.name}", str(path))
                # The manifest of what goes is deleted first, as a killed deletion must not leave a half that counts.
                gone = [name for name in names if name.partition("/")[0] not in wanted]
                for name in sorted(gone, key=lambda name: not name.endswith(manifest.NAME)):
                    self._client.remove_object(self._bucket, f"{self._prefix}/{name}")
        except InputError as error:
            logs.get("train").warning(f"{error} Training goes on; the next checkpoint is copied with this one.")

    def _names(self) -> list[str]:
        found = self._client.list_objects(self._bucket, prefix=f"{self._prefix}/", recursive=True)
        return [item.object_name.removeprefix(f"{self._prefix}/") for item in found]

    @contextlib.contextmanager
    def _spoken(self) -> Iterator[None]:
        import urllib3
        from minio.error import MinioException

        try:
            yield
        except (MinioException, urllib3.exceptions.HTTPError) as error:
            reason = getattr(error, "code", None) or type(error).__name__
            raise InputError(
                f"train: the store of training.checkpoint_uri, {self.uri}, cannot be used ({reason}). Check the "
                "bucket, AWS_ENDPOINT_URL and the keys."
            ) from None
