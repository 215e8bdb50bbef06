"""`hf://ORG/NAME`: a verified export as a model repository of the Hugging Face hub, or of the mirror at HF_ENDPOINT.

The hub wants the model at the root of a repository, where `from_pretrained("ORG/NAME")` looks for it: what the export
has in model/ goes there, the other formats beside it in their folders. One commit holds everything, so that a
repository is never half of one model and half of another; its id is what is printed, for a name without it may hold
another model tomorrow.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from multimodal_gemma import files, logs, manifest
from multimodal_gemma.errors import InputError
from multimodal_gemma.export import verify

_ROOT = "model/"
# What speaks of the export's own layout, and what is a repository of its own kind.
_LEFT = ("SHA256SUMS", verify.SCRIPT, f"{verify.REFERENCES}/", "space/")


def upload(folder: Path, location: str) -> str:
    """Upload an export, verified before and after.

    Args:
        folder: a finished export.
        location: `hf://ORG/NAME`; the token is HF_TOKEN, or the one that `hf auth login` keeps.

    Returns:
        `hf://ORG/NAME@COMMIT`.

    Raises:
        InputError: the export differs from its checksums or from the trained model, the hub refuses, or holds other
            bytes afterwards.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

    made = manifest.verify(folder, "export")
    verify.run(folder)
    name = location.removeprefix("hf://")
    sent = {_at(path): folder / path for path in made.files if not path.startswith(_LEFT)}
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)  # now, not as it was when the library was imported
    try:
        hub.create_repo(name, repo_type="model", exist_ok=True)
        commit = hub.create_commit(
            name,
            [CommitOperationAdd(path, str(source)) for path, source in sorted(sent.items())],
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
    wrong = [path for path, source in sent.items() if path not in there or not _same(there[path], source)]
    if wrong:
        raise InputError(f"export: {name} at {commit} holds other bytes of {wrong[0]} than were sent. Publish again.")
    logs.get("export").info(f"{location}@{commit}: {len(sent)} files, each compared with what was sent")
    return f"{location}@{commit}"


def _at(path: str) -> str:
    """Return where a file of the export goes in the repository."""
    return path.removeprefix(_ROOT)


def _same(entry: Any, source: Path) -> bool:
    """Compare a file with what the hub states: the sha256 of a large one, git's own digest of a small one."""
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == files.sha256_file(source))
    content = source.read_bytes()
    return bool(entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest())
