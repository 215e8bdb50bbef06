"""Images in several places, told apart by how their names begin.

Mixed datasets name images of COCO, GQA, OCR-VQA, TextVQA and Visual Genome side by side: `coco/train2017/….jpg`,
`gqa/images/….jpg`. Each prefix has its own location; what follows the prefix is the name there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from multimodal_gemma import files
from multimodal_gemma.data.sources.base import Source, Unavailable
from multimodal_gemma.errors import InputError


def parse_root(text: str) -> tuple[str, str]:
    """Return prefix and location of an entry of data.image_roots.

    Raises:
        InputError: it is not PREFIX=LOCATION.
    """
    prefix, _, location = text.partition("=")
    if not prefix or not location or "://" in prefix:
        raise InputError(
            f"config: data.image_roots holds {text!r}. Write PREFIX=LOCATION, e.g. 'gqa/images/=s3://bucket/gqa/'."
        )
    return prefix, location if "://" in location else Path(location).expanduser().resolve().as_uri()


class RootedSource(Source):
    """Sources by the prefix of the names that they hold; the longest prefix that fits decides.

    Args:
        roots: source by prefix; "" takes every name that no other prefix fits.
    """

    def __init__(self, roots: Mapping[str, Source]) -> None:
        super().__init__(", ".join(dict.fromkeys(source.uri for source in roots.values())))
        self._roots = dict(sorted(roots.items(), key=lambda item: -len(item[0])))

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the bytes of one file, see `Source.read`."""
        source, rest = self._place(name)
        return source.read(rest, max_bytes)

    def fetch(self, name: str | None, destination: Path, max_bytes: int | None = None) -> None:
        """Write one file, see `Source.fetch`."""
        if name is None:
            raise InputError(f"download: {self.uri} are several places, not one file. Name a file in them.")
        source, rest = self._place(name)
        source.fetch(rest, destination, max_bytes)

    def exists(self, name: str) -> bool:
        """Return whether the place that a name belongs to holds it."""
        try:
            source, rest = self._place(name)
        except Unavailable:
            return False
        return source.exists(rest)

    def names(self) -> list[str]:
        """Return the names in all places, each with its prefix."""
        return sorted(prefix + name for prefix, source in self._roots.items() for name in source.names())

    def fingerprint(self, *names: str) -> str:
        """Return a digest of the places' fingerprints."""
        return files.digest_of({prefix: source.fingerprint() for prefix, source in self._roots.items()})

    def describe(self) -> dict[str, str]:
        """Return the location of each prefix."""
        return {prefix: source.uri for prefix, source in self._roots.items()}

    def _place(self, name: str) -> tuple[Source, str]:
        for prefix, source in self._roots.items():
            if name.startswith(prefix):
                return source, name.removeprefix(prefix)
        raise Unavailable("no prefix of data.image_roots fits its name")
