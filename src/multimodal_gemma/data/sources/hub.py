"""The Hugging Face hub or a mirror of it: `hf://ORG/NAME@REVISION`, `hf://datasets/ORG/NAME@REVISION/file`.

A branch name is resolved to its commit once, and everything is fetched at that commit. HF_ENDPOINT names a mirror,
HF_TOKEN opens gated repositories, and the library's own cache resumes what was interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from multimodal_gemma import files
from multimodal_gemma.data.sources import retrying
from multimodal_gemma.data.sources.base import Unavailable, Unreachable, check_size, place, safe_name
from multimodal_gemma.data.sources.transfer import RemoteSource
from multimodal_gemma.errors import InputError
from multimodal_gemma.progress import BYTES, Progress

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LOCATION = re.compile(  # a revision as the file system of huggingface_hub reads it
    r"hf://(?P<kind>datasets/|models/)?(?P<repo>(?!datasets/|models/|spaces/)[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/pr/\d+|refs/convert/\w+|[^/]+))?(?:/(?P<path>.*))?"
)
_TOKEN = "the environment variable HF_TOKEN (on a cluster the key token of the Secret huggingface)"
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubSource(RemoteSource):
    """A repository, a folder in it, or one file of it.

    Args:
        uri: the location; without a revision it is the branch main.
        require_commit: refuse a branch or tag, which may name something else tomorrow.
        patience: see `RemoteSource`.

    Raises:
        InputError: the location is malformed, or names no commit where one is demanded.
    """

    def __init__(self, uri: str, *, require_commit: bool = False, patience: float = retrying.LIMIT) -> None:
        super().__init__(uri, patience)
        found = _LOCATION.fullmatch(uri)
        if found is None:
            raise InputError(
                f"download: {uri} is no location on the hub. Write hf://ORG/NAME@REVISION for a model, "
                "hf://datasets/ORG/NAME@REVISION/FILE for a file of a dataset."
            )
        self._type = "dataset" if found["kind"] == "datasets/" else "model"
        self._repo, self._path = found["repo"], (found["path"] or "").strip("/")
        self._prefix = f"{self._path}/" if self._path else ""
        self._revision = unquote(found["revision"] or "main")  # a branch with a slash is written with %2F
        if require_commit and not _COMMIT.fullmatch(self._revision):
            raise InputError(
                f"download: {uri} names the revision {self._revision!r}, which is no commit, and data.require_commits "
                "demands one. Write @ and the 40 hexadecimal digits of a commit."
            )

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the bytes of one file, see `Source.read`."""
        return self._cached(name, max_bytes, one_of_many=True).read_bytes()

    def fetch(self, name: str | None, destination: Path, max_bytes: int | None = None) -> None:
        """Write one file, linked to the hub's cache where that works; see `Source.fetch`."""
        place(self._cached(name, max_bytes), destination)

    def exists(self, name: str) -> bool:
        """Return whether the repository holds that file at the resolved commit."""
        return safe_name(name) in self.names()

    def names(self) -> list[str]:
        """Return every file below the location at the resolved commit."""
        return [path.removeprefix(self._prefix) for path in self._listing if path.startswith(self._prefix)]

    def fingerprint(self, *names: str) -> str:
        """Return a digest of repository, path and commit."""
        return files.digest_of([self._type, self._repo, self._path, self.commit])

    def stamp(self, name: str) -> str:
        """Return the identity of a file's content, which stays from commit to commit."""
        return self._listing.get(f"{self._prefix}{name}", ("", 0))[0]

    def facts(self) -> dict[str, str]:
        """Return size and sha256 of each file; of a small one, which the hub keeps in git, git's own digest."""
        return {
            path: f"{size} bytes, {'sha256' if len(known) == 64 else 'git'} {known}"
            for path, (known, size) in self._listing.items()
            if f"{path}/".startswith(self._prefix)
        }

    def describe(self) -> dict[str, str]:
        """Return the location, the commit that it resolved to and the licence that its card states."""
        return {"uri": self.uri, "commit": self.commit, **({"licence": self._licence} if self._licence else {})}

    @functools.cached_property
    def _licence(self) -> str:
        try:
            found = self._ask(lambda: self._info(self.commit))
        except Unavailable:
            return ""
        licence = (getattr(found, "card_data", None) or {}).get("license") or ""
        return ", ".join(licence) if isinstance(licence, list) else str(licence)

    @property
    def _page(self) -> str:
        kind = "datasets/" if self._type == "dataset" else ""
        return f"{(os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')}/{kind}{self._repo}"

    @functools.cached_property
    def commit(self) -> str:
        """The commit that the revision names; asked once."""
        if _COMMIT.fullmatch(self._revision):
            return self._revision
        return str(self._told(lambda: self._info(self._revision)).sha)

    def _info(self, revision: str) -> Any:
        return self._api.repo_info(self._repo, repo_type=self._type, revision=revision)

    def _told(self, question: Callable[[], Any]) -> Any:
        try:
            return self._ask(question)
        except Unavailable as error:
            raise InputError(f"download: {self.uri}: {error}. Check the name and the connection.") from None

    @functools.cached_property
    def _listing(self) -> dict[str, tuple[str, int]]:
        """Every file of the commit, with the identity of its content and its size."""
        from huggingface_hub.hf_api import RepoFile

        tree = functools.partial(self._api.list_repo_tree, self._repo, repo_type=self._type, revision=self.commit)
        found = self._told(lambda: list(tree(recursive=True)))
        whole = (item for item in found if isinstance(item, RepoFile))
        return {
            item.path: (item.lfs.sha256 if item.lfs else item.blob_id, item.size)
            for item in sorted(whole, key=lambda item: item.path)
        }

    @functools.cached_property
    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)

    def _cached(self, name: str | None, max_bytes: int | None, *, one_of_many: bool = False) -> Path:
        path = self._path if name is None else f"{self._prefix}{safe_name(name)}"
        if not path:
            raise InputError(f"download: {self.uri} names a repository, not a file in it. Append /FILE.")
        fetch = functools.partial(
            self._api.hf_hub_download, self._repo, path, repo_type=self._type, revision=self.commit,
            tqdm_class=_bar(self._patience),
        )  # fmt: skip
        cached = Path(self._ask(fetch, one_of_many=one_of_many))
        check_size(cached.stat().st_size, max_bytes)
        return cached

    @contextlib.contextmanager
    def _spoken(self) -> Iterator[None]:
        from huggingface_hub import errors

        try:
            yield
        except errors.GatedRepoError:
            raise InputError(
                f"download: {self._repo} is gated. Accept its licence at {self._page}, then give an access token in "
                f"{_TOKEN}."
            ) from None
        except errors.RepositoryNotFoundError:
            raise InputError(
                f"download: the hub has no {self._type} {self._repo}, or it is private. "
                f"Check the name, or give an access token in {_TOKEN}."
            ) from None
        except errors.RevisionNotFoundError:
            raise InputError(f"download: {self._repo} has no revision {self._revision!r}. Check {self.uri}.") from None
        except errors.LocalEntryNotFoundError:
            raise retrying.Transient("the hub does not answer") from None
        except errors.EntryNotFoundError:
            raise Unavailable("no such file") from None
        except errors.OfflineModeIsEnabled:
            raise Unreachable("the hub is switched off by HF_HUB_OFFLINE") from None
        except errors.HFValidationError as error:
            raise InputError(f"download: {self.uri} is no location on the hub ({error}).") from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise InputError(
                    f"download: the hub refuses {self._repo} ({status}). Give an access token that may read it in "
                    f"{_TOKEN}; if {self._page} shows a licence, accept it there first."
                ) from None
            if status == 429 or status >= 500:
                raise retrying.Transient(f"the hub answers {status}") from None
            raise Unavailable(f"the hub answers {status}") from None
        except errors.HTTPError as error:
            raise retrying.Transient(f"the hub does not answer ({type(error).__name__})") from None
        except OSError as error:
            raise Unavailable(f"the hub's cache cannot be written: {error.strerror or error}") from None


def _bar(patience: retrying.Patience) -> Any:
    """Return the class of the bars that the library moves as bytes arrive, shown as everywhere here."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *_: Any, total: int | None = None, initial: int = 0, desc: str = "", **__: Any) -> None:
            super().__init__(total=total, initial=initial, disable=True)
            self._shown = Progress(
                "download", total, BYTES, done=initial, name=desc.partition(": ")[0].rpartition("/")[2]
            )

        def update(self, n: float | None = 1) -> None:
            self._shown.advance(int(n or 0))
            patience.progressed()

        def update_transfer(self, n: float) -> None:
            """Take what arrives before it is put together (Xet): it stands in no bar of its own."""
            patience.progressed()

        def close(self) -> None:
            if hasattr(self, "_shown"):
                self._shown.close()

    return Bar
