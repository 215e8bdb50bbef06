"""`mmgemma export --publish`: a verified export in an object store or on a hub, compared with what then lies there.

`hf://ORG/NAME` gets it as a model repository (of the hub, or of the mirror at HF_ENDPOINT), `s3://BUCKET/PREFIX` under
a prefix that its digest names. Such a prefix is never overwritten by another model, so a server that reads it serves
what was scored, and rolling back is a change of address. The manifest goes last: a prefix that has one is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from multimodal_gemma import files, logs, manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.export import verify
from multimodal_gemma.progress import Progress

HUB_CARD, HUB_NAME = "hub/README.md", "ORG/NAME"  # the card for a hub, and what stands in it for the repository
# What speaks of the export's own layout, and what is a repository of its own kind.
_LEFT = ("SHA256SUMS", verify.SCRIPT, f"{verify.REFERENCES}/", "space/", "hub/")
_CHUNK = 1 << 20  # bytes read back at a time


def check(location: str) -> None:
    """Check the form of a place to publish to; "" is none.

    Raises:
        InputError: it is none.
    """
    if location and not re.fullmatch(r"s3://[^/]+(/.*)?|hf://[\w.-]+/[\w.-]+", location):
        raise InputError(f"export: {location} is no place to publish to. Write s3://BUCKET/PREFIX or hf://ORG/NAME.")


def publish(folder: Path, location: str, *, private: bool = True) -> str:
    """Upload an export whose gate passed; return its address, pinned to these very bytes.

    Args:
        folder: a finished export.
        location: see `check`. Endpoint and credentials of a store come from the environment (see
            data/sources/buckets.py), the token of a hub is HF_TOKEN, or the one that `hf auth login` keeps.
        private: of a repository that is made on a hub.

    Returns:
        `s3://BUCKET/PREFIX/DIGEST` or `hf://ORG/NAME@COMMIT`.

    Raises:
        InputError: no gate vouches for it, it is unfinished, differs from its checksums or from the trained model, or
            the store or the hub refuses or holds other bytes afterwards.
    """
    check(location)
    made = manifest.verify(folder, "export")
    if "registration" not in made.inputs:
        raise InputError(
            f"export: {folder} was made without a registration, so no gate vouches for it and it is not published. "
            "Export again with --registration."
        )
    verify.run(folder)
    if location.startswith("hf://"):
        return _to_hub(folder, made, location, private=private)
    return _to_s3(folder, made, location)


def _to_s3(folder: Path, made: manifest.Manifest, location: str) -> str:
    """Upload an export; what lies there already with the same bytes is not sent again."""
    import urllib3
    from minio.error import MinioException

    from multimodal_gemma.data.sources import buckets

    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    base = "/".join(part for part in (prefix.strip("/"), made.digest) if part)
    client = buckets.s3_client()
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
        with contextlib.closing(client.get_object(bucket, key)) as answer:
            digest = hashlib.sha256()
            for piece in answer.stream(_CHUNK):
                digest.update(piece)
            return digest.hexdigest()
    except S3Error as error:
        if error.code in ("NoSuchKey", "NoSuchObject"):
            return ""
        raise


def _reason(error: Exception) -> str:
    code = getattr(error, "code", "")
    return str(code or (str(error).splitlines() or [type(error).__name__])[0][:200])


def _to_hub(folder: Path, made: manifest.Manifest, location: str, *, private: bool) -> str:
    """Upload an export as a model repository.

    The hub wants the model at the root of a repository, where `from_pretrained("ORG/NAME")` looks for it: what the
    export has in model/ goes there, the other formats beside it in their folders, and the card that speaks of that
    place. One commit holds everything and deletes what is not of this export, so that a repository is never half of one
    model and half of another; its id is what is printed, for a name without it may hold another model tomorrow.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

    name = location.removeprefix("hf://")
    sent = {path.removeprefix("model/"): folder / path for path in made.files if not path.startswith(_LEFT)}
    content = {path: source.read_bytes() for path, source in sent.items() if path.endswith("README.md")}
    content["README.md"] = (folder / HUB_CARD).read_bytes()
    texts = {path: _named(text, name) for path, text in content.items()}
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)  # now, not as it was when the library was imported
    try:
        hub.create_repo(name, repo_type="model", exist_ok=True, private=private)
        gone = set(hub.list_repo_files(name)) - set(sent) - {".gitattributes"}
        commit = hub.create_commit(
            name,
            [
                *(CommitOperationAdd(path, texts.get(path, str(source))) for path, source in sorted(sent.items())),
                *(CommitOperationDelete(path) for path in sorted(gone)),
            ],
            commit_message=f"Export {made.digest[:12]}",
        ).oid
        there = {entry.path: entry for entry in hub.get_paths_info(name, sorted(sent), revision=commit)}
    except LocalTokenNotFoundError:
        raise InputError(
            f"export: {hub.endpoint} takes nothing without a token. Set HF_TOKEN, or log in with `hf auth login`."
        ) from None
    except (HfHubHTTPError, HTTPError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"it answers {status}" if status else type(error).__name__
        raise InputError(
            f"export: {hub.endpoint} does not take {name} ({reason}). Check the name, that the token may write there, "
            "and HF_ENDPOINT; publish again, what it has is not sent twice."
        ) from None
    wrong = [
        path for path, source in sent.items() if path not in there or not _same(there[path], texts.get(path, source))
    ]
    if wrong:
        raise InputError(f"export: {name} at {commit} holds other bytes of {wrong[0]} than were sent. Publish again.")
    logs.get("export").info(f"{location}@{commit}: {len(sent)} files, each compared with what was sent")
    return f"{location}@{commit}"


def _named(text: bytes, name: str) -> bytes:
    """Let a text speak of the repository instead of the export's model/."""
    return text.replace(HUB_NAME.encode(), name.encode()).replace(
        b'_pretrained("model")', f'_pretrained("{name}")'.encode()
    )


def _same(entry: Any, source: Path | bytes) -> bool:
    """Compare a file with what the hub states: the sha256 of a large one, git's own digest of a small one."""
    if entry.lfs is not None:
        own = files.sha256_file(source) if isinstance(source, Path) else hashlib.sha256(source).hexdigest()
        return bool(entry.lfs.sha256 == own)
    content = source if isinstance(source, bytes) else source.read_bytes()
    return bool(entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest())
