"""Where datasets, photographs and base models come from, each place behind one interface.

A location is one URI: `sample://`, `file:///folder`, `hf://datasets/ORG/NAME@REVISION/file`, `https://…`,
`s3://bucket/prefix`, `gs://bucket/prefix`.
What lies there is treated as hostile: names stay below their location, sizes are capped, hosts are listed.
"""

from __future__ import annotations

from multimodal_gemma.config.schema import DataConfig
from multimodal_gemma.data.sources.base import Source, Unavailable, Unreachable
from multimodal_gemma.data.sources.retrying import LIMIT
from multimodal_gemma.errors import InputError

__all__ = ["SCHEMES", "Source", "Unavailable", "Unreachable", "open"]

SCHEMES = ("sample", "file", "hf", "https", "s3", "gs")


def open(uri: str, data: DataConfig, part: str = "", patience: float = LIMIT) -> Source:
    """Return the source behind a location; nothing is fetched yet.

    Args:
        uri: the location.
        data: the sample's settings and the hosts that https:// may name.
        part: folder of the generated sample that `sample://` means: "" (conversations), "images", "pope", "vqa" or
            "instances".
        patience: seconds without progress after which a place on the network is down.

    Raises:
        InputError: the scheme is unknown, the location is malformed, or its host is not allowed.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator:
        raise InputError(f"download: {uri!r} is no location. Write one as {_examples()}.")
    if scheme == "sample":
        from multimodal_gemma.data.sources.local import open_sample

        return open_sample(uri, data.sample, part)
    if scheme == "file":
        from multimodal_gemma.data.sources.local import LocalSource

        return LocalSource.from_uri(uri)
    if scheme == "hf":
        from multimodal_gemma.data.sources.hub import HubSource

        return HubSource(uri, require_commit=data.require_commits, patience=patience)
    if scheme in ("https", "http"):
        from multimodal_gemma.data.sources.web import WebSource

        return WebSource(uri, data.allowed_hosts, patience)
    if scheme == "s3":
        from multimodal_gemma.data.sources.buckets import S3Source

        return S3Source(uri, patience)
    if scheme == "gs":
        from multimodal_gemma.data.sources.buckets import GcsSource

        return GcsSource(uri, patience)
    raise InputError(f"download: {uri} has the unknown scheme {scheme}://. Write a location as {_examples()}.")


def _examples() -> str:
    return "sample://, file:///folder, hf://datasets/ORG/NAME@REVISION/file, https://HOST/PATH, s3://BUCKET/PREFIX or gs://…"
