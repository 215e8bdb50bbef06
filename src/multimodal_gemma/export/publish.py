"""`mmgemma export --publish s3://…`: a verified export under a prefix that its digest names.

A digest-addressed prefix is never overwritten by another model, so a server that reads it serves what was scored, and
rolling back is a change of address. Every object is read back and compared; the manifest goes last, so a prefix that
has one is whole.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from multimodal_gemma import files, logs, manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.export import verify
from multimodal_gemma.progress import Progress

_CHUNK = 1 << 20  # bytes read back at a time


def check(location: str) -> None:
    """Check the form of a place to publish to; "" is none.

    Raises:
        InputError: it is none.
    """
    if location and not (_place(location, "s3://") or re.fullmatch(r"hf://[\w.-]+/[\w.-]+", location)):
        raise InputError(f"export: {location} is no place to publish to. Write s3://BUCKET/PREFIX or hf://ORG/NAME.")


def publish(folder: Path, location: str) -> str:
    """Upload an export whose gate passed; return its address, pinned to these very bytes.

    Raises:
        InputError: no gate vouches for it, it is unfinished, differs from its checksums or from the trained model, or
            the store or the hub refuses.
    """
    check(location)
    if "registration" not in manifest.verify(folder, "export").inputs:
        raise InputError(
            f"export: {folder} was made without a registration, so no gate vouches for it and it is not published. "
            "Export again with --registration."
        )
    if location.startswith("hf://"):
        from multimodal_gemma.export import hub

        return hub.upload(folder, location)
    return to_s3(folder, location)


def _place(location: str, scheme: str) -> bool:
    return location.startswith(scheme) and bool(location.removeprefix(scheme).partition("/")[0])


def to_s3(folder: Path, location: str) -> str:
    """Upload an export; what lies there already with the same bytes is not sent again.

    Args:
        folder: a finished export.
        location: `s3://BUCKET/PREFIX`; endpoint and credentials come from the environment, see data/sources/s3.py.

    Returns:
        `s3://BUCKET/PREFIX/DIGEST`.

    Raises:
        InputError: the export is unfinished, differs from its checksums or from the trained model, or the store
            refuses.
    """
    import urllib3
    from minio.error import MinioException

    from multimodal_gemma.data.sources import s3

    check(location)
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    made = manifest.verify(folder, "export")
    verify.run(folder)
    base = "/".join(part for part in (prefix.strip("/"), made.digest) if part)
    client = s3.client()
    sent = 0
    try:
        with Progress("publish", len(made.files) + 1, "file") as progress:
            for name in [*sorted(made.files), manifest.NAME]:
                path = folder / name
                digest = files.sha256_file(path)
                if _digest(client, bucket, f"{base}/{name}") != digest:
                    client.fput_object(bucket, f"{base}/{name}", str(path), metadata={"sha256": digest})
                    sent += 1
                    if (there := _digest(client, bucket, f"{base}/{name}")) != digest:
                        raise InputError(
                            f"export: {name} has sha256 {there or 'none'} in the store, not {digest}. Publish again."
                        )
                progress.advance()
    except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
        raise InputError(
            f"export: the store does not take {location} ({_reason(error)}). Check AWS_ENDPOINT_URL, the credentials "
            "and the bucket; what was sent is kept."
        ) from None
    logs.get("export").info("s3://%s/%s: %s of %s files sent, all read back", bucket, base, sent, len(made.files) + 1)
    return f"s3://{bucket}/{base}"


def _digest(client: Any, bucket: str, key: str) -> str:
    """Return the sha256 of an object's bytes as the store gives them; "" if there is no such object."""
    from minio.error import S3Error

    try:
        answer = client.get_object(bucket, key)
    except S3Error as error:
        if error.code in ("NoSuchKey", "NoSuchObject"):
            return ""
        raise
    try:
        digest = hashlib.sha256()
        for piece in answer.stream(_CHUNK):
            digest.update(piece)
    finally:
        answer.close()
        answer.release_conn()
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    code = getattr(error, "code", "")
    return str(code or (str(error).splitlines() or [type(error).__name__])[0][:200])
