"""Objects of S3 or a store that speaks like it (MinIO, SeaweedFS): `s3://bucket/prefix`.

Endpoint and credentials come from the environment, where a cluster mounts them from a Secret: AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION. Without a key the store is asked anonymously.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from multimodal_gemma import files
from multimodal_gemma.data.sources import retrying
from multimodal_gemma.data.sources.base import Source, Unavailable, safe_name
from multimodal_gemma.errors import InputError

T = TypeVar("T")
_ENDPOINT = "https://s3.amazonaws.com"
_CONNECTIONS = 64  # kept alive in the pool
_CHUNK = 1 << 20
_ABSENT = ("NoSuchKey", "NoSuchObject", "ResourceNotFound")
_DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken")
_BUSY = ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "XMinioServerNotInitialized")


class S3Source(Source):
    """A prefix, or one object, of a bucket.

    Args:
        uri: `s3://bucket/prefix`.

    Raises:
        InputError: the location or the endpoint is malformed, or half of the credentials is missing.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._prefix = prefix.strip("/")
        if not self._bucket:
            raise InputError(f"download: {uri} names no bucket. Write s3://BUCKET/PREFIX.")
        self._client = _client()

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the bytes of one object, see `Source.read`."""
        content = self._ask(lambda: self._get(self._key(name), max_bytes + 1))
        if len(content) > max_bytes:
            raise Unavailable(f"larger than {max_bytes:,} bytes")
        return content

    def fetch(self, name: str | None, destination: Path) -> None:
        """Write one object, see `Source.fetch`."""
        key = self._prefix if name is None else self._key(name)
        if not key:
            raise InputError(f"download: {self.uri} names a bucket, not an object in it. Append /OBJECT.")
        with files.atomic_path(destination) as temporary:
            self._ask(lambda: self._save(key, temporary))

    def exists(self, name: str) -> bool:
        """Return whether the store has that object."""
        return bool(self._etag(self._key(name)))

    def names(self) -> list[str]:
        """Return every object below the prefix."""
        return [name for name, _ in self._listing]

    def fingerprint(self, *names: str) -> str:
        """Return a digest of the objects' ETags."""
        if names:
            return files.digest_of([[name, self._etag(self._key(name))] for name in names])
        single = self._etag(self._prefix) if self._prefix and not self.uri.endswith("/") else ""
        return files.digest_of([self.uri, single or self._listing])

    def describe(self) -> dict[str, str]:
        """Return the location; the endpoint is this deployment's own."""
        return {"uri": self.uri}

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._prefix, safe_name(name)) if part)

    def _etag(self, key: str) -> str:
        """Return an object's ETag, "" if the store does not have it."""
        try:
            return str(self._ask(lambda: self._client.stat_object(self._bucket, key)).etag)
        except retrying.Unreachable:
            raise
        except Unavailable:
            return ""

    @functools.cached_property
    def _listing(self) -> list[tuple[str, str]]:
        prefix = f"{self._prefix}/" if self._prefix else ""
        try:
            found = self._ask(lambda: list(self._client.list_objects(self._bucket, prefix=prefix, recursive=True)))
        except Unavailable as error:
            raise InputError(f"download: {self.uri} cannot be listed ({error}). Check AWS_ENDPOINT_URL.") from None
        return sorted((item.object_name.removeprefix(prefix), str(item.etag)) for item in found)

    def _get(self, key: str, max_bytes: int) -> bytes:
        answer = self._client.get_object(self._bucket, key)
        try:
            content = bytearray()
            while len(content) < max_bytes and (piece := answer.read(min(_CHUNK, max_bytes - len(content)))):
                content += piece
            return bytes(content)
        finally:
            answer.close()
            answer.release_conn()

    def _save(self, key: str, path: Path) -> None:
        answer = self._client.get_object(self._bucket, key)
        try:
            with path.open("wb") as stream:
                while piece := answer.read(_CHUNK):
                    stream.write(piece)
        finally:
            answer.close()
            answer.release_conn()

    def _ask(self, question: Callable[[], T]) -> T:
        """Return the store's answer, asked again when it is busy; turn its refusals into sentences."""
        return retrying.call(lambda: self._ask_once(question))

    def _ask_once(self, question: Callable[[], T]) -> T:
        import urllib3
        from minio.error import InvalidResponseError, S3Error, ServerError

        try:
            return question()
        except S3Error as error:
            code = error.code or ""
            if code in _ABSENT:
                raise Unavailable("no such object") from None
            if code == "NoSuchBucket":
                raise InputError(f"download: there is no bucket {self._bucket!r}. Check {self.uri}.") from None
            if code in _DENIED:
                raise InputError(
                    f"download: the store refuses {self.uri} ({code}). Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
                    "and AWS_ENDPOINT_URL, and what the key may read."
                ) from None
            if code in _BUSY:
                raise retrying.Transient(code) from None
            raise Unavailable(code or "refused by the store") from None
        except (ServerError, InvalidResponseError):
            raise retrying.Transient("the store answers with an error") from None
        except urllib3.exceptions.HTTPError:
            raise retrying.Transient("no connection to the store") from None


def _client() -> Any:
    import urllib3
    from minio import Minio

    endpoint = os.environ.get("AWS_ENDPOINT_URL") or _ENDPOINT
    split = urlsplit(endpoint)
    if split.scheme not in ("http", "https") or not split.netloc or split.path.strip("/"):
        raise InputError(f"download: AWS_ENDPOINT_URL={endpoint} is no endpoint. Write https://HOST[:PORT].")
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if bool(key) != bool(secret):
        lacking = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
        raise InputError(f"download: {lacking} is not set although its other half is. Set both, or neither.")
    pool = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=10, read=60), retries=False, maxsize=_CONNECTIONS, cert_reqs="CERT_REQUIRED"
    )
    return Minio(
        split.netloc,
        access_key=key or None,
        secret_key=secret or None,
        session_token=os.environ.get("AWS_SESSION_TOKEN") or None,
        secure=split.scheme == "https",
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None,
        http_client=pool,
    )
